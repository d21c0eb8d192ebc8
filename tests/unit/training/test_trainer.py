"""trainer.py: the loop on a toy: schedule, accumulation, logging, hooks and failures; resuming is in its own file."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from remask.errors import UserError
from remask.seeds import generator
from remask.training.checkpoint import load_weights
from remask.training.progress import Lines
from remask.training.run_folder import find
from remask.training.run_log import RunLog
from remask.training.trainer import Window
from tests.toy import BATCH, PER_EPOCH, Batches, Toy, losses, train, trainer, weights


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run")
    metrics = train(made)
    assert [line["step"] for line in metrics] == list(range(1, 16))
    assert [line["epoch"] for line in metrics] == [round(step / 5, 4) for step in range(1, 16)]
    promised = {
        "step",
        "epoch",
        "loss/total",
        "loss/masked",
        "grad_norm",
        "lr",
        "images_per_s",
        "views_per_s",
        "data_wait",
    }
    assert all(set(line) == promised for line in metrics)
    assert all(line["views_per_s"] == pytest.approx(2 * line["images_per_s"], rel=1e-3) for line in metrics)
    assert all(0 <= line["data_wait"] <= 1 for line in metrics)
    status = made.run.read("status.json")
    assert (status["state"], status["step"], status["steps"]) == ("finished", 15, 15)
    assert status["resume_command"] == f"remask resume {made.run.path}"
    cost = made.run.read("cost.json")
    assert (cost["images"], cost["views"], cost["ete"]) == (120, 240, 6)
    assert metrics[-1]["loss/total"] < metrics[0]["loss/total"]


def test_the_schedule_is_followed_step_by_step(tmp_path: Path) -> None:
    metrics = train(trainer(tmp_path / "run", min_lr=0.01))
    for step, line in enumerate(metrics):
        epoch = step / PER_EPOCH
        cosine = 0.01 + 0.04 * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 2))
        assert line["lr"] == pytest.approx(0.05 * epoch if epoch < 1 else cosine)


def test_a_step_is_what_plain_torch_does(tmp_path: Path) -> None:
    made, other = trainer(tmp_path / "run", Toy(dropout=0), max_steps=4, lr=0.01), Toy(dropout=0)
    train(made)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in other.parameters() if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in other.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    for step, batch in zip(range(4), Batches().epoch(0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * step / PER_EPOCH
        noise = torch.randn(BATCH, 6, generator=generator(0, "draw", step))
        optimizer.zero_grad()
        (2 * (other.body(batch.images) - noise).square().mean()).backward()
        optimizer.step()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(made), other.state_dict().values(), strict=True))


def test_max_steps_ends_early_and_keeps_the_schedule(tmp_path: Path) -> None:
    whole = losses(train(trainer(tmp_path / "whole")))
    short = trainer(tmp_path / "short", max_steps=7)
    assert losses(train(short)) == whole[:7]
    assert short.run.read("status.json")["state"] == "finished"
    assert find(short.run).name == "last"
    assert json.loads((find(short.run) / "state.json").read_text())["step"] == 7


def test_what_follows_a_step_is_told_the_share_of_the_schedule(tmp_path: Path) -> None:
    """Also where max_steps cuts the run: the learning rate and a moving average go on as if it were not."""

    class Following(Toy):
        def after_step(self, progress: float, taken: Tensor) -> None:
            seen.append((progress, self.body[0].weight.detach().clone()))

    for name, cut in (("full", {}), ("cut", {"max_steps": 5})):
        seen = list[tuple[float, Tensor]]()
        made = trainer(tmp_path / name, Following(), **cut)
        train(made)
        steps = made.schedule.steps
        assert [progress for progress, _ in seen] == pytest.approx([k / (3 * PER_EPOCH) for k in range(1, steps + 1)])
        assert torch.equal(seen[-1][1], made.model.body[0].weight), "after the update"  # type: ignore[index, union-attr]


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    # no dropout: what is random inside a slice differs when the slices do
    one, four = (trainer(tmp_path / str(n), Toy(dropout=0), accumulate=n, lr=0.01) for n in (1, 4))
    first, second = losses(train(one)), losses(train(four))
    assert all(a == pytest.approx(b, abs=1e-6) for a, b in zip(first, second, strict=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(one), weights(four), strict=True))
    assert four.model.calls == 4 * one.model.calls


def test_slices_of_unequal_size_are_weighted(tmp_path: Path) -> None:
    one, three = (trainer(tmp_path / str(n), Toy(dropout=0), accumulate=n, max_steps=3) for n in (1, 3))
    for a, b in zip(losses(train(one)), losses(train(three)), strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_log_lines_are_means_over_their_steps(tmp_path: Path) -> None:
    single = losses(train(trainer(tmp_path / "single")))
    metrics = losses(train(trainer(tmp_path / "window", log_every=3)))
    assert [line[0] for line in metrics] == [3, 5, 6, 9, 10, 12, 15], "every three steps and at the end of an epoch"
    before = 0
    for step, total, masked, lr in metrics:
        steps = single[before:step]
        assert total == pytest.approx(sum(line[1] for line in steps) / len(steps), rel=1e-12)
        assert masked == pytest.approx(sum(line[2] for line in steps) / len(steps), rel=1e-12)
        assert lr == steps[-1][3]
        before = step


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    norms = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            norms.append(math.hypot(*(float(p.grad.norm()) for g in self.param_groups for p in g["params"])))
            return super().step(closure)

    for clip in (None, 0.01):
        norms.clear()
        made = trainer(tmp_path / str(clip), clip=clip, max_steps=3)
        made.optimizer = Spy(made.model.parameters(), lr=0.1)
        train(made)
        assert (max(norms) <= 0.01 * 1.001) == (clip is not None)


def test_seeds_differ(tmp_path: Path) -> None:
    first, same, other = (losses(train(trainer(tmp_path / str(i), seed=s))) for i, s in enumerate((1, 1, 2)))
    assert first == same
    assert first[0][1] != other[0][1]


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", max_steps=2)
    state = torch.random.get_rng_state()
    train(made)
    assert torch.equal(torch.random.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------------------ hooks


def test_hooks_are_called_after_every_epoch_and_logged(tmp_path: Path) -> None:
    called: list[tuple[str, int]] = []

    def hook(name: str) -> Callable[[int], dict[str, float]]:
        def call(epoch: int) -> dict[str, float]:
            called.append((name, epoch))
            return {f"probe/{name}": epoch / 2} if epoch != 2 else {}

        return call

    metrics = train(trainer(tmp_path / "run", hooks=[hook("a"), hook("b")], log_every=2))
    assert called == [(name, epoch) for epoch in (1, 2, 3) for name in ("a", "b")]
    assert {line["step"]: line["probe/a"] for line in metrics if "probe/a" in line} == {5: 0.5, 15: 1.5}


def test_the_time_of_hooks_is_not_training(tmp_path: Path) -> None:
    def slow(epoch: int) -> dict[str, float]:
        time.sleep(0.5)
        return {}

    made = trainer(tmp_path / "run", hooks=[slow], log_every=PER_EPOCH)
    began = time.perf_counter()
    train(made)
    taken = time.perf_counter() - began
    assert taken > 1.5
    assert made.ledger.hours * 3600 <= taken - 1.5 + 1e-3


def test_a_hook_does_not_change_what_follows(tmp_path: Path) -> None:
    def noisy(epoch: int) -> dict[str, float]:
        torch.rand(3)
        return {"probe/x": 1.0}

    expected = losses(train(trainer(tmp_path / "plain")))
    assert losses(train(trainer(tmp_path / "hooked", hooks=[noisy]))) == expected


# --------------------------------------------------------------------------------------------------------- failures


def poisoned(step: int) -> Toy:
    model = Toy()
    model.at = {step: lambda: setattr(model, "poison", True)}
    return model


def test_a_loss_that_is_not_finite_stops_the_run_with_one_line(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", poisoned(7), max_skipped=0)
    with pytest.raises(UserError, match=r"the loss is nan at step 7: lower optim.base_lr.*last") as caught:
        train(made)
    assert "\n" not in str(caught.value)
    status = made.run.read("status.json")
    assert (status["state"], status["step"]) == ("failed", 7)
    assert "the loss is nan" in status["error"]
    assert made.run.metrics()[-1]["step"] == 6
    assert json.loads((find(made.run) / "state.json").read_text())["step"] == 5


def test_the_last_checkpoint_is_good_when_the_loss_is_not(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", poisoned(3), log_every=5, save_minutes=0.0)
    with pytest.raises(UserError, match="the last good checkpoint is in"):
        train(made)
    saved = Toy()
    load_weights(find(made.run) / "model.safetensors", saved)
    assert all(torch.isfinite(value).all() for value in saved.state_dict().values())


def test_an_error_is_noted_and_passed_on(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    made = trainer(tmp_path / "run", Toy(at={2: fail}))
    with pytest.raises(RuntimeError, match="out of memory"):
        train(made)
    status = made.run.read("status.json")
    assert (status["state"], status["error"]) == ("failed", "out of memory")
    assert made.run.read("cost.json")["images"] == BATCH


# ------------------------------------------------------------------------------------------------------ the window


def test_a_window_survives_json(tmp_path: Path) -> None:
    """Means after a round trip are those of the window that never left memory, to the last bit."""
    whole, first = Window(), Window()
    values = torch.randn(7, generator=Generator().manual_seed(0)).unbind()
    for value in values[:4]:
        whole.add({"total": value}, 0.1, 8)
        first.add({"total": value}, 0.1, 8)
    second = Window()
    second.load(json.loads(json.dumps(first.state())))
    for value in values[4:]:
        whole.add({"total": value}, 0.1, 8)
        second.add({"total": value}, 0.1, 8)
    assert whole.close()[0] == second.close()[0]


def test_a_closed_window_is_empty() -> None:
    window = Window()
    window.add({"total": torch.tensor(2.0)}, 0.0, 8)
    window.add({"total": torch.tensor(4.0)}, 0.0, 8)
    assert window.close()[0] == {"total": 3.0}
    assert window.state() == {"losses": {}, "steps": 0}


def test_tensorboard_gets_the_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = trainer(tmp_path / "run", max_steps=3)
    made.log = RunLog(made.run, made.runtime, tensorboard=True)
    metrics = train(made)
    events = EventAccumulator(str(made.run.path / "tensorboard"))
    events.Reload()
    assert {"loss/total", "loss/masked", "lr"} <= set(events.Tags()["scalars"])
    written = [event.value for event in events.Scalars("loss/total")]
    assert written == pytest.approx([line["loss/total"] for line in metrics], rel=1e-6)


def test_the_console_shows_cost_and_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(tmp_path / "run", max_steps=3)
    made.train(Lines(3, "toy", seconds=0.0))
    last = capsys.readouterr().err.splitlines()[-1]
    for words in ("toy 3/3", "epoch 0.60/3", "loss ", "images/s", "views/s", "wait ", "eta 0m", "cpu-h", "ETE 1.20"):
        assert words in last
