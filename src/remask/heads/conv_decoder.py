"""data2vec 2.0's decoder (arXiv 2212.07525): convolutions over the grid, noise where tokens are masked."""

import math
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from remask.errors import UserError, setting
from remask.tokens import Pool, pooled, take
from remask.training.global_batch import of_rows
from remask.types import Features
from remask.views import Views

GROUPS = 16
NOISE = 0.01
"""Deviation of the normal noise that stands at masked places."""


class ConvDecoder(nn.Module):
    """Blocks of grouped convolution, LayerNorm without affine and GELU over the whole grid, then one linear layer.

    A block is added to its input where both have as many channels. Prefix tokens do not enter.
    kernel   side of the convolutions, odd
    Raises UserError for widths that the groups do not divide.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        width: int = 768,
        depth: int = 6,
        kernel: int = 3,
        groups: int = GROUPS,
        region: str = "masked",
    ) -> None:
        super().__init__()
        if width % groups or width_in % groups:
            names = setting("method.decoder_width and backbone.width", "width and width_in")
            raise UserError(f"{names} must be multiples of {groups}, the groups of convolution: {width}, {width_in}")
        self.width, self.region = width, region
        self.blocks = nn.ModuleList(
            nn.Conv2d(width if i else width_in, width, kernel, padding=kernel // 2, groups=groups) for i in range(depth)
        )
        self.predict = nn.Linear(width, width_out)

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]:
        if len(views.grid) != 2:
            raise UserError(f"2-D convolutions need rows and columns; this grid has {len(views.grid)} axes")
        visible = features.tokens
        size = (math.prod(views.grid), visible.shape[-1])
        noise = of_rows(len(visible), lambda rows: visible.new_empty((rows, *size)).normal_())
        tokens = NOISE * noise
        # a copy at the visible places: the noise is drawn for all, so that shapes do not depend on the masks
        tokens = tokens.scatter(1, views.visible.unsqueeze(-1).expand_as(visible), visible)
        x = tokens.unflatten(1, views.grid)
        for conv in self.blocks:
            y = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            y = F.gelu(F.layer_norm(y, (self.width,)))
            x = x + y if x.shape == y.shape else y
        return self.predict(take(x.flatten(1, 2), views.ids(self.region)))

    def describe(self) -> str:
        count, side = len(self.blocks), self.blocks[0].kernel_size[0]  # type: ignore[index]
        return f"decoder of {count} convolution{'s' * (count != 1)} {side}×{side}, width {self.width}"


class Pooled(nn.Module):
    """One row for each view: its class token, or the mean of its tokens; as it is where the target is as wide.

    class_tokens   how many there are, of which the mean is taken
    """

    region = "pooled"

    def __init__(
        self,
        width_in: int,
        width_out: int,
        of: Literal["class token", "mean"] = "class token",
        class_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.of, self.class_tokens = of, class_tokens
        self.predict = nn.Identity() if width_in == width_out else nn.Linear(width_in, width_out)

    def forward(self, features: Features, views: Views) -> Float[Tensor, "VB 1 P"]:
        of: Pool = "class" if self.of == "class token" else "mean"
        return self.predict(pooled(features, of, self.class_tokens))

    def describe(self) -> str:
        return self.of if isinstance(self.predict, nn.Identity) else f"linear on the {self.of}"


__all__ = ["ConvDecoder", "Pooled"]
