"""Whatever is not finite: it is in no checkpoint, the step is skipped and named, and the rest is as if it were not."""

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from remask import commands
from remask.build.pretraining import build_method
from remask.build.training import build_loader, build_trainer
from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.recipe import choose
from remask.training import saving
from remask.training.checkpoint import Content
from remask.training.run_folder import RunFolder
from remask.training.runtime import resolve
from remask.training.step import Stepper
from remask.training.trainer import Trainer
from tests.e2e.test_processes import torchrun
from tests.faults.not_finite import BAD_STEP, CAUSES, Faulty, left_out, poison
from tests.toy import Killed, losses, train, trainer, weights

SAVED = list[int]()


@pytest.fixture(autouse=True)
def finite_checkpoints() -> Iterator[None]:
    """Every checkpoint that is written in a test is looked at."""
    real = saving.write

    def write(run: RunFolder, name: str, content: Content) -> None:
        for values in (content.weights, *content.moments["state"].values()):
            assert all(torch.isfinite(value).all() for value in values.values() if isinstance(value, Tensor)), name
        SAVED.append(json.loads(content.state)["step"])
        real(run, name, content)

    SAVED.clear()
    with pytest.MonkeyPatch.context() as patch:  # its own, which no test undoes
        patch.setattr(saving, "write", write)
        yield


def faulty(path: Path, cause: str, *steps: int, make: bool = True, **keys: Any) -> Trainer:
    """A trainer that saves after every step, of a toy with something wrong in these steps."""
    keys = {"save_minutes": 0.0, **keys, **{key: keys.get(key, value) for key, value in CAUSES.get(cause, {}).items()}}
    model = Faulty(cause, steps, dropout=0.0 if "accumulate" in keys else 0.3)
    model.trainer = trainer(path, model, make=make, **keys)
    return model.trainer


def everything(made: Trainer) -> list[Tensor]:
    """Weights, running means, moments, counters."""
    state = made.optimizer.state_dict()["state"]
    return [*weights(made), *(value.clone() for moments in state.values() for value in moments.values())]


@functools.cache
def by_hand(folder: Path, step: int, **keys: Any) -> tuple[list[Any], list[Tensor]]:
    """Losses and all that was learned by a run in which a step is left out by hand."""
    made = faulty(folder / str((step, *keys.items())), "", **keys)
    made.step = functools.partial(left_out([step]), made)  # type: ignore[method-assign]
    return losses(train(made)), everything(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("by hand")


def test_there_are_twenty_causes_and_more() -> None:
    lasting = len(RATES) + len(BROKEN)
    assert len(CAUSES) >= 18
    assert len(CAUSES) + lasting >= 25


PLACES = [(cause, step) for cause in CAUSES for step in (5, 8)] + [("picture nan", step) for step in (1, 3, 14, 15)]
"""Step 1 is the first, 3 in the warm-up, 5 the last of an epoch, 15 of the run."""


@pytest.mark.parametrize(("cause", "step"), PLACES)
def test_a_step_is_skipped_and_the_rest_is_as_if_it_were_left_out(
    cause: str, step: int, tmp_path: Path, folder: Path
) -> None:
    made = faulty(tmp_path / "run", cause, step)
    metrics = train(made)
    expected, learned = by_hand(folder, step, **CAUSES[cause])
    assert [line.get("skipped") for line in metrics] == [[step] if n == step else None for n in range(1, 16)]
    assert losses([line for line in metrics if line["step"] != step]) == [*expected[: step - 1], *expected[step:]]
    assert not {"loss/total", "grad_norm"} & metrics[step - 1].keys(), "of a step that is skipped"
    assert all(torch.equal(a, b) for a, b in zip(everything(made), learned, strict=True))
    assert set(SAVED) == set(range(16)), "also right after the step"
    assert made.run.read("status.json")["skipped"] == [step]


def test_means_are_over_the_other_steps(tmp_path: Path, folder: Path) -> None:
    metrics = train(faulty(tmp_path / "run", "loss nan", 8, log_every=5, save_minutes=10.0))
    expected, _ = by_hand(folder, 8)
    mean = sum(expected[step - 1][1] for step in (6, 7, 9, 10)) / 4
    assert [line.get("skipped") for line in metrics] == [None, [8], None]
    assert metrics[1]["loss/total"] == pytest.approx(mean, rel=1e-6)
    assert metrics[1]["images_per_s"] > 0


@pytest.mark.parametrize(("limit", "last"), [(3, 9), (2, 8), (1, 7), (0, 7)])
@pytest.mark.parametrize("log_every", [1, 10])
def test_several_in_a_row_stop_with_what_to_do(limit: int, last: int, log_every: int, tmp_path: Path) -> None:
    """Though the host looks at the end of an epoch alone, nothing is learned after the last of them."""
    made = faulty(
        tmp_path / "run", "loss nan", *range(7, last + 1), log_every=log_every, max_skipped=limit, save_minutes=1e9
    )
    skipped = f", and steps 7 to {last} were skipped" if last > 7 else ""
    command = re.escape(f"remask resume {made.run.path} --set optim.base_lr=")
    with pytest.raises(UserError, match=rf"the loss is nan at step {last}{skipped}: lower .*{command}") as caught:
        train(made)
    assert "\n" not in str(caught.value)
    status = made.run.read("status.json")
    assert (status["state"], status["skipped"]) == ("failed", list(range(7, last + 1)))
    good = faulty(tmp_path / "good", "", max_steps=6)
    train(good)
    assert all(torch.equal(a, b) for a, b in zip(everything(made), everything(good), strict=True))
    assert SAVED[-1] <= 6 or log_every == 1
    calm = faulty(tmp_path / "run", "", make=False, lr=0.01)
    calm.resume()
    assert train(calm)[-1]["step"] == 15


def test_fewer_than_that_do_not_stop_it(tmp_path: Path) -> None:
    made = faulty(tmp_path / "run", "loss inf", 2, 3, 5, 6, 8, 10)
    train(made)
    assert made.run.read("status.json")["skipped"] == [2, 3, 5, 6, 8, 10]


def test_the_count_goes_on_after_a_resume(tmp_path: Path) -> None:
    """Killed after step 8, the second that was skipped: the next stops the run, as it would have."""
    for name in ("killed", "through"):
        made = faulty(tmp_path / name, "loss nan", 7, 8, 9)
        if name == "killed":
            made.log.add = functools.partial(_killed_at, made, 9, made.log.add)  # type: ignore[method-assign]
            with pytest.raises(Killed):
                train(made)
            made = faulty(tmp_path / name, "loss nan", 7, 8, 9, make=False)
            made.resume()
            assert made.global_step == 8
        with pytest.raises(UserError, match="at step 9, and steps 7 to 9 were skipped"):
            train(made)


def _killed_at(made: Trainer, step: int, then: Any, *given: Any) -> None:
    if made.global_step == step:
        raise Killed
    then(*given)


def test_a_resumed_run_is_the_same_bit_by_bit(tmp_path: Path) -> None:
    """Also in the middle of a line of the log, in which a step was skipped before the kill."""
    keys: dict[str, Any] = {"log_every": 4}
    through = faulty(tmp_path / "through", "target inf", 6, 11, **keys)
    expected = train(through)
    killed = faulty(tmp_path / "killed", "target inf", 6, 11, **keys)
    killed.log.add = functools.partial(_killed_at, killed, 8, killed.log.add)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        train(killed)
    again = faulty(tmp_path / "killed", "target inf", 6, 11, make=False, **keys)
    again.resume()
    found = train(again)
    assert losses(found) == losses(expected)
    assert [line.get("skipped") for line in found] == [line.get("skipped") for line in expected]
    assert all(torch.equal(a, b) for a, b in zip(everything(again), everything(through), strict=True))


def test_optimizers_that_read_no_flag_skip_too(tmp_path: Path) -> None:
    found = {}
    for name in ("nan", "by hand"):
        made = faulty(tmp_path / name, "loss nan" if name == "nan" else "", 8)
        made.optimizer = torch.optim.SGD(made.model.parameters(), lr=0.01, momentum=0.9, fused=False)
        if name == "by hand":
            made.step = functools.partial(left_out([8]), made)  # type: ignore[method-assign]
        found[name] = [line for line in losses_of(train(made)) if line[0] != 8], weights(made)
    assert found["nan"][0] == found["by hand"][0]
    assert all(torch.equal(a, b) for a, b in zip(found["nan"][1], found["by hand"][1], strict=True))


def losses_of(metrics: list[dict[str, Any]]) -> list[Any]:
    return [(line["step"], line.get("loss/total"), line["lr"]) for line in metrics]


# ------------------------------------------------------------------------------------- what is broken stays broken

RATES = [(1e19, None), (1e30, None), (1e38, 1.0), (1e39, None), (1e39, 0.1)]
"""Learning rates, and clipping: the last two are infinite in single precision."""


@pytest.mark.parametrize(("lr", "clip"), RATES)
@pytest.mark.parametrize("save_minutes", [0.0, 10.0])
def test_a_rate_too_high_stops_and_the_good_checkpoint_stays(
    lr: float, clip: float | None, save_minutes: float, tmp_path: Path
) -> None:
    made = faulty(tmp_path / "run", "", lr=lr, clip=clip, warmup_epochs=0.0, save_minutes=save_minutes)
    with pytest.raises(UserError, match=r"(is (nan|inf)|are not finite).*: lower .* remask resume .* --set optim"):
        train(made)
    calm = faulty(tmp_path / "run", "", make=False, lr=0.01)
    calm.resume()
    calm.model.load_state_dict({key: value.clamp(-1, 1) for key, value in calm.model.state_dict().items()})
    assert train(calm)[-1]["step"] == 15


def corrupt(made: Trainer, what: str) -> None:
    """A number becomes infinite between two steps."""
    state = made.model.state_dict()
    layer = made.model.body[-1].weight  # type: ignore[union-attr, index]
    tensor = {
        "a weight": state["body.0.weight"], "a running mean": state["body.1.running_var"],
        "a buffer that nothing reads": state["unread"], "a moment": made.optimizer.state[layer]["exp_avg"],
        "a second moment": made.optimizer.state[layer]["exp_avg_sq"],
    }[what]  # fmt: skip
    tensor.view(-1)[0] = math.inf


BROKEN = {
    "a weight": "the weights body.0.weight", "a running mean": "the weights body.1.running_var",
    "a buffer that nothing reads": "the weights unread", "a moment": "the moments of body.4.weight (exp_avg)",
    "a second moment": "the moments of body.4.weight (exp_avg_sq)",
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_broke_between_two_steps_is_not_saved(what: str, tmp_path: Path) -> None:
    made = faulty(tmp_path / "run", "")
    made.model.register_buffer("unread", torch.zeros(3))

    def hook(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if made.global_step + 1 == 7:
            corrupt(made, what)

    made.optimizer.register_step_post_hook(hook)
    named = re.escape(BROKEN[what])
    with pytest.raises(UserError, match=rf"{named} are not finite after step 7, and not saved: lower .*remask resume"):
        train(made)
    assert max(SAVED) == 6
    assert made.run.read("status.json")["state"] == "failed"


def test_running_means_that_overflow_though_the_loss_does_not_are_not_saved(tmp_path: Path) -> None:
    """A picture whose square overflows in BatchNorm, behind which it is as tame as the others."""
    made = faulty(tmp_path / "run", "picture 1e38", 7)
    with pytest.raises(UserError, match=r"the weights body.1.running_var are not finite after step 7, and not saved"):
        train(made)
    assert max(SAVED) == 6


def test_a_hook_never_sees_weights_that_are_not_finite(tmp_path: Path) -> None:
    def look(epoch: int) -> dict[str, float]:
        assert all(torch.isfinite(value).all() for value in made.model.state_dict().values())
        return {}

    made = faulty(tmp_path / "run", "", hooks=[look], save_minutes=1e9)
    made.optimizer.register_step_post_hook(lambda *_: corrupt(made, "a moment") if made.global_step == 4 else None)
    made.model.register_buffer("unread", torch.zeros(3))
    with pytest.raises(UserError, match="after step 5, and not saved"):
        train(made)


# ------------------------------------------------------------------------------------------------- real trainings

SMALL = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "optim.precision=fp32", "data.limit=16",
    "runtime.workers=0", "runtime.compile=false", "runtime.log_every=1", "runtime.save_every_minutes=0.00001",
    "runtime.tensorboard=false", "runtime.threads=1", "optim.warmup_epochs=0", "optim.max_steps=8",
]  # fmt: skip
DECODER = ["method.decoder_width=32", "method.decoder_heads=2", "method.decoder_depth=1"]
METHODS: dict[str, tuple[str, list[str]]] = {
    "mae, in parts": ("mae-vit-micro-cifar", [*DECODER, "runtime.accumulate=2", "optim.clip=0.5"]),
    "a moving average as teacher": ("dmjd-vit-micro-cifar", [*DECODER, "jd.target=average", "average.decay=[0.7,0.9]"]),
    "data2vec": ("data2vec-vit-micro-cifar", ["method.target.top=2", "average.decay=[0.7,0.9]"]),
    "a queue of neighbours": (
        "refiner-vit-micro-cifar",
        ["refine.queue=16", "refine.neighbours=2", "refine.blocks=1", "refine.layers=[-1]"],
    ),
}


def method_run(path: Path, name: str, more: list[str], **changed: Any) -> Trainer:
    settings = [*SMALL, *more, *(f"{key}={value}" for key, value in changed.items())]
    settings += ["backbone.weights=off"] if name.startswith("refiner") else []
    recipe = choose(name, {"data.source": "photos", "optim.batch_size": 4}, settings=settings)
    runtime, source = resolve("cpu", "fp32", compile=False, threads=1), open_source("photos", limit=16)
    torch.manual_seed(0)
    made = build_method(recipe)
    return build_trainer(
        recipe, made, build_loader(recipe, source, runtime, made), runtime, RunFolder.create(path, "", {})
    )


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("step", [1, 4])
def test_methods_go_on_as_if_the_step_were_left_out(
    kind: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, moving average, queue, its owners and its place in it."""
    made = method_run(tmp_path / "nan", *METHODS[kind])
    monkeypatch.setattr(Stepper, "_forward_backward", poison([step]))
    found = losses_of(train(made))
    monkeypatch.undo()
    other = method_run(tmp_path / "out", *METHODS[kind])
    monkeypatch.setattr(Trainer, "step", left_out([step]))
    expected = losses_of(train(other))
    assert [line for line in found if line[0] != step] == [line for line in expected if line[0] != step]
    assert all(torch.equal(a, b) for a, b in zip(everything(made), everything(other), strict=True))
    assert made.run.read("status.json")["skipped"] == [step]


@pytest.mark.parametrize(
    "settings", [{"optim.base_lr": 1e4}, {"optim.base_lr": 1e7}, {"optim.base_lr": 1e7, "optim.clip": 1}]
)
def test_a_method_at_a_rate_too_high_stops_with_half_of_it(settings: dict[str, Any], tmp_path: Path) -> None:
    made = method_run(
        tmp_path / "run", *METHODS["mae, in parts"], **{"optim.max_steps": 40, "optim.epochs": 40, **settings}
    )
    half = f"--set optim.base_lr={settings['optim.base_lr'] / 2:.3g}"
    with pytest.raises(UserError, match=re.escape(half)):
        train(made)


def finetune(out: Path, *settings: str) -> Path:
    given = {"data.source": "digits", "data.limit": 100, "data.image_size": 16, "optim.epochs": 2, "optim.ema": 0.8}
    chosen = ["runtime.threads=1", "optim.precision=fp32", "runtime.log_every=1", "runtime.save_every_minutes=0.00001"]
    start = "untrained:vit_micro"
    return commands.finetune(
        start, None, {**given, "optim.batch_size": 16}, settings=[*chosen, *settings], out=out, quiet=True
    )


def test_a_downstream_run_skips_stops_and_goes_on_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stepper, "_forward_backward", poison([3]))
    run = finetune(tmp_path / "nan")
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "step", left_out([3]))
    out = finetune(tmp_path / "out")
    monkeypatch.undo()
    lines = [[line for line in losses_of(RunFolder(path).metrics()) if line[0] != 3] for path in (run, out)]
    assert lines[0] == lines[1]
    one, other = (load_file(path / "checkpoints" / "last" / "model.safetensors") for path in (run, out))
    assert all(torch.equal(one[key], other[key]) for key in other), "the average and its count too"
    page = (run / "report.html").read_text()
    assert "Steps skipped, as loss or gradient was not finite: 1 (3)." in page
    assert "Norm of the gradients" in page
    monkeypatch.setattr(Stepper, "_forward_backward", poison([5, 6, 7, 8]))
    with pytest.raises(UserError, match=r"steps 5 to 7 were skipped.*--set optim.base_lr=") as caught:
        finetune(tmp_path / "stopped")
    monkeypatch.undo()
    found = re.search(r"remask resume (\S+) --set (\S+) --set ([^\s;]+)", str(caught.value))
    assert found
    commands.resume(found[1], settings=[found[2], found[3]], quiet=True)
    history = json.loads((tmp_path / "stopped" / "settings.json").read_text())["history"]
    assert [(entry["step"], list(entry["set"])) for entry in history] == [(6, ["optim.base_lr", "optim.clip"])]
    page = (tmp_path / "stopped" / "report.html").read_text()
    assert "From step 6 (epoch " in page


def test_one_of_two_processes(tmp_path: Path) -> None:
    """Both skip the step, of DDP and of FSDP; the curve is that of two processes that left it out."""
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(41):
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((24, 20)).save(tmp_path / "pictures" / f"{i:02d}.png")
    done = torchrun("tests.faults.not_finite", tmp_path / "pictures", tmp_path)
    assert done.returncode == 0, done.stderr
    for parallel in ("ddp", "fsdp"):
        bad, out = (losses_of(RunFolder(tmp_path / f"{parallel}-{kind}").metrics()) for kind in ("nan", "out"))
        assert [line[0] for line in bad] == list(range(1, 21))
        assert [line for line in bad if line[0] != BAD_STEP] == [line for line in out if line[0] != BAD_STEP]
        run = RunFolder(tmp_path / f"{parallel}-nan")
        assert run.read("status.json")["skipped"] == [BAD_STEP]
        saved = load_file(run.path / "checkpoints" / "last" / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in saved.values())
