"""A run whose epochs get another length goes on where it stood: no jump of the rate, no epoch twice, ETE adds up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remask.training.cost import Ledger
from remask.training.optim import Schedule
from remask.training.run_folder import RunFolder
from remask.training.trainer import Trainer
from tests.toy import BATCH, Batch, Batches, train, trainer


def schedule(per_epoch: int, **keys: Any) -> Schedule:
    return Schedule(**{"epochs": 10, "steps_per_epoch": per_epoch, "lr": 1.0, "warmup_epochs": 2.0, **keys})


def state(one: Schedule, step: int) -> dict[str, Any]:
    return {"step": step, "epoch": one.epoch_at(step), **one.marks()}


@given(lengths=st.lists(st.integers(1, 60), min_size=2, max_size=5), data=st.data())
@settings(max_examples=300, deadline=None)
def test_neither_epoch_nor_rate_jumps(lengths: list[int], data: st.DataObject) -> None:
    """However often the data changes: the place moves by less than a step of the new epochs, and only forward."""
    now, step = schedule(lengths[0]), 0
    for length in lengths[1:]:
        step = data.draw(st.integers(step, now.steps))
        before, now = now, schedule(length).going_on(state(now, step))
        moved = now.epoch_at(step) - before.epoch_at(step)
        assert -1e-9 <= moved < 1 / length + 1e-9
        assert now.place(step)[0] >= before.place(step)[0], "an epoch would come again"
        steepest = max(abs(now.lr_at(s + 1) - now.lr_at(s)) for s in range(now.shift, now.steps))
        assert abs(now.lr_at(step) - before.lr_at(step)) <= steepest + 1e-9, "more than between two steps"
        assert now.steps - step == 10 * length - now.place(step)[0] * length - now.place(step)[1]
        assert now.lr_at(now.steps) == pytest.approx(0, abs=1e-9), "the schedule is gone through to its end"


@given(length=st.integers(1, 60), step=st.integers(0, 600))
def test_the_same_length_changes_nothing(length: int, step: int) -> None:
    one = schedule(length)
    assert one.going_on(state(one, step)) == one
    assert one.going_on({"step": step, "epoch": step / length}) == one, "a checkpoint of an earlier version"


def test_at_the_end_of_an_epoch_the_next_begins() -> None:
    before = schedule(8)
    after = schedule(16).going_on(state(before, 96))
    assert (after.place(96), after.epoch_at(96), after.steps) == ((6 + 6, 0), 12.0, 96 - 2 * 16)  # past its 10 epochs
    after = schedule(16).going_on(state(before, 24))
    assert (after.place(24), after.lr_at(24), after.steps) == ((3, 0), before.lr_at(24), 24 + 7 * 16)


def test_old_checkpoints_tell_the_length_of_their_epochs() -> None:
    after = schedule(16).going_on({"step": 27, "epoch": 27 / 8})
    assert after.place(27) == (3, 6)


def test_limits_move_along() -> None:
    after = schedule(5, until_epoch=4, max_steps=30).going_on(state(schedule(10), 20))
    assert (after.place(20), after.last_step, after.steps) == ((2, 0), 30, 30)
    assert schedule(5, until_epoch=3).going_on(state(schedule(10), 20)).last_step == 25


class Longer(Batches):
    """Epochs of twelve batches instead of five."""

    def __len__(self) -> int:
        return 12

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.asked.append((epoch, start))
        for at in range(start, 12):
            yield next(iter(super_epoch(epoch, at)))


def super_epoch(epoch: int, at: int) -> Iterator[Batch]:
    yield from Batches().epoch(epoch % 3, at % 5)


def longer(path: Path) -> Trainer:
    made = trainer(path, make=False)
    made.batches, made.schedule = Longer(), schedule(12, epochs=3, lr=0.05, warmup_epochs=1.0, log_every=1)
    made.ledger = Ledger(12 * BATCH, 2, 0, 0.5)
    return made


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 12])
def test_a_trainer_goes_on(tmp_path: Path, stop: int) -> None:
    train(trainer(tmp_path / "run", max_steps=stop))
    made = longer(tmp_path / "run")
    made.resume()
    assert made.global_step == stop
    lines = train(made)
    epochs, rates = [line["epoch"] for line in lines], [line["lr"] for line in lines]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert epochs == sorted(set(epochs))
    assert epochs[stop - 1] == round(stop / 5, 4)
    assert epochs[-1] == 3
    assert rates[stop] - rates[stop - 1] <= 0.05 * (1 / 5 + 1 / 12), "more than a step of before and one of now"
    assert made.batches.asked[0] == divmod(-(-stop * 12 // 5), 12)  # type: ignore[attr-defined]
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["images"] == len(lines) * BATCH
    assert cost["ete"] == pytest.approx(2 * (stop / 5 + (len(lines) - stop) / 12), abs=1e-4)


def test_stopped_again_it_goes_on_from_there(tmp_path: Path) -> None:
    """What the checkpoint after a change says is enough: a second resume is the run that was never stopped."""
    for name in ("one", "two"):
        train(trainer(tmp_path / name, max_steps=7))
    made = longer(tmp_path / "one")
    made.resume()
    expected = train(made)
    made = longer(tmp_path / "two")
    made.schedule = schedule(12, epochs=3, lr=0.05, warmup_epochs=1.0, log_every=1, max_steps=15)
    made.resume()
    train(made)
    made = longer(tmp_path / "two")
    made.resume()
    found = train(made)
    keys = ("step", "epoch", "lr", "loss/total")
    assert [[line[key] for key in keys] for line in found] == [[line[key] for key in keys] for line in expected]
    one, two = (RunFolder(tmp_path / name).read("cost.json") for name in ("one", "two"))
    assert (one["ete"], one["images"]) == (two["ete"], two["images"])


def test_a_ledger_of_before_goes_on() -> None:
    ledger = Ledger(40, 2, 0, 0.5)
    ledger.load({"images": 60, "hours": 1.0, "cpu_hours": 1.0, "wait_hours": 0.0})
    assert ledger.cost(0)["ete"] == 3.0
