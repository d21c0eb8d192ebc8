"""Mixing images in fine-tuning: Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899).

One draw per batch, as MAE, ConvMAE, DMJD and SimMIM fine-tune (timm's "batch" mode): image i is mixed with image
B - 1 - i, all with the same share and the same box, and the labels are mixed with the same share.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from remask.errors import UserError
from remask.types import Size


class Box(NamedTuple):
    """A box of pixels: rows top..bottom - 1, columns left..right - 1."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """The share of an image's own label (1: no mixing), and the box that comes from the partner (CutMix)."""

    share: float
    box: Box | None = None

    def weights(self, size: Size) -> Float[Tensor, "H W"]:
        """Weight of each pixel of the image itself: the same everywhere (Mixup), or 0 in the box, 1 outside (CutMix).

        A tensor, so that a compiled step is not recompiled for every box and share.
        """
        if self.box is None:
            return torch.full(size, self.share)
        weights, (top, bottom, left, right) = torch.ones(size), self.box
        weights[top:bottom, left:right] = 0
        return weights


@dataclass(frozen=True)
class Mixing:
    """Distribution of a batch's mix. The defaults are MAE's.

    mixup, cutmix   α of Beta(α, α), the distribution of the share; 0 turns it off
    prob            probability of mixing a batch at all
    switch_prob     probability of CutMix rather than Mixup, if both are on
    Raises UserError for values out of range.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or not (self.mixup or self.cutmix):
            raise UserError(f"mixup {self.mixup:g} and cutmix {self.cutmix:g}: 0 or more, one above 0, or no mixing")
        if not (0 <= self.prob <= 1 and 0 <= self.switch_prob <= 1):
            raise UserError(f"mix_prob {self.prob:g} and switch_prob {self.switch_prob:g}: each needs 0 to 1")

    def draw(self, size: Size, generator: Generator) -> Mix:
        """A batch's mix for images of `size` pixels. Every outcome consumes the same number of random numbers."""
        mixes, switches, row, column = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        if mixes >= self.prob:
            return Mix(1.0)
        cuts = self.cutmix > 0 and (self.mixup == 0 or switches < self.switch_prob)
        alpha = self.cutmix if cuts else self.mixup
        # torch's Beta takes no generator, so numpy draws, with our seed
        share = float(np.random.default_rng(seed).beta(alpha, alpha))
        return cut(size, share, (row, column)) if cuts else Mix(share)


def cut(size: Size, share: float, centre: tuple[float, float]) -> Mix:
    """A mix with a box of 1 - share of the area and the image's shape at `centre` (0..1 of each side), clipped.

    The label's share is recomputed from the area after clipping (CutMix, Eq. 1 and 2; timm's `correct_lam`).
    """
    spans, side = [], math.sqrt(1 - share)
    for pixels, position in zip(size, centre, strict=True):
        length, middle = int(pixels * side), int(pixels * position)
        spans += [max(middle - length // 2, 0), min(middle + (length + 1) // 2, pixels)]
    box = Box(*spans)
    covered = (box.bottom - box.top) * (box.right - box.left)
    return Mix(1 - covered / (size[0] * size[1]), box)


def mixed(
    own: Float[Tensor, "B C H W"], partners: Float[Tensor, "B C H W"], weights: Float[Tensor, "H W"]
) -> Float[Tensor, "B C H W"]:
    """weights · own + (1 - weights) · partners, exact where a weight is 0 or 1."""
    return torch.lerp(partners, own, weights)


def soft_targets(
    labels: Int[Tensor, "B"], classes: int, smoothing: float = 0.0, share: float = 1.0
) -> Float[Tensor, "B classes"]:
    """Target probabilities: smoothed one-hot labels, each row mixed with that of its partner, image B - 1 - i."""
    unmixed = F.one_hot(labels.long(), classes).float() * (1 - smoothing) + smoothing / classes
    return unmixed if share == 1 else share * unmixed + (1 - share) * unmixed.flip(0)


__all__ = ["Box", "Mix", "Mixing", "cut", "mixed", "soft_targets"]
