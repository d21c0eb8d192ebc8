"""Masking: who is hidden, in how many views. A pattern is a score over cells; DM (disjoint views) lives here once.

MAE 2111.06377 (random), SimMIM 2111.09886 (cells), BEiT 2106.08254 (blocks), DMJD 2301.00230 Eq. (3).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from remask.errors import UserError
from remask.types import Grid
from remask.views import Views

WHOLE = slice(None)
"""All of a batch."""


class Score(Protocol):
    """A masking pattern: the lower a cell's score, the sooner it is hidden. No ties."""

    def __call__(self, batch: int, grid: Grid, generator: Generator | None) -> Float[Tensor, "B cells"]: ...


def random(batch: int, grid: Grid, generator: Generator | None = None) -> Float[Tensor, "B cells"]:
    """Uniform random cells, independently per image (MAE; in cells of 2×2 patches SimMIM, and DMJD's "block-wise")."""
    return torch.rand(batch, grid[0] * grid[1], generator=generator, device=generator.device if generator else None)


@dataclass(frozen=True)
class Blocks:
    """BEiT's block-wise pattern: rectangles fall one after the other; the score is the step that covers a cell first.

    Areas are shares of the grid (BEiT: 16 to 75 of 196 patches), log-uniform aspect .3 to 1/.3. Rectangles wrap
    around the border, so every cell is equally likely to be hidden, and the ranking makes every count exact.
    # official: the last block is dropped when it does not fit (a third of the draws miss their count) and the
    # border is hidden three times less often than the centre; here neither, see docs/decisions/0002.
    """

    smallest: float = 16 / 196
    largest: float = 75 / 196
    aspect: float = 0.3
    steps: int = 24

    def __call__(self, batch: int, grid: Grid, generator: Generator | None = None) -> Float[Tensor, "B cells"]:
        return self.of(batch, grid, generator)

    def of(
        self, batch: int, grid: Grid, generator: Generator | None = None, part: slice = WHOLE
    ) -> Float[Tensor, "B cells"]:
        """The scores of a part of the batch: numbers are drawn for all of it, rectangles laid for the part."""
        (rows, cols), n = grid, grid[0] * grid[1]
        device = generator.device if generator else None
        draw = torch.rand(5, batch, self.steps, 1, generator=generator, device=device)[:, part]
        area = n * (self.smallest + (self.largest - self.smallest) * draw[0])
        aspect = torch.exp(math.log(self.aspect) * (1 - 2 * draw[1]))
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, cols)
        cell = torch.arange(n, device=device)
        down = (cell // cols - (draw[2] * rows).floor()) % rows  # offsets from the block's corner, around the border
        right = (cell % cols - (draw[3] * cols).floor()) % cols
        covered = (down < height) & (right < width)
        sweep = (down * cols + right) / n  # inside a block cells follow in raster order: a cut block stays compact
        step = torch.arange(self.steps, device=device)[:, None]
        score = torch.where(covered, step + sweep, self.steps + draw[4]).amin(1)
        return score + 1e-4 * torch.rand(batch, n, generator=generator, device=device)[part]


Count = Literal["mae", "simmim", "maskfeat"]

COUNTS: Mapping[Count, Callable[[int, float], int]] = {
    "mae": lambda cells, ratio: cells - int(cells * (1 - ratio)),
    "simmim": lambda cells, ratio: math.ceil(cells * ratio),
    "maskfeat": lambda cells, ratio: round(cells * ratio),
}
"""How many of so many cells a ratio hides in a method's official code: of 25 at .8 MAE's hides 21, SimMIM's 20."""


def count_of(method: str) -> Count:
    """The rule of a method's own official code; MAE's for those that follow it, or that state a number and no rule."""
    return next((count for count in COUNTS if count == method), "mae")


class Counts(NamedTuple):
    """How many tokens a masking hides: `hidden` in every view, `predicted` in the union of the views, of `tokens`."""

    hidden: int
    predicted: float
    tokens: int

    @property
    def gain(self) -> float:
        """m_pred / m_corr as realised on this grid, the factor of DMJD Eq. (4)."""
        return self.predicted / self.hidden


@dataclass(frozen=True)
class Masking:
    """Draws `views` masked views per image, each hiding the same share `ratio` (m_corr) of the grid, exactly.

    ratio        m_corr in (0, 1)
    score        the pattern
    cell         side of the smallest masked unit, in patches
    views        K ≥ 1
    prediction   m_pred in [ratio, 1]: the share hidden in at least one view; reached as far as views · ratio allows.
                 None = views drawn independently, the baseline that DM is measured against
    count        whose official rule turns the ratio into a number of cells (`COUNTS`)
    """

    ratio: float
    score: Score = random
    cell: int = 1
    views: int = 1
    prediction: float | None = 1.0
    count: Count = "mae"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"masking ratio {self.ratio} is outside (0, 1): it is the share of tokens a view hides")
        if self.views < 1 or self.cell < 1:
            raise UserError(f"masking needs at least one view and cells of one patch, not {self.views} and {self.cell}")
        if self.views > 1 and self.prediction is not None and not self.ratio <= self.prediction <= 1:
            raise UserError(
                f"prediction {self.prediction} is outside [{self.ratio}, 1]: "
                "the union of the views cannot be smaller than one of them; raise it or lower the ratio"
            )

    def __call__(self, batch: int, grid: Grid, generator: Generator | None = None, part: slice = WHOLE) -> Views:
        """Draw the views of `batch` images, on the generator's device. No host synchronisation, static shapes.

        part   return those of some images only, the same as among all: one process of many ranks its own
        """
        cells, hidden, fresh = self._cells(grid)
        n, views = cells[0] * cells[1], []
        count = len(range(*part.indices(batch)))
        predicted = torch.zeros(count, n, dtype=torch.bool, device=generator.device if generator else None)
        for share in fresh:
            score = self._scores(batch, cells, generator, part)
            view = _lowest(score, hidden) if share is None else _disjoint(score, predicted, share, hidden)
            predicted = predicted | view
            views.append(view)
        mask = torch.stack(views).unflatten(-1, cells)
        mask = mask.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
        return Views(mask.flatten(2), grid, hidden * self.cell**2)

    def _scores(self, batch: int, cells: Grid, generator: Generator | None, part: slice) -> Float[Tensor, "B cells"]:
        if isinstance(self.score, Blocks):
            return self.score.of(batch, cells, generator, part)
        return self.score(batch, cells, generator)[part]

    def counts(self, grid: Grid) -> Counts:
        """Hidden and predicted tokens on a grid; for independent views `predicted` is the expectation."""
        cells, hidden, fresh = self._cells(grid)
        n = cells[0] * cells[1]
        independent = n * (1 - (1 - hidden / n) ** self.views)
        union = independent if self.prediction is None else sum(share or 0 for share in fresh)
        return Counts(hidden * self.cell**2, union * self.cell**2, n * self.cell**2)

    def _cells(self, grid: Grid) -> tuple[Grid, int, list[int | None]]:
        """The grid in cells, cells hidden per view, and for each view how many of them no earlier view hid."""
        if grid[0] % self.cell or grid[1] % self.cell:
            raise UserError(
                f"a grid of {grid[0]}×{grid[1]} patches cannot be cut into masking cells of {self.cell}×{self.cell}; "
                "change the image size or masking.cell"
            )
        cells = grid[0] // self.cell, grid[1] // self.cell
        n = cells[0] * cells[1]
        hidden = COUNTS[self.count](n, self.ratio)
        visible = n - hidden
        if not 0 < hidden < n:
            raise UserError(
                f"masking ratio {self.ratio} hides {hidden} of {n} cells: "
                f"nothing is left to {'see' if hidden else 'hide'}; change the ratio, the cell or the image size"
            )
        if self.views == 1 or self.prediction is None:
            return cells, hidden, [None] * self.views if self.prediction is None else [hidden]
        # DMJD Eq. (3): the share of new tokens, min(m_pred - m_corr, (K-1) m_corr), spread evenly over views 2..K
        later = self.views - 1
        share = min(self.prediction - self.ratio, later * self.ratio)
        everything = (
            self.prediction == 1 and 1 - self.ratio <= later * self.ratio
        )  # all that view 1 sees, however counted
        fresh = min(visible if everything else int(share * n), later * hidden, visible)
        if fresh < later:
            raise UserError(
                f"{self.views} views are more than the tokens allow: at ratio {self.ratio} and prediction "
                f"{self.prediction} only {fresh} of {n} cells are left for views 2 to {self.views} to hide anew; "
                "use fewer views or raise the prediction"
            )
        return cells, hidden, [hidden, *(fresh * (v + 1) // later - fresh * v // later for v in range(later))]


def _lowest(score: Float[Tensor, "B n"], count: int) -> Bool[Tensor, "B n"]:
    """True at the `count` lowest scores of each row, exactly."""
    ranked = score.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, ranked, True)


def _disjoint(
    score: Float[Tensor, "B n"], predicted: Bool[Tensor, "B n"], fresh: int, hidden: int
) -> Bool[Tensor, "B n"]:
    """DMJD's regulation: `fresh` cells among those not yet predicted, topped up to `hidden` from the predicted ones."""
    new = _lowest(score.masked_fill(predicted, math.inf), fresh)
    old = _lowest(score.masked_fill(~predicted, math.inf), hidden - fresh)
    return new | old


def disjoint(masking: Masking, views: int = 2, prediction: float | None = 1.0) -> Masking:
    """The same pattern and m_corr in `views` views that together predict m_pred; None draws them independently."""
    return replace(masking, views=views, prediction=prediction)


__all__ = ["COUNTS", "WHOLE", "Blocks", "Count", "Counts", "Masking", "Score", "count_of", "disjoint", "random"]
