"""A target of patches that are larger than tokens: each token has that of the patch it lies in (LocalMIM, 2303.05251).

A mean over masked tokens then weighs a patch by its masked share, as LocalMIM's loss does.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.tokens import coarse_ids
from remask.types import Grid, Images
from remask.views import Views


class Coarse(nn.Module):
    """[B, N, P] from a target of patches of `tokens` rows and columns of tokens, which tile the grid."""

    def __init__(self, target: Any, tokens: Grid) -> None:
        super().__init__()
        self.target, self.tokens, self.width = target, tokens, int(target.width)

    @torch.no_grad()
    def forward(self, images: Images, views: Views) -> Float[Tensor, "B N P"]:
        patches = self.target(images, views)
        return patches[:, coarse_ids(views.grid, self.tokens, patches.device)]

    def describe(self) -> str:
        return str(self.target.describe())


__all__ = ["Coarse"]
