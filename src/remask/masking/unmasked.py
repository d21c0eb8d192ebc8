"""Nothing hidden: whole images, for methods that compare them (MIM-Refiner)."""

import math
from dataclasses import dataclass

import torch
from torch import Generator

from remask.errors import UserError
from remask.masking import Counts, Masking
from remask.masking.scores import ALL, Guide
from remask.types import Grid
from remask.views import Views


@dataclass(frozen=True)
class Unmasked(Masking):
    """One view of each image, which hides none of it. Draws no random numbers."""

    ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.ratio or self.views > 1:
            raise UserError(f"whole images have one view that hides nothing, not {self.views} that hide {self.ratio:g}")

    def __call__(
        self,
        batch: int,
        grid: Grid,
        generator: Generator | None = None,
        rows: slice = ALL,
        guide: Guide | None = None,
    ) -> Views:
        images = len(range(*rows.indices(batch)))
        device = generator.device if generator else None
        return Views(torch.zeros(1, images, math.prod(grid), dtype=torch.bool, device=device), grid, 0)

    def counts(self, grid: Grid) -> Counts:
        return Counts(0, 0, math.prod(grid), 0)

    def describe(self, grid: Grid) -> str:
        return "nothing hidden"


__all__ = ["Unmasked"]
