"""Patterns that adapt to the images: scores that go by a guide, and leave to chance what must stay random.

AttMask 2203.12719 (attention), HPM 2304.05919 (predicted loss). Where guides come from: methods/guided.py.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from remask.errors import UserError, setting
from remask.masking.scores import ALL, Guide
from remask.types import Grid, Images


class GuideModule(Protocol):
    """Where the guide of a method's masks comes from: what the moving average says of the whole images."""

    def __call__(self, average: Any, images: Images, cells: Grid, hidden: int) -> Guide:
        """The guide over a grid of `cells`, of which a view hides `hidden`; -inf where it has nothing to say."""
        ...

    def follow(self, average: Any, progress: float, taken: Tensor | None = None) -> None:
        """What follows an update of the weights, after a share `progress` of the training.

        taken   [] on the device, 0 where the update was skipped: nothing that is learned may then change
        """
        ...

    def restart(self, average: Any) -> None:
        """Equal the student, whose first weights have just been set."""
        ...

    def describe(self) -> str:
        """A few words for the printed equation."""
        ...


@dataclass(frozen=True)
class MostAttended:
    """AttMask: an image's most attended cells are hidden first, if its coin says so, else random ones.

    probability   of the coin, in [0, 1], which is thrown for each view of an image
    hints         share of all cells, in [0, 1]: so many, drawn from the twice as many most attended, are hidden last
    # official: images whose coin falls the other way are not masked at all; here every view hides as many.
    """

    probability: float = 0.5
    hints: float = 0.0

    def __post_init__(self) -> None:
        for name in ("probability", "hints"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                named = setting(f"masking.{name}", name)
                raise UserError(f"{named} {value:g} is outside [0, 1]: it is a share, of images or of cells")

    def describe(self) -> str:
        """A few words for the printed equation."""
        hints = f", {self.hints:g} of all shown again" if self.hints else ""
        return f"attention-guided masking (most attended first with probability {self.probability:g}{hints})"

    def __call__(
        self,
        batch: int,
        grid: Grid,
        generator: Generator | None = None,
        rows: slice = ALL,
        guide: Guide | None = None,
    ) -> Float[Tensor, "B cells"]:
        guide, n = _needed(guide, "attention"), math.prod(grid)
        device = generator.device if generator else None
        coin = torch.rand(batch, 1, generator=generator, device=device)[rows]
        noise = torch.rand(2, batch, n, generator=generator, device=device)[:, rows]
        place, count = rank(-guide), round(self.hints * n)
        drawn = rank(noise[1] + (place >= 2 * count))
        return torch.where(coin < self.probability, (place + n * (drawn < count)).float(), noise[0])


def hardest(
    batch: int, grid: Grid, generator: Generator | None = None, rows: slice = ALL, guide: Guide | None = None
) -> Float[Tensor, "B cells"]:
    """HPM: cells with a guide are hidden first, the highest before all; those without, whose guide is -inf, at random.

    How many have one says the guide's module: half of what a view hides, for the hardest alone are worse than random.
    """
    guide, n = _needed(guide, "loss"), math.prod(grid)
    device = generator.device if generator else None
    noise = torch.rand(batch, n, generator=generator, device=device)[rows]
    return torch.where(guide > -math.inf, (rank(-guide) - n).float(), noise)


def rank(x: Float[Tensor, "B n"]) -> Int[Tensor, "B n"]:
    """The place of every entry in its row: 0 for the lowest."""
    return x.argsort(dim=-1, stable=True).argsort(dim=-1)


def _needed(guide: Guide | None, kind: str) -> Guide:
    if guide is None:
        raise UserError(f"{kind}-guided masking needs a guide: make the method with guided_by_{kind}, which has one")
    return guide


__all__ = ["GuideModule", "MostAttended", "hardest", "rank"]
