"""Pixel targets: the normalised image in patches, raw or normalised per patch (MAE, arXiv 2111.06377, section 3)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.tokens import patchify
from remask.types import Images, Size
from remask.views import Views


class Pixels(nn.Module):
    """Each token's own pixels, [B, N, patch height · patch width · C], channel fastest.

    The image is normalised by `mean` and `std` (values of 0..1) unless it comes as float, already normalised.
    With `per_patch` each vector is brought to mean 0 and variance 1 over all its values together.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, patch: Size, mean: Sequence[float], std: Sequence[float], per_patch: bool = True) -> None:
        super().__init__()
        self.patch, self.per_patch, self.width = patch, per_patch, patch[0] * patch[1] * len(mean)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "B N P"]:
        pixels = images if images.is_floating_point() else (images.float() / 255 - self.mean) / self.std
        target = patchify(pixels.float(), self.patch)
        if not self.per_patch:
            return target
        # official: the unbiased variance (n - 1); kept, since published losses and weights depend on it
        var, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (var + 1e-6).sqrt()

    def describe(self) -> str:
        return "pixels, normalised per patch" if self.per_patch else "pixels"
