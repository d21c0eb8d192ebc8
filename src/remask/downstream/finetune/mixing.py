"""Mixing pictures in fine-tuning: Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899).

One draw a batch, as MAE, ConvMAE, DMJD and SimMIM fine-tune (timm's "batch" mode): picture i is mixed with picture
B - 1 - i, all of them with the same share and the same box, and the labels are mixed by the same share.
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
    """Pixels cut out: rows top..bottom - 1, columns left..right - 1."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """How much of a picture's label is its own (1: nothing is mixed), and the box that is the partner's (CutMix)."""

    share: float
    box: Box | None = None

    def weights(self, size: Size) -> Float[Tensor, "H W"]:
        """The share of each pixel that is the picture's own: the same everywhere (Mixup), or 0 in the box, 1 outside.

        A tensor, so that a compiled step is not compiled anew for every box and share.
        """
        if self.box is None:
            return torch.full(size, self.share)
        own, (top, bottom, left, right) = torch.ones(size), self.box
        own[top:bottom, left:right] = 0
        return own


@dataclass(frozen=True)
class Mixing:
    """What is drawn for a batch. The defaults are MAE's.

    mixup, cutmix   α of Beta(α, α), from which the share is drawn; 0 = never
    prob            of mixing a batch at all
    switch_prob     of CutMix rather than Mixup, where both are on
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
        """A batch's mix for pictures of `size` pixels. As many numbers are drawn whatever comes of them."""
        mixes, switches, row, column = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        if mixes >= self.prob:
            return Mix(1.0)
        cuts = self.cutmix > 0 and (self.mixup == 0 or switches < self.switch_prob)
        alpha = self.cutmix if cuts else self.mixup
        # torch's Beta takes no generator, so numpy draws, from a seed of ours
        share = float(np.random.default_rng(seed).beta(alpha, alpha))
        return cut(size, share, (row, column)) if cuts else Mix(share)


def cut(size: Size, share: float, centre: tuple[float, float]) -> Mix:
    """A box of 1 - share of the area, shaped as the picture, round `centre` (0..1 of each side), clipped at the edges.

    The label's share follows from what is left after clipping (CutMix, Eq. 1 and 2; timm's `correct_lam`).
    """
    spans, side = [], math.sqrt(1 - share)
    for pixels, at in zip(size, centre, strict=True):
        length, middle = int(pixels * side), int(pixels * at)
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
    """Probabilities: `smoothing` is spread evenly over all classes, then each row is mixed with its partner's."""
    certain = F.one_hot(labels.long(), classes).float() * (1 - smoothing) + smoothing / classes
    return certain if share == 1 else share * certain + (1 - share) * certain.flip(0)


__all__ = ["Box", "Mix", "Mixing", "cut", "mixed", "soft_targets"]
