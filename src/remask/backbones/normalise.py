"""Pixels as a network was meant to see them: the first step of every `f`, on the images' device."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.types import Images


class Normalise(nn.Module):
    """(x / 255 - mean) / std per channel of integers 0..255; a float image is taken as already normalised."""

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(-1, 1, 1) * 255), persistent=False)

    def forward(self, images: Images) -> Float[Tensor, "B C H W"]:
        return images if images.is_floating_point() else (images.float() - self.shift) * self.scale


__all__ = ["Normalise"]
