"""Views: which tokens of which image each masked view hides. Data, no behaviour: the `v` and the Ω of the equation."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from remask.tokens import take
from remask.types import Grid, Size


@dataclass(frozen=True)
class Views:
    """The masked views of a batch. `mask` is the single truth; ids are in raster order; row = v·B + b.

    mask     Bool[V, B, N], True = masked, the same number M in every row
    grid     rows and columns of the token grid, N = rows · columns
    hidden   M
    colours  numbers that decide in which other colours the backbone sees each image (`Jitter`); None: in its own
    """

    mask: Bool[Tensor, "V B N"]
    grid: Grid
    hidden: int
    colours: Float[Tensor, "B J"] | None = None

    @classmethod
    def of(cls, mask: Bool[Tensor, "V B N"], grid: Grid) -> "Views":
        """Views from a stored mask; rows must hide equal numbers of tokens. Reads the mask back: not in a step."""
        counts = mask.sum(-1)
        if not bool((counts == counts.flatten()[0]).all()):
            raise ValueError("every row of a mask must hide the same number of tokens")
        if mask.shape[-1] != grid[0] * grid[1]:
            raise ValueError(f"a mask of {mask.shape[-1]} tokens does not fit a grid of {grid[0]}×{grid[1]}")
        return cls(mask, grid, int(counts.flatten()[0]))

    @property
    def _order(self) -> Int[Tensor, "VB N"]:
        """One stable sort: visible ids, then masked ids, each in raster order. Kept; Python 3.11's `cached_property`
        takes a lock, at which torch.compile would break the graph."""
        kept: Tensor | None = getattr(self, "_kept", None)
        if kept is None:
            kept = self.mask.flatten(0, 1).to(torch.uint8).argsort(dim=1, stable=True)
            object.__setattr__(self, "_kept", kept)
        return kept

    @property
    def visible(self) -> Int[Tensor, "VB K"]:
        return self._order[:, : self.mask.shape[-1] - self.hidden]

    @property
    def masked(self) -> Int[Tensor, "VB M"]:
        return self._order[:, self.mask.shape[-1] - self.hidden :]

    def rows(self, region: str) -> Int[Tensor, "VB R"]:
        """Ids of Ω: "masked" or "visible"."""
        return self.masked if region == "masked" else self.visible

    def gather(self, x: Num[Tensor, "B N P"], region: str) -> Num[Tensor, "VB R P"]:
        """The rows of Ω in every view, of what is the same in all views of an image; `x` is never repeated whole."""
        ids = self.rows(region).unflatten(0, self.mask.shape[:2])
        return torch.cat([take(x, view) for view in ids])

    def repeat(self, x: Num[Tensor, "B *rest"]) -> Num[Tensor, "VB *rest"]:
        """One row per view of what is the same in all views of an image."""
        return x.repeat(self.mask.shape[0], *[1] * (x.ndim - 1))

    def pixels(self, unit: Size) -> Bool[Tensor, "V B H W"]:
        """The mask over pixels, for tokens of `unit` pixels."""
        mask = self.mask.unflatten(-1, self.grid)
        return mask.repeat_interleave(unit[0], 2).repeat_interleave(unit[1], 3)

    def split(self, parts: int) -> "list[Views]":
        """The views of `parts` consecutive slices of the batch, cut as `Tensor.tensor_split` cuts it."""
        masks, own = self.mask.tensor_split(parts, dim=1), self.colours
        colours = [None] * parts if own is None else own.tensor_split(parts)
        return [Views(mask, self.grid, self.hidden, c) for mask, c in zip(masks, colours, strict=True)]

    def to(self, device: torch.device) -> "Views":
        """On another device; to a GPU through page-locked memory, so that nothing waits for the copy."""
        colours = self.colours if self.colours is None else _sent(self.colours, device)
        return Views(_sent(self.mask, device), self.grid, self.hidden, colours)

    @property
    def corruption_rate(self) -> float:
        """m_corr = M / N, the share each view hides."""
        return self.hidden / self.mask.shape[-1]

    @property
    def prediction_rate(self) -> float:
        """m_pred = |∪ masked| / N, the share predicted over all views, mean over images. Reads back: not in a step."""
        return float(self.mask.any(0).float().mean())


def _sent(x: Tensor, device: torch.device) -> Tensor:
    held = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x
    return held.to(device, non_blocking=True)
