"""Masking: which tokens are hidden, in how many views, and which of them are predicted (DMJD 2301.00230 Eq. 3).

Patterns are scores over cells, in scores.py, green.py and guided.py; that views are disjoint is computed here alone,
for every pattern.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from remask.errors import UserError, setting
from remask.masking.scores import ALL, Guide, Score, random
from remask.types import Grid
from remask.views import Views

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
    """How many of `tokens` a masking hides in every view, predicts in some view, and predicts in each view.

    predicted   their number over all views; its expectation where views or predicted tokens are drawn independently
    """

    hidden: int
    predicted: float
    tokens: int
    per_view: int

    @property
    def gain(self) -> float:
        """m_pred / m_corr as realised on this grid: the factor of DMJD Eq. (4), and CrossMAE's γ / p of one view.

        1 where nothing is hidden.
        """
        return self.predicted / self.hidden if self.hidden else 1.0


@dataclass(frozen=True)
class Masking:
    """Draws `views` masked views per image, each hiding the same share `ratio` (m_corr) of the grid, exactly.

    ratio        m_corr in (0, 1)
    score        the pattern
    cell         side of the smallest masked cell in tokens, one number or one per axis of the grid
    views        K ≥ 1
    prediction   m_pred in [ratio, 1]: the share hidden in at least one view; reached as far as views · ratio allows.
                 None = views drawn independently, the baseline that DM is measured against
    count        whose official rule turns the ratio into a number of cells (`COUNTS`)
    predicted    which masked tokens are predicted. "all" · γ in (0, ratio]: a random share of the tokens in each view
                 (CrossMAE, 2401.14391) · "once": each token in one of the views that hide it, ⌈N·m_pred/K⌉ a view, so
                 that at most K - 1 tokens are predicted twice
    """

    ratio: float
    score: Score = random
    cell: int | tuple[int, ...] = 1
    views: int = 1
    prediction: float | None = 1.0
    count: Count = "mae"
    predicted: Literal["all", "once"] | float = "all"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"masking ratio {self.ratio} is outside (0, 1): it is the share of tokens a view hides")
        if self.views < 1 or min(self._sides(1)) < 1:
            raise UserError(f"masking needs at least one view and cells of one patch, not {self.views} and {self.cell}")
        if self.views > 1 and self.prediction is not None and not self.ratio <= self.prediction <= 1:
            raise UserError(
                f"prediction {self.prediction} is outside [{self.ratio}, 1]: "
                "the union of the views cannot be smaller than one of them; raise it or lower the ratio"
            )
        if self.predicted == "once" and self.prediction is None and self.views > 1:
            raise UserError("tokens are predicted once in disjoint views: give a prediction, or predict all of them")
        if not isinstance(self.predicted, str) and not 0 < self.predicted <= self.ratio:
            raise UserError(
                f"predicted {self.predicted} is outside (0, {self.ratio}]: it is a share of all tokens, of those hidden"
            )

    def __call__(
        self,
        batch: int,
        grid: Grid,
        generator: Generator | None = None,
        rows: slice = ALL,
        guide: Guide | None = None,
    ) -> Views:
        """Draw the views of `batch` images, on the generator's device. No host synchronisation, static shapes.

        rows    return the views of these images only, the same as among all: one rank of many draws its own
        guide   for these images, where the pattern adapts to one
        """
        cells, hidden, fresh = self._cells(grid)
        masks, images = list[Tensor](), len(range(*rows.indices(batch)))
        device = generator.device if generator else None
        union = torch.zeros(images, math.prod(cells), dtype=torch.bool, device=device)
        for share in fresh:
            score = self.score(batch, cells, generator, rows, guide)
            mask = _lowest(score, hidden) if share is None else _disjoint(score, union, share, hidden)
            union = union | mask
            masks.append(mask)
        mask = torch.stack(masks).unflatten(-1, cells)
        for axis, side in enumerate(self._sides(len(grid)), 2):
            mask = mask.repeat_interleave(side, axis)
        mask, counts = mask.flatten(2), self.counts(grid)
        if counts.per_view == counts.hidden:
            return Views(mask, grid, counts.hidden)
        noise = torch.rand(self.views, batch, counts.tokens, generator=generator, device=device)[:, rows]
        predict = (_shared_out if self.predicted == "once" else _some)(mask, noise, counts.per_view)
        return Views(mask, grid, counts.hidden, predict=predict, predictions=counts.per_view)

    def counts(self, grid: Grid) -> Counts:
        """Tokens hidden and predicted on a grid. Raises UserError for a γ that is less than a token."""
        cells, hidden, fresh = self._cells(grid)
        n, size = math.prod(cells), math.prod(self._sides(len(grid)))
        per_view, union = hidden * size, size * _expected(n, hidden, fresh)
        if self.predicted == "once" and self.views > 1:
            per_view = max(math.ceil(union / self.views), size * max(share or 0 for share in fresh[1:]))
        elif not isinstance(self.predicted, str):
            if self.predicted * n * size < 1:
                name = setting("masking.predicted", "predicted")
                raise UserError(f"{name} {self.predicted:g} is less than one of {n * size} tokens: raise it")
            per_view = min(per_view, round(self.predicted * n * size))
            union = size * _expected(n, hidden, fresh, per_view / (hidden * size))
        return Counts(hidden * size, union, n * size, per_view)

    def describe(self, grid: Grid) -> str:
        """The pattern, m_corr, K and m_pred on a grid, in the words of the printed equation."""
        counts, name = self.counts(grid), getattr(self.score, "__name__", type(self.score).__name__)
        sides = self._sides(len(grid))
        cell = f" of cells of {'×'.join(map(str, sides))} patches" if max(sides) > 1 else ""
        pattern = {"Blocks": "block-wise", "InverseBlocks": "inverse block-wise", "hardest": "loss-guided"}
        says = getattr(self.score, "describe", lambda: f"{pattern.get(name, name.lower())} masking")
        text = f"{says()}{cell}, m_corr {counts.hidden / counts.tokens:.4g}; K = {self.views} view"
        text += "s" * (self.views > 1)
        if not isinstance(self.predicted, str):
            text += f", γ {counts.per_view / counts.tokens:.4g} of the tokens predicted in each"
        if self.views == 1:
            return text
        m_pred = f"m_pred {counts.predicted / counts.tokens:.4g}"
        if self.prediction is None:
            return f"{text}, drawn independently: {m_pred} on average"
        once = ", each predicted in one view" if self.predicted == "once" else ""
        of = f"{round(counts.predicted)} of {counts.tokens} tokens"
        return f"{text}, disjoint as far as they can be: {m_pred} ({of}{once})"

    def cells(self, grid: Grid) -> tuple[Grid, int]:
        """The grid in cells, and how many of them a view hides."""
        cells, hidden, _ = self._cells(grid)
        return cells, hidden

    def _sides(self, axes: int) -> tuple[int, ...]:
        """Tokens of a cell along each axis."""
        return (self.cell,) * axes if isinstance(self.cell, int) else self.cell

    def _cells(self, grid: Grid) -> tuple[Grid, int, list[int | None]]:
        """The grid in cells, cells hidden per view, and for each view how many of them no earlier view hid."""
        sides = self._sides(len(grid))
        if len(sides) != len(grid) or any(tokens % side for tokens, side in zip(grid, sides, strict=True)):
            raise UserError(
                f"a grid of {'×'.join(map(str, grid))} patches cannot be cut into masking cells of "
                f"{'×'.join(map(str, sides))}; change the image size or {setting('masking.cell', 'cell')}"
            )
        cells = tuple(tokens // side for tokens, side in zip(grid, sides, strict=True))
        n = math.prod(cells)
        hidden = COUNTS[self.count](n, self.ratio)
        visible = n - hidden
        if check := getattr(self.score, "check", None):
            check(cells)
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
        all_visible = self.prediction == 1 and 1 - self.ratio <= later * self.ratio  # however cells are counted
        fresh = min(visible if all_visible else int(share * n), later * hidden, visible)
        if fresh < later:
            raise UserError(
                f"{self.views} views are more than the tokens allow: at ratio {self.ratio} and prediction "
                f"{self.prediction} only {fresh} of {n} cells are left for views 2 to {self.views} to hide anew; "
                "use fewer views or raise the prediction"
            )
        return cells, hidden, [hidden, *(fresh * (v + 1) // later - fresh * v // later for v in range(later))]


def _expected(cells: int, hidden: int, fresh: Sequence[int | None], share: float = 1.0) -> float:
    """How many cells some view predicts, each a random `share` of the `hidden` ones; an expectation if share < 1.

    fresh   for every view how many cells it is the first to hide; None: drawn without regard to the others
    """
    union = missed = 0.0  # cells that some view hides, and those of them that none predicts
    for new in fresh:
        first = hidden * (cells - union) / cells if new is None else new
        again = (hidden - first) / union if union else 0.0
        missed = missed * (1 - again * share) + first * (1 - share)
        union += first
    return union - missed


def _lowest(score: Float[Tensor, "*rows n"], count: int) -> Bool[Tensor, "*rows n"]:
    """True at the `count` lowest scores of each row, exactly."""
    ranked = score.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, ranked, True)


def _disjoint(score: Float[Tensor, "B n"], union: Bool[Tensor, "B n"], fresh: int, hidden: int) -> Bool[Tensor, "B n"]:
    """DMJD's regulation: `fresh` cells that no earlier view hid, then of the `union` that they hid up to `hidden`."""
    new = _lowest(score.masked_fill(union, math.inf), fresh)
    old = _lowest(score.masked_fill(~union, math.inf), hidden - fresh)
    return new | old


def _some(mask: Bool[Tensor, "V B N"], noise: Float[Tensor, "V B N"], count: int) -> Bool[Tensor, "V B N"]:
    """`count` random tokens among the masked ones of every view."""
    return _lowest(noise.masked_fill(~mask, math.inf), count)


def _shared_out(mask: Bool[Tensor, "V B N"], noise: Float[Tensor, "V B N"], count: int) -> Bool[Tensor, "V B N"]:
    """Every masked token in one of the views that hide it, `count` in each view.

    From the last view backwards: a view takes first the tokens that no view before it hides and none after it took,
    then at random others that none took. What a view must take is never more than `count`, which is at least what it
    hides anew; count · K exceeds the union only by rounding, and so many tokens are taken again.
    """
    taken, chosen = torch.zeros_like(noise[0]), list[Tensor]()
    before = mask.long().cumsum(0) - mask.long()
    for own, hidden_before, random_order in zip(mask.flip(0), before.flip(0), noise.flip(0), strict=True):
        last_chance = (hidden_before == 0) & (taken == 0)
        order = torch.where(last_chance, 0, 1 + taken) + random_order
        chosen.insert(0, _lowest(order.masked_fill(~own, math.inf), count))
        taken = taken + chosen[0]
    return torch.stack(chosen)


__all__ = ["COUNTS", "Count", "Counts", "Masking", "count_of"]
