"""Numbers that are not finite, planted in a training; and the same training with a step left out by hand.

`torchrun -m tests.faults.not_finite PICTURES FOLDER` does it in two processes, for test_not_finite.
"""

import math
import sys
from collections.abc import Callable, Collection
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remask.runs.session import train
from remask.training.distributed import joined, leave
from remask.training.step import Stepper
from remask.training.trainer import Trainer
from tests.e2e.together import recipe
from tests.toy import Noise, Toy

FORWARD_BACKWARD, STEP = Stepper._forward_backward, Trainer.step
BAD_STEP = 7


def poison(steps: Collection[int], rank: int = 0) -> Callable[..., Any]:
    """In the place of `Stepper._forward_backward`: in these steps the loss of one process is NaN."""

    def bad(self: Stepper, *given: Any) -> dict[str, Tensor]:
        if self.global_step + 1 not in steps or self.world.rank != rank:
            return FORWARD_BACKWARD(self, *given)
        hook = self.model.register_forward_hook(lambda _, __, out: {**out, "total": out["total"] * math.nan})
        try:
            return FORWARD_BACKWARD(self, *given)
        finally:
            hook.remove()

    return bad


def left_out(steps: Collection[int]) -> Callable[..., Any]:
    """In the place of `Trainer.step`: after these steps all that was learned is put back."""

    def step(self: Trainer, batch: Any) -> dict[str, Tensor]:
        if self.global_step + 1 not in steps:
            return STEP(self, batch)
        before = deepcopy(self.model.state_dict()), deepcopy(self.optimizer.state_dict())
        losses = STEP(self, batch)
        self.model.load_state_dict(before[0])
        self.optimizer.load_state_dict(before[1])
        return losses

    return step


class Faulty(Toy):
    """A toy with BatchNorm, in which something is wrong in some steps of its trainer."""

    trainer: Trainer

    def __init__(self, cause: str = "", steps: Collection[int] = (), dropout: float = 0.3) -> None:
        super().__init__(dropout)
        self.body.insert(1, nn.BatchNorm1d(16))
        self.cause, self.steps, self.calls_in_step = cause, steps, (0, 0)
        self.body[0].weight.register_hook(lambda grad: grad * math.inf if self._now("hook") else None)

    def _now(self, kind: str) -> bool:
        return self.trainer.global_step + 1 in self.steps and self.cause.startswith(kind)

    def forward(self, images: Tensor, draw: Noise) -> dict[str, Tensor]:
        step = self.trainer.global_step + 1
        self.calls_in_step = (step, self.calls_in_step[1] + 1 if self.calls_in_step[0] == step else 1)
        value = float(self.cause.split()[-1]) if self.cause and self.cause[-1] not in "kt" else math.nan
        if self._now("picture"):
            images = images.clone()
            images[0, 0] = value
        if self._now("target"):
            draw = Noise(torch.cat([torch.full_like(draw.values[:1], value), draw.values[1:]]))
        found = super().forward(images, draw)
        if self._now("loss") or (self._now("part") and self.calls_in_step[1] == int(self.cause.split()[1])):
            found["total"] = found["total"] * value
        if self._now("gradient"):  # the root of 0 is 0, and its gradient infinite
            found["total"] = found["total"] + (self.body[-1].weight.sum() * 0).sqrt()
        return found


CAUSES = {
    "loss nan": {}, "loss inf": {}, "loss -inf": {}, "loss nan, clipped nan": {"clip": 1.0}, "gradient root": {},
    "gradient, clipped root": {"clip": 0.5}, "hook at a weight": {}, "hook, clipped at": {"clip": 1.0},
    "picture nan": {}, "picture inf": {}, "picture -inf": {}, "target nan": {}, "target inf": {}, "target 1e30": {},
    "target, clipped inf": {"clip": 1.0}, "part 1 of 4: nan": {"accumulate": 4}, "part 4 of 4: inf": {"accumulate": 4},
    "part 2 of 2, clipped: nan": {"accumulate": 2, "clip": 1.0},
}  # fmt: skip
"""What is wrong in a step, and the settings of the schedule beside."""


def two(pictures: Path, folder: Path) -> None:
    """In DDP and FSDP, a loss of the second process is NaN, with a save after each step; and the same step left out by
    hand, with a save at the end.
    """
    with joined("cpu") as world:
        for parallel in ("ddp", "fsdp"):
            chosen = recipe(pictures, f"runtime.parallel={parallel}")
            often = recipe(pictures, f"runtime.parallel={parallel}", "runtime.save_every_minutes=0.00001")
            Stepper._forward_backward = poison([BAD_STEP], rank=1)  # type: ignore[method-assign]
            train(often, folder / f"{parallel}-nan", True, True, world)
            Stepper._forward_backward = FORWARD_BACKWARD  # type: ignore[method-assign]
            Trainer.step = left_out([BAD_STEP])  # type: ignore[method-assign]
            train(chosen, folder / f"{parallel}-out", True, True, world)
            Trainer.step = STEP  # type: ignore[method-assign]
    leave(0)


if __name__ == "__main__":
    two(Path(sys.argv[1]), Path(sys.argv[2]))
