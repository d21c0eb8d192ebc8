"""fitting.py: memory that runs out, on a toy whose slices are refused above a size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remask.errors import UserError
from remask.training.oom import fewest_micro_batches, fits_in_memory, oom_retry
from remask.training.progress import Lines
from tests.toy import BATCH, Batch, Noise, Toy, losses, train, trainer, weights


class Small(Toy):
    """Has memory for slices of `room` pictures, from call `since` on; it notices only after some layers."""

    def __init__(self, room: int, since: int = 0) -> None:
        super().__init__(dropout=0)
        self.room, self.since, self.norm = room, since, nn.BatchNorm1d(6, momentum=0.5)

    def forward(self, images: Tensor, draw: Noise) -> dict[str, Tensor]:
        self.norm(images[..., None].expand(-1, -1, 2))  # a running mean that a failed attempt must not move
        found = super().forward(images, draw)
        if self.calls >= self.since and len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found


class Heard(Lines):
    """Keeps what is said."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "toy")
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


@pytest.mark.parametrize(("room", "parts"), [(4, 2), (3, 4), (1, 8)])
def test_a_step_is_done_again_and_nothing_is_lost(tmp_path: Path, room: int, parts: int) -> None:
    """As a run that had as many parts from the start, to the last bit."""
    from_start, made = (
        trainer(tmp_path / "start", Small(BATCH), accumulate=parts),
        trainer(tmp_path / "found", Small(room)),
    )
    screen = Heard(made.schedule.steps)
    made.train(screen)
    assert losses(made.run.metrics()) == losses(train(from_start))
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(from_start), strict=True))
    assert made.micro_batches == parts
    assert [line for line in screen.said if "memory" in line] == [
        f"memory ran out in step 1: done again, batches now in {parts} parts"
    ]


def test_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """The steps before keep their one part, the others are those of a run in two: equal up to float sums."""
    whole, made = trainer(tmp_path / "whole", Small(BATCH)), trainer(tmp_path / "middle", Small(4, since=7))
    before, after = losses(train(whole)), losses(train(made))
    assert before[:6] == after[:6]
    assert made.micro_batches == 2
    assert all(a == pytest.approx(b, abs=1e-6) for a, b in zip(before, after, strict=True))


def test_with_dropout_the_draws_of_the_step_are_the_same(tmp_path: Path) -> None:
    """A failed attempt has drawn from the global generator; the next one starts where it did."""

    class Dropping(Small):
        def __init__(self, room: int) -> None:
            super().__init__(room)
            self.body[2] = nn.Dropout(0.3)

    from_start = losses(train(trainer(tmp_path / "start", Dropping(BATCH), accumulate=2)))
    assert losses(train(trainer(tmp_path / "found", Dropping(4)))) == from_start


class Across(Small):
    """Its loss compares the pictures of a batch."""

    across_batch = True


def test_a_loss_across_the_batch_is_never_cut(tmp_path: Path) -> None:
    """Neither by the schedule, nor where memory runs out, nor beforehand; where it fits it trains as any other."""
    with pytest.raises(UserError, match="2 micro-batches would cut the batch, and this loss compares its pictures"):
        trainer(tmp_path / "cut", Across(BATCH), accumulate=2)
    made = trainer(tmp_path / "short", Across(4))
    with pytest.raises(UserError, match=r"memory runs out, and this loss compares.*: lower optim\.batch_size, set"):
        train(made)
    assert made.model.calls == 1  # type: ignore[union-attr]
    assert all(p.grad is None for p in made.model.parameters())
    with pytest.raises(UserError, match="a batch does not fit in memory, and this loss compares its pictures"):
        made.choose_micro_batches(Batch(torch.zeros(BATCH, 6)))
    fits = trainer(tmp_path / "fits", Across(BATCH))
    assert fits.choose_micro_batches(Batch(torch.zeros(BATCH, 6))) == fits.micro_batches == 1
    assert losses(train(fits)) == losses(train(trainer(tmp_path / "plain", Small(BATCH))))


def test_one_picture_that_does_not_fit(tmp_path: Path) -> None:
    made = trainer(tmp_path / "run", Small(0))
    with pytest.raises(UserError, match="memory runs out even with one picture"):
        train(made)
    assert made.run.read("status.json")["state"] == "failed"
    assert all(p.grad is None for p in made.model.parameters())


@pytest.mark.parametrize(("room", "parts"), [(8, 1), (4, 2), (3, 3), (2, 4), (1, 8)])
def test_the_fewest_parts_are_found_and_nothing_is_changed(tmp_path: Path, room: int, parts: int) -> None:
    made = trainer(tmp_path / "run", Small(room))
    before, state = weights(made), torch.random.get_rng_state()
    assert made.choose_micro_batches(Batch(torch.zeros(BATCH, 6))) == made.micro_batches == parts
    assert all(torch.equal(a, b) for a, b in zip(before, weights(made), strict=True)), "weights and running means"
    assert all(p.grad is None for p in made.model.parameters())
    assert not made.optimizer.state
    assert torch.equal(torch.random.get_rng_state(), state)
    same = trainer(tmp_path / "same", Small(BATCH), accumulate=parts)
    assert losses(train(made)) == losses(train(same))


def test_an_attempt_has_the_moments_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW makes its state in the first step; a trial that forgot it would promise too much."""
    made, held = trainer(tmp_path / "run"), list[tuple[int, ...]]()
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda p: held.append(tuple(p.shape)) or empty_like(p))
    assert fits_in_memory(made.model, made.optimizer, lambda parts: None, 1)
    assert sorted(held) == sorted([tuple(p.shape) for p in made.model.parameters()] * 2)


@pytest.mark.parametrize("least", range(1, 14))
def test_fewest_is_the_smallest_that_fits(least: int) -> None:
    tried: list[int] = []

    def fits(parts: int) -> bool:
        tried.append(parts)
        return parts >= least

    assert fewest_micro_batches(fits, 13) == least
    assert len(tried) <= 9
    assert max(tried) <= 13


def test_nothing_fits() -> None:
    with pytest.raises(UserError, match="does not fit in memory even with one picture"):
        fewest_micro_batches(lambda parts: False, 8)


def test_other_errors_are_not_swallowed() -> None:
    def attempt(parts: int) -> Any:
        raise ValueError("broken")

    run: Callable[[], Any] = lambda: oom_retry(nn.Linear(1, 1), attempt, 1, 8)  # noqa: E731
    with pytest.raises(ValueError, match="broken"):
        run()


@pytest.mark.parametrize("kind", ["torch", "python"])
def test_memory_of_a_cpu_is_memory_too(tmp_path: Path, kind: str) -> None:
    """A real refusal of torch's allocator, which raises a plain RuntimeError, and of Python's."""

    class Huge(Small):
        def forward(self, images: Tensor, draw: Noise) -> dict[str, Tensor]:
            try:
                return super().forward(images, draw)
            except torch.OutOfMemoryError:
                torch.empty(2**60, dtype=torch.uint8) if kind == "torch" else bytearray(2**62)
                raise

    made = trainer(tmp_path / "found", Huge(4))
    assert losses(train(made)) == losses(train(trainer(tmp_path / "start", Small(BATCH), accumulate=2)))
    assert made.micro_batches == 2


def test_another_error_of_a_step_is_not_taken_for_memory(tmp_path: Path) -> None:
    class Wrong(Small):
        def forward(self, images: Tensor, draw: Noise) -> dict[str, Tensor]:
            raise RuntimeError("shapes cannot be multiplied")

    made = trainer(tmp_path / "run", Wrong(BATCH))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train(made)
