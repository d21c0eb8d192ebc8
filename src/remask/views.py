"""Views: which tokens of which image each masked view hides. Data, no behaviour: the `v` and the Ω of the equation."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from remask.tokens import take
from remask.types import Grid, Size


@dataclass(frozen=True)
class Views:
    """The masked views of a batch. `mask` is the single truth; ids are in raster order; row = v·B + b.

    mask         Bool[V, B, N], True = masked, the same number M in every row
    grid         tokens along each axis of the grid, N = their product
    hidden       M
    colours      numbers that decide in which other colours the backbone sees each image; None: in its own
    predict      Bool[V, B, N], the masked tokens that are predicted, the same number in every row; None: all of them
    predictions  R, how many those are; M unless given
    chance       a number in 0..1 for each image, for targets that draw; None where none does
    index        numbers of the images in their source, beside `chance`
    """

    mask: Bool[Tensor, "V B N"]
    grid: Grid
    hidden: int
    colours: Float[Tensor, "B J"] | None = None
    predict: Bool[Tensor, "V B N"] | None = None
    predictions: int | None = None
    chance: Float[Tensor, "B"] | None = None
    index: Int[Tensor, "B"] | None = None

    def __post_init__(self) -> None:
        if self.predict is None:
            object.__setattr__(self, "predictions", self.hidden)

    @classmethod
    def of(cls, mask: Bool[Tensor, "V B N"], grid: Grid, predict: Bool[Tensor, "V B N"] | None = None) -> "Views":
        """Views from stored masks. Raises ValueError where rows differ in number, or unmasked tokens are predicted.

        Reads the masks back from their device: not for use in a step.
        """
        if mask.shape[-1] != torch.Size(grid).numel():
            size = "×".join(map(str, grid))
            raise ValueError(f"a mask of {mask.shape[-1]} tokens does not fit a grid of {size}")
        hidden = _equal_count(mask, "a mask must hide")
        if predict is None:
            return cls(mask, grid, hidden)
        if bool((predict & ~mask).any()):
            raise ValueError("only masked tokens are predicted: predict must be False where mask is")
        return cls(mask, grid, hidden, predict=predict, predictions=_equal_count(predict, "predict must name"))

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

    @property
    def masked_predicted_last(self) -> Int[Tensor, "VB M"]:
        """The masked ids with those that are predicted at the end: a decoder computes its last rows alone."""
        if self.predict is None:
            return self.masked
        predicted = self.predict.flatten(0, 1).gather(1, self.masked)
        return self.masked.gather(1, predicted.to(torch.uint8).argsort(dim=1, stable=True))

    @property
    def predicted(self) -> Int[Tensor, "VB R"]:
        return self.masked_predicted_last[:, self.hidden - (self.predictions or self.hidden) :]

    def ids(self, region: str) -> Int[Tensor, "VB R"]:
        """Ids of Ω: "masked", "predicted" or "visible"."""
        if region == "predicted":
            return self.predicted
        return self.masked if region == "masked" else self.visible

    def gather(self, x: Num[Tensor, "B N P"], region: str) -> Num[Tensor, "VB R P"]:
        """The rows of Ω in every view, of what is the same in all views of an image; `x` is never repeated whole."""
        ids = self.ids(region).unflatten(0, self.mask.shape[:2])
        return torch.cat([take(x, view) for view in ids])

    def repeat(self, x: Num[Tensor, "B *rest"]) -> Num[Tensor, "VB *rest"]:
        """One row per view of what is the same in all views of an image."""
        return x.repeat(self.mask.shape[0], *[1] * (x.ndim - 1))

    def pixels(self, unit: Size) -> Bool[Tensor, "V B H W"]:
        """The mask over pixels, for tokens of `unit` pixels on a grid of rows and columns."""
        mask = self.mask.unflatten(-1, self.grid)
        return mask.repeat_interleave(unit[0], 2).repeat_interleave(unit[1], 3)

    def split(self, chunks: int) -> "list[Views]":
        """The views of `chunks` consecutive slices of the batch, cut as `Tensor.tensor_split` cuts it."""
        masks = self.mask.tensor_split(chunks, dim=1)
        predict = [None] * chunks if self.predict is None else self.predict.tensor_split(chunks, dim=1)
        colours, chance, index = (
            [None] * chunks if of_image is None else of_image.tensor_split(chunks)
            for of_image in (self.colours, self.chance, self.index)
        )
        return [
            Views(mask, self.grid, self.hidden, c, p, self.predictions, r, i)
            for mask, c, p, r, i in zip(masks, colours, predict, chance, index, strict=True)
        ]

    def of_images(self, index: Int[Tensor, "B"]) -> "Views":
        """With the numbers of the images in their source, where a target draws among other images."""
        return self if self.chance is None else replace(self, index=_sent(index, self.mask.device))

    def to(self, device: torch.device) -> "Views":
        """On another device; to a GPU through page-locked memory, so that nothing waits for the copy."""
        colours, predict, chance, index = (
            None if x is None else _sent(x, device) for x in (self.colours, self.predict, self.chance, self.index)
        )
        mask = _sent(self.mask, device)
        return Views(mask, self.grid, self.hidden, colours, predict, self.predictions, chance, index)

    @property
    def corruption_rate(self) -> float:
        """m_corr = M / N, the share each view hides."""
        return self.hidden / self.mask.shape[-1]

    @property
    def prediction_rate(self) -> float:
        """m_pred = |∪ predicted| / N, the share predicted over all views, mean over images. Not for use in a step."""
        return float((self.mask if self.predict is None else self.predict).any(0).float().mean())


def _equal_count(mask: Bool[Tensor, "V B N"], what: str) -> int:
    counts = mask.sum(-1)
    if not bool((counts == counts.flatten()[0]).all()):
        raise ValueError(f"every row of {what} the same number of tokens")
    return int(counts.flatten()[0])


def _sent(x: Tensor, device: torch.device) -> Tensor:
    pinned = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x
    return pinned.to(device, non_blocking=True)
