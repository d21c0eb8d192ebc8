"""planning/: counts against real tensors, a forecast against its line, parts against memory."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from remask.build.pretraining import build_method, parameters
from remask.build.training import build_loader, gflops_per_image
from remask.commands.planning import IMAGENET, PlanOptions, plan, text
from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.planning import micro_batches as parts_module
from remask.planning.anatomy import Live, anatomy, peak_memory
from remask.planning.devices import DEVICES, device
from remask.planning.rehearsal import DryRun, Forecast, kept_mb
from remask.planning.steps import dry_run_steps
from remask.recipe import Recipe, choose
from remask.training.runtime import Runtime
from tests.toy import trainer

LINE = Forecast(DryRun(10, 2.0, 1.0, 700.0), DryRun(30, 4.0, 2.6, 900.0), image_mb=0.5)


def saved(recipe: Recipe, batch: int, dtype: torch.dtype) -> float:
    """MB that a real forward pass keeps for its backward pass, weights left out."""
    method, kept = build_method(recipe).train(), dict[int, torch.Tensor]()
    images = torch.zeros(batch, 3, *recipe.data.image_size, dtype=torch.uint8)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        method(images)
    own = {p.untyped_storage().data_ptr() for p in (*method.parameters(), *method.buffers())}
    return sum(t.untyped_storage().nbytes() for where, t in kept.items() if where not in own) / 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dmjd-vit-micro-cifar", "convmae-convit-micro-cifar"])
def test_activations_are_those_of_a_real_pass(name: str, dtype: torch.dtype) -> None:
    recipe = choose(name)
    counted = peak_memory(recipe, 16, 1, dtype)
    assert counted.activations == pytest.approx(saved(recipe, 16, dtype), rel=0.05)


def test_bytes_of_weights_optimizer_and_images() -> None:
    recipe = choose("mae-vit-micro-cifar")
    method = build_method(recipe)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    counted = peak_memory(recipe, 64, 1, torch.float32)
    weights = 4 * (parameters(method) + sum(b.numel() for b in method.buffers()))
    assert counted.weights == pytest.approx(weights / 2**20, rel=1e-6)
    assert counted.optimizer == pytest.approx(8 * trained / 2**20, rel=1e-6)
    assert counted.images == 64 * 3 * 32 * 32 / 2**20
    assert counted.total == sum(counted)


def test_parts_and_checkpointing_hold_less() -> None:
    whole, quarter, again = (
        peak_memory(choose("mae-vit-micro-cifar", {"runtime.checkpointing": again}), 256, micro_batches, torch.float32)
        for micro_batches, again in ((1, False), (4, False), (1, True))
    )
    assert quarter.activations == pytest.approx(whole.activations / 4, rel=0.02)
    assert quarter.total < 0.5 * whole.total
    assert again.activations < 0.4 * whole.activations
    assert again.total < 0.8 * whole.total


def matrix_products(block: int, tokens: int, width: int, mlp: int = 4) -> float:
    """FLOPs of so many transformer blocks on so many tokens: projections, MLP, and the two products of attention."""
    return block * (2 * tokens * width * width * (4 + 2 * mlp) + 4 * tokens * tokens * width)


def test_guides_are_counted_once_and_without_a_backward_pass() -> None:
    """The moving average reads 64 patches and the class token, the second decoder 64 mask tokens beside them."""
    plain, guided = (anatomy(choose(f"{name}-vit-micro-cifar")) for name in ("mae", "hpm"))
    stem = 2 * 64 * 48 * 128
    teacher = stem + matrix_products(6, 65, 128)
    reads = 2 * 65 * 128 * 64 + matrix_products(1, 129, 64) + 2 * 64 * 64
    assert (guided.forward - plain.forward) * 1e9 > teacher + reads
    again = ((guided.forward - plain.forward) * 1e9 - teacher - reads) / reads
    assert 0.2 < again < 0.6, "the second decoder once more, on a masked view"
    backward = guided.training - 3 * guided.forward
    assert backward - (plain.training - 3 * plain.forward) == pytest.approx(-2e-9 * (teacher + reads), rel=0.01)
    attended = anatomy(choose("mae-attention-vit-micro-cifar"))
    assert (attended.forward - plain.forward) * 1e9 == pytest.approx(teacher, rel=0.06)  # and queries, keys once more
    assert anatomy(choose("mae-green-vit-micro-cifar")).forward == pytest.approx(plain.forward, rel=1e-3)
    assert guided.trained > plain.trained
    assert gflops_per_image(choose("hpm-vit-micro-cifar")) == guided.forward


def test_teachers_beside_the_method_are_held_and_not_trained() -> None:
    recipe = choose("moma-vit-micro-cifar", smoke=True)
    student = build_method(recipe)
    counted, taught = anatomy(recipe), peak_memory(recipe, 8, 1, torch.float32)
    assert counted.trained == sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert taught.weights > 1.5 * 4 * parameters(student) / 2**20
    assert counted.training < 3 * counted.forward, "a teacher has no backward pass"


def test_flops() -> None:
    recipe = choose("mae-vit-micro-cifar")
    counted = anatomy(recipe)
    assert counted.forward == pytest.approx(gflops_per_image(recipe), rel=1e-3)
    assert counted.training == pytest.approx(3 * counted.forward, rel=5e-3)
    again = anatomy(choose("mae-vit-micro-cifar", {"runtime.checkpointing": True}))
    assert again.training == pytest.approx(4 * counted.forward, rel=5e-3)


def test_live_bytes_of_known_operations() -> None:
    with Live() as live:
        first = torch.zeros(1000)
        second = first + 1
        view = second[:10]
        assert live.now == live.peak == 8000
        del second
        assert live.now == 8000, "a view holds all of it"
        del view
        assert live.now == 4000
        layer = nn.functional.relu(first)
        assert (live.now, live.peak) == (8000, 8000)
        del layer
    assert live.now == 4000


# ------------------------------------------------------------------------------------------------------- the forecast


def test_a_line_is_read() -> None:
    assert LINE.mb_per_image == 10
    assert LINE.memory_mb(30) == 900
    assert LINE.memory_mb(100) == 1600
    assert LINE.memory_mb(100, micro_batches=4) == 850 + 75 * 0.5
    assert LINE.seconds(30) == pytest.approx(4.0)
    assert LINE.seconds(100) == pytest.approx(4.0 + 70 * 0.1)
    assert LINE.cpu_seconds(100) == pytest.approx(2.6 + 70 * 0.08)
    assert LINE.seconds(60, micro_batches=2) == pytest.approx(8.0)


def test_noise_does_not_make_large_batches_free_or_dear() -> None:
    each = 4.0 / 30
    fast = LINE._replace(small=LINE.small._replace(seconds=5.0))
    assert fast.seconds(60) == pytest.approx(4 + 30 * each / 2)
    slow = LINE._replace(small=LINE.small._replace(seconds=0.1))
    assert slow.seconds(60) == pytest.approx(4 + 30 * each * 1.1)


def test_kept_pictures_come_on_top(tmp_path: Path) -> None:
    for number in range(16):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    asked = {"data.source": str(tmp_path), "runtime.device": "cpu", "optim.batch_size": 4}
    recipe = choose("mae-vit-micro-cifar", asked)
    loader = build_loader(recipe, open_source(str(tmp_path)), Runtime(torch.device("cpu")), build_method(recipe))
    list(loader.epoch(0))
    kept = loader._builder._images._cache._kept.values()  # type: ignore[attr-defined]
    assert kept_mb(recipe) == sum(picture.nbytes for picture in kept) / 2**20 == 16 * 30 * 40 * 3 / 2**20
    for none in ({"data.keep": "never"}, {"data.reduced": True}, {"data.source": None}, {"data.source": "digits"}):
        assert kept_mb(choose("mae-vit-micro-cifar", {**asked, **none})) == 0, none
    assert LINE._replace(kept_mb=50).memory_mb(100, micro_batches=4) == LINE.memory_mb(100, micro_batches=4) + 50


def test_steps_are_those_of_a_real_run(tmp_path: Path) -> None:
    recipe = choose("mae-vit-micro-cifar", {"runtime.device": "cpu", "optim.precision": "fp32"})
    asked = {"recipe": recipe.model_dump(mode="json"), "batch": 4, "parts": 2, "steps": 3, "source": "digits"}
    found = dry_run_steps({**asked, "run": str(tmp_path / "run")})
    assert set(found) == {"seconds", "cpu_seconds", "peak_mb"}
    assert 0 < found["seconds"] < 60
    assert found["peak_mb"] > 50
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 3)
    saved_mb = sum(f.stat().st_size for f in (tmp_path / "run" / "checkpoints" / "last").iterdir()) / 2**20
    images = {"images": 2000, "device": "h200"}
    assert plan(recipe, PlanOptions(**images))["checkpoint_mb"] == pytest.approx(saved_mb, rel=0.03)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(("there", "micro_batches"), [(10_000.0, 1), (1300.0, 2), (900.0, 7)])
def test_parts_follow_the_memory_of_a_cpu(
    there: float, micro_batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "forecast", lambda *_: LINE)
    monkeypatch.setattr(parts_module, "available_mb", lambda: there)
    monkeypatch.setattr(parts_module, "peak_resident_mb", lambda: 0.0)
    recipe, cut = choose("mae-vit-micro-cifar", {"optim.batch_size": 100}), trainer(tmp_path / "run")
    said = parts_module.choose_micro_batches(recipe, cut, Runtime(torch.device("cpu")))
    fits = [n for n in range(1, 101) if LINE.memory_mb(100, n) <= 0.9 * there]
    assert cut.micro_batches == min(fits) == micro_batches
    assert f"a batch of 100 in {micro_batches} part" in said


# ----------------------------------------------------------------------------------------------------------- the plan


def test_a_plan_for_devices_of_the_table() -> None:
    recipe = choose("mae-vit-b", {"optim.batch_size": 4096, "optim.epochs": 10})
    facts = plan(recipe, PlanOptions("a100-40", gpus=8, mfu=0.5))
    assert facts["batch_per_device"] == 512
    speed = 312e3 * 0.5 / facts["gflops_per_image"]["training"]
    assert facts["images_per_s"] == pytest.approx(speed, rel=1e-3)
    assert facts["hours"] == pytest.approx(10 * (IMAGENET // 4096) * 4096 / (8 * speed) / 3600, rel=1e-3)
    assert facts["gpu_hours"] == pytest.approx(8 * facts["hours"], abs=0.01)
    assert 43 * 512 < facts["memory_mb"]["activations"] < 47 * 512, (
        "an image of a ViT-B; 57 MiB where attention is not fused"
    )
    page = text(facts)
    assert "8 devices × 512 images" in page
    assert "50% of 312 TFLOP/s" in page


def test_auto_parts_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "toy", DEVICES["h100"]._replace(name="toy", gigabytes=0.1))
    recipe = choose("mae-vit-micro-cifar", {"optim.batch_size": 256, "runtime.accumulate": "auto"})
    facts = plan(recipe, PlanOptions("toy", images=1000))
    assert facts["fits"]
    assert facts["accumulate"] > 1
    fewer = recipe.model_copy(
        update={"runtime": recipe.runtime.model_copy(update={"accumulate": facts["accumulate"] - 1})}
    )
    assert not plan(fewer, PlanOptions("toy", images=1000))["fits"]


def test_a_batch_whose_pictures_are_compared_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not fit, one line says what helps; a number of parts is refused by the recipe."""
    keys = {"optim.batch_size": 256, "runtime.accumulate": "auto", "uniformity": "on"}
    recipe = choose("mae-vit-micro-cifar", keys)
    monkeypatch.setitem(DEVICES, "toy", DEVICES["h100"]._replace(name="toy", gigabytes=0.1))
    with pytest.raises(UserError, match=r"does not fit in memory, and this loss compares.* lower optim\.batch_size"):
        plan(recipe, PlanOptions("toy", images=1000))
    assert plan(recipe, PlanOptions("h100", images=1000))["accumulate"] == 1
    told = choose("mae-vit-micro-cifar", {**keys, "runtime.accumulate": 1})
    facts = plan(told, PlanOptions("toy", images=1000))
    assert "does not fit; try a smaller optim.batch_size or --set runtime.checkpointing=true" in text(facts)
    monkeypatch.setattr(parts_module, "forecast", lambda *_: LINE)
    monkeypatch.setattr(parts_module, "available_mb", lambda: 900.0)
    monkeypatch.setattr(parts_module, "peak_resident_mb", lambda: 0.0)
    with pytest.raises(UserError, match="does not fit in memory, and this loss compares"):
        parts_module.choose_micro_batches(recipe, trainer(tmp_path / "run"), Runtime(torch.device("cpu")))


def test_growing_images_cost_less() -> None:
    sizes = {"progress.sizes": [[16, 16], [32, 32]], "optim.epochs": 2}
    grown = choose("fastmim-vit-micro", {**sizes, "data.image_size": (32, 32)})
    fixed = choose("fastmim-vit-micro", {"data.image_size": (32, 32), "optim.epochs": 2})
    small, large = (anatomy(choose("fastmim-vit-micro", {"data.image_size": (n, n)})).training for n in (16, 32))
    share = plan(grown, PlanOptions("h100"))["hours"] / plan(fixed, PlanOptions("h100"))["hours"]
    assert share == pytest.approx(0.5 * (1 + small / large), rel=1e-2)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"no data sheet of 'h20'; did you mean h200\?"):
        device("h20")
    assert device("H200") is DEVICES["h200"]
    recipe = choose("mae-vit-micro-cifar")
    with pytest.raises(UserError, match="32 cannot be shared by 5 devices"):
        plan(recipe, PlanOptions("h200", gpus=5))
    with pytest.raises(UserError, match="planned for one device"):
        plan(recipe, PlanOptions("cpu", gpus=2))
    with pytest.raises(UserError, match="31 images are less than a batch of 32"):
        plan(recipe, PlanOptions("h200", images=31))
