"""Normalisation of pixels: the first step of every `f`, on the images' device."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from remask.errors import UserError
from remask.images.levels import FULL, Levels, Scaling
from remask.types import Images


class Normalise(nn.Module):
    """(value - mean) / std per channel of integers, mean and std being of values in 0..1; floats as they are.

    uint8 is 0..255, uint16 is scaled by `levels`, which also say how images are read: None for 8 bits only.
    A float image is taken as already normalised. The first one with any contrast is checked: UserError where all its
    values lie in 0..1, as those of pixels that are not normalised do, unless `normalised` is True.
    """

    shift: Tensor
    scale: Tensor
    deep_shift: Tensor
    deep_scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.levels: Levels | None = FULL
        self.mean, self.std = tuple(mean), tuple(std)
        self.trusts_floats = False
        self.settled = False  # whether the levels of a source were measured
        self.register_buffer("shift", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(-1, 1, 1) * 255), persistent=False)
        for name in ("deep_shift", "deep_scale"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.read_by(FULL)

    def read_by(self, levels: Levels | None, deep: bool = False) -> None:
        """Set the values that are black and white in images deeper than 8 bits, and whether images are that deep."""
        self.deep_set = deep or (levels is not None and levels.low is not None)
        self.levels, (low, high) = levels, (levels or FULL).bounds(torch.uint16)
        unit = (high - low) / 255
        self.deep_shift, self.deep_scale = self.shift * unit + low, self.scale / unit

    @property
    def scaling(self) -> Scaling | None:
        """How images for this network are read; None: as 8 bits."""
        return None if self.levels is None else Scaling(self.levels, self.mean, self.std, self.deep_set)

    def forward(self, images: Images) -> Float[Tensor, "B C H W"]:
        images = self.deep(images)
        return images if images.is_floating_point() else (images.float() - self.shift) * self.scale

    def deep(self, images: Images) -> Images:
        """Images deeper than 8 bits normalised, all others as they are."""
        return (images.float() - self.deep_shift) * self.deep_scale if images.dtype == torch.uint16 else images

    def shown(self, images: Images) -> UInt8[Tensor, "B C H W"]:
        """Images for a screen: 8 bits, 0 and 255 being black and white of `levels`."""
        if images.dtype == torch.uint8:
            return images
        return ((self(images) / self.scale + self.shift).round().clamp(0, 255)).to(torch.uint8)

    def refuse_unnormalised(self, images: Images, normalised: bool = False) -> None:
        """Raise UserError for a float image in 0..1; after one that passes none is checked.

        A compiled step cannot check, so call this before it.
        """
        self.trusts_floats |= normalised
        if (
            torch.compiler.is_compiling()
            or self.trusts_floats
            or not images.is_floating_point()
            or images.is_meta
            or not images.numel()
        ):
            return
        least, most = torch.aminmax(images.detach())
        if not bool(least < most):  # no contrast, as in an image of zeros that serves to find a shape
            return
        if least >= 0 and most <= 1:
            raise UserError(
                f"a float image with values in {float(least):.3g}..{float(most):.3g} looks like pixels that are not "
                "normalised: give uint8 0..255, subtract the mean and divide by the deviation first, or say "
                "normalised=True if it is meant"
            )
        self.trusts_floats = True


__all__ = ["Normalise"]
