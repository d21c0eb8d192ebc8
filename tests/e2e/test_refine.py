"""`remask refine`: a second stage of a run, which survives a kill, is the same in two processes, and refuses early."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from remask import Run, commands
from remask.errors import UserError
from remask.planning.anatomy import anatomy
from remask.recipe import dump, load_recipe
from remask.runs.refining import refine_recipe
from remask.training.trainer import Trainer
from tests.e2e.refining import main
from tests.e2e.test_processes import torchrun

SMALL = [
    "data.image_size=16", "backbone.width=32", "backbone.depth=3", "backbone.heads=2", "method.decoder_width=32",
    "method.decoder_heads=2", "jd.width=32", "optim.batch_size=10", "optim.epochs=1", "optim.warmup_epochs=0",
    "optim.precision=fp32", "runtime.threads=1", "runtime.device=cpu", "runtime.tensorboard=false", "runtime.workers=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures, `run` that was pre-trained on them, and `one`, which refined it in one process."""
    folder = tmp_path_factory.mktemp("refine")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((24, 20)).save(
            folder / "pictures" / f"{i:02d}.png"
        )
    source = {"data.source": str(folder / "pictures")}
    commands.pretrain("dmjd-vit-micro-cifar", source, settings=SMALL, out=folder / "run", quiet=True)
    main(str(folder / "pictures"), str(folder / "run"), str(folder / "one"))
    return folder


def curve(run: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss/total"], line["grad_norm"]) for line in lines]


def test_it_trains_the_last_block_of_the_runs_backbone(folder: Path) -> None:
    before, after = (load_file(folder / run / "export" / "backbone.safetensors") for run in ("run", "one"))
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(name.startswith("blocks.2.") for name in moved)
    assert moved <= {name for name in after if name.startswith(("blocks.2.", "norm."))}
    status = json.loads((folder / "one" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 8)
    assert (folder / "one" / "report.html").is_file()
    assert not list((folder / "one" / "pictures").glob("*")), "nothing is hidden that a picture could show"


def test_heads_alone_are_trained_first(folder: Path) -> None:
    """Of 4 epochs .4 are 3.2 of 8 steps: what is checked is a run that ends after three."""
    main(str(folder / "pictures"), str(folder / "run"), str(folder / "heads"), "optim.max_steps=3")
    start, now = (load_file(folder / run / "export" / "backbone.safetensors") for run in ("run", "heads"))
    assert all(torch.equal(start[name], now[name]) for name in now)
    state = load_file(folder / "heads" / "checkpoints" / "last" / "model.safetensors")
    assert int(state["branches.0.target.written"]) == 24
    assert curve(folder / "heads") == curve(folder / "one")[:3]


def test_its_cost_counts_what_the_encoder_reads(folder: Path) -> None:
    """A picture in two whole crops costs as much as eight masked views: 4 epochs of 16 crops, each of 16 tokens."""
    cost = json.loads((folder / "one" / "cost.json").read_text())
    assert (cost["images"], cost["views"], cost["tokens"], cost["ete"]) == (64, 64, 64 * 16, 16)
    before = json.loads((folder / "run" / "cost.json").read_text())
    assert before["tokens"] == 20 * 2 * 4


@pytest.mark.parametrize("at", [2, 5])
def test_killed_and_resumed_it_is_the_same(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while the backbone is frozen, and after: queue, average and stage come back."""
    out, step = folder / f"cut{at}", Trainer.step

    def dies(self: Trainer, batch: object) -> object:
        if self.global_step == at:
            raise RuntimeError("killed")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dies)
        with pytest.raises(RuntimeError, match="killed"):
            main(str(folder / "pictures"), str(folder / "run"), str(out))
    commands.resume(out, quiet=True)
    assert curve(out) == curve(folder / "one")
    one, cut = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (folder / "one", out))
    assert all(torch.equal(one[name], cut[name]) for name in one)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(folder: Path, parallel: str) -> None:
    """Negatives, queue and neighbours are those of all crops, wherever they are."""
    out = folder / parallel
    done = torchrun("tests.e2e.refining", folder / "pictures", folder / "run", out, f"runtime.parallel={parallel}")
    assert done.returncode == 0, done.stderr
    for one, two in zip(curve(folder / "one"), curve(out), strict=True):
        assert two[:2] == pytest.approx(one[:2], abs=1e-5)
    one, two = (load_file(run / "checkpoints" / "last" / "model.safetensors") for run in (folder / "one", out))
    assert torch.equal(one["branches.0.target.owners"], two["branches.0.target.owners"])
    assert torch.allclose(one["branches.0.target.queue"], two["branches.0.target.queue"], atol=1e-3)


def test_the_recipe_follows_the_run(folder: Path) -> None:
    recipe = refine_recipe(folder / "run", {}, (), 1000)
    assert (recipe.name, recipe.method.name) == ("dmjd-vit-micro-cifar-refined", "refiner")
    assert (recipe.dm, recipe.jd, recipe.masking.ratio, recipe.data.crops) == (None, None, 0, 2)
    assert recipe.backbone.weights == f"run:{(folder / 'run').resolve()}"
    assert recipe.refine.queue == 256, "the largest power of two in half of the images"
    assert recipe.optim.base_lr == pytest.approx(12e-3 * 2 / 3)
    assert recipe.data.image_size == (16, 16)
    assert refine_recipe(folder / "run", {"optim.epochs": 40}).optim.warmup_epochs == 2


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["optim.batch_size=2"], "optim.batch_size 2 is smaller than refine.neighbours 20"),
        (["refine.queue=10"], "refine.neighbours 20 are more than refine.queue 10 holds"),
        (["refine.blocks=9"], "refine.blocks: the backbone has 3 blocks, of which 1 to 3 can be trained, not 9"),
        (["refine.layers=[7]"], "refine.layers: the backbone has blocks 0 to 2"),
        (["data.crops=1"], "data.crops 1: method.name refiner compares two crops of a picture"),
        (["dm=on"], "dm has no use with method.name refiner"),
        (["runtime.accumulate=2"], "runtime.accumulate 2 would cut the batch, and method.name refiner compares"),
        (["masking.ratio=0.5"], 'masking.pattern "none" hides nothing: masking.ratio must be 0, not 0.5'),
        (["refine.blok=1"], "unknown key refine.blok"),
        (["optim.batch_size=abc"], "optim.batch_size: must be a whole number"),
        (["optim.batch_size=off"], "optim.batch_size: must be a whole number"),
        (["optim.batch_size=64"], "20 images are fewer than the 32 pairs of a batch"),
        (["progress.sizes=[8,16]"], "progress.sizes: queue and average of method.name refiner do not grow"),
        (["masking.pattern=green"], "masking.pattern green: method.name refiner compares whole crops"),
        (["backbone.weights=off"], "remask refine starts from"),
        (["average.decay=0.99"], "average.decay: must be two numbers"),
        (["average.decay=[1,1]"], "would never follow"),
    ],
)
def test_wrong_settings_are_one_line(folder: Path, tmp_path: Path, settings: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        commands.refine(folder / "run", settings=settings, out=tmp_path / "never", quiet=True)
    assert not (tmp_path / "never").exists()


def test_a_run_without_a_whole_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder / "run", broken)
    (broken / "checkpoints" / "last" / "state.json").unlink()
    with pytest.raises(UserError, match="holds no checkpoint 'last'"):
        commands.refine(broken, out=tmp_path / "never", quiet=True)
    with pytest.raises(UserError, match="is no run"):
        commands.refine(tmp_path / "nowhere", out=tmp_path / "never", quiet=True)


def test_keys_of_refine_are_for_the_refiner_alone() -> None:
    with pytest.raises(UserError, match=r"refine.queue has no use with method.name mae: it belongs to refiner"):
        commands.pretrain("mae-vit-micro-cifar", settings=["refine.queue=64"])


def test_it_starts_from_the_last_checkpoint_and_writes_nothing_beside_it(folder: Path, tmp_path: Path) -> None:
    """An export that is older, of another size, damaged or missing does not matter."""
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    shutil.rmtree(run / "export")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    options = ["optim.max_steps=3"]  # of which none trains the backbone
    main(str(folder / "pictures"), str(run), str(tmp_path / "a"), *options)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    start, now = (load_file(r / "export" / "backbone.safetensors") for r in (folder / "run", tmp_path / "a"))
    assert all(torch.equal(start[name], now[name]) for name in start)
    shutil.copytree(folder / "one" / "export", run / "export")
    main(str(folder / "pictures"), str(run), str(tmp_path / "b"), *options)
    again = load_file(tmp_path / "b" / "export" / "backbone.safetensors")
    assert all(torch.equal(start[name], again[name]) for name in start)


def test_from_python_a_run_gives_a_run(folder: Path, tmp_path: Path) -> None:
    settings = ["optim.batch_size=8", "optim.max_steps=1", "refine.neighbours=2"]
    refined = Run(folder / "run").refine(tmp_path / "refined", settings=settings)
    assert refined.recipe.method.name == "refiner"
    assert (tmp_path / "refined" / "export" / "backbone.safetensors").is_file()
    assert refined.backbone().depth == 3


def test_variables_of_the_environment_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMASK_OPTIM__BATCH_SIZE", "64")
    assert refine_recipe(folder / "run", {}).optim.batch_size == 64
    assert refine_recipe(folder / "run", {"optim.batch_size": 32}).optim.batch_size == 32


@pytest.mark.parametrize(
    ("recipe", "overrides", "epochs"),
    [
        ("dmjd-vit-micro-cifar", {"optim.epochs": 104}, 13),  # 104 · 2 views · 16 of 64 tokens, a quarter of that
        ("mae-vit-micro-cifar", {"optim.epochs": 320}, 20),
        ("simmim-vit-micro-cifar", {"optim.epochs": 100}, 25),  # which reads masked tokens too
        ("refiner-vit-micro-cifar", {"optim.epochs": 80}, 20),
    ],
)
def test_the_length_is_a_quarter_of_the_tokens_read(
    recipe: str, overrides: dict[str, int], epochs: int, folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / "recipe.toml").write_text(dump(load_recipe(recipe, overrides, environment={})))
    assert refine_recipe(run, {}).optim.epochs == epochs


def test_processes_that_may_restart_need_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(UserError, match="give --out"):
        commands.refine(folder / "run", settings=["optim.batch_size=8", "refine.neighbours=2"], quiet=True)


def test_few_images_are_smaller_batches(folder: Path) -> None:
    recipe = refine_recipe(folder / "run", {}, (), 6)
    assert (recipe.optim.batch_size, recipe.refine.neighbours) == (12, 12)


@pytest.mark.parametrize("recipe", ["simmim-swin-b", "fastmim-pvtv2-b2", "fastmim-vit-micro", "beit-vit-micro-cifar"])
def test_runs_of_other_networks_are_refined(recipe: str, tmp_path: Path) -> None:
    source = {"data.source": "crops", "data.limit": 32}
    commands.pretrain(recipe, source, smoke=True, out=tmp_path / "run", quiet=True)
    settings = ["optim.epochs=2", "optim.max_steps=2", "refine.frozen=0", "optim.batch_size=8", "refine.neighbours=2"]
    commands.refine(tmp_path / "run", settings=settings, out=tmp_path / "refined", quiet=True)
    start, now = (load_file(tmp_path / run / "export" / "backbone.safetensors") for run in ("run", "refined"))
    assert start.keys() == now.keys()
    assert any(not torch.equal(start[name], now[name]) for name in now)


def test_a_plan_counts_what_is_trained() -> None:
    """Two networks forward, and backward through the last third alone: heads are small beside a ViT-B."""
    third, all_blocks = (
        anatomy(load_recipe("refiner-vit-b", {"refine.blocks": blocks}, environment={})) for blocks in (4, 12)
    )
    assert third.forward == all_blocks.forward
    one = third.forward / 2
    assert all_blocks.training == pytest.approx(4 * one, rel=0.02)
    assert third.training == pytest.approx(2 * one + 2 * one / 3, rel=0.02)
