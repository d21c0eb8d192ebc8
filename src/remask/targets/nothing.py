"""No target: for branches whose distance compares predictions with one another (U-MAE, 2210.08344)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.types import Images
from remask.views import Views


class Nothing(nn.Module):
    """Vectors of length 0 for every token of the grid."""

    width = 0

    def forward(self, images: Images, views: Views) -> Float[Tensor, "B N 0"]:
        return torch.zeros(len(images), math.prod(views.grid), 0, device=images.device)

    def describe(self) -> str:
        return ""


__all__ = ["Nothing"]
