"""Features of several layers of a backbone, summed with learned weights before a decoder reads them."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.heads.decoder import Decoder
from remask.types import Features
from remask.views import Views


class Fused(nn.Module):
    """Weighted sums of n layers of a backbone, each with its own norm: y_k = LN_k( Σ_j w_kj f_j ).

    width     D, of the layers
    layers    n
    sums      how many, k = 1 to this: one for each block of CrossMAE's decoder, a single one for MFF
    weights   "free": drawn from N(0, 1/n) (CrossMAE 2401.14391, Eq. 1); "softmax": of numbers that start equal, and
              every layer but the last goes through a linear layer first (MFF 2308.00261, Eq. 2 and 3)
    """

    def __init__(self, width: int, layers: int, sums: int = 1, weights: Literal["free", "softmax"] = "free") -> None:
        super().__init__()
        self.softmax = weights == "softmax"
        first = torch.zeros(sums, layers) if self.softmax else torch.randn(sums, layers) / math.sqrt(layers)
        self.weights = nn.Parameter(first)
        self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1 if self.softmax else 0))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(sums))

    def forward(self, features: Sequence[Features]) -> Sequence[Float[Tensor, "R T D"]]:
        """The sums, over prefix and grid tokens alike, prefix tokens first."""
        maps = [torch.cat(layer, dim=1) for layer in features]
        for i, project in enumerate(self.projections):
            maps[i] = project(maps[i])
        weights = self.weights.softmax(dim=1) if self.softmax else self.weights
        # one product in place of sums · layers scaled additions
        sums = weights @ torch.stack(maps).flatten(1)
        return [norm(y) for norm, y in zip(self.norms, sums.unflatten(1, maps[0].shape), strict=True)]


class FusedDecoder(nn.Module):
    """MAE's decoder over the sum of several layers (MFF, 2308.00261).

    # official: the backbone's last norm stands behind the sum; here the sum has a norm of its own, so that the
    # backbone's keeps its meaning where another branch reads the end.
    """

    def __init__(self, fused: Fused, decoder: Decoder) -> None:
        super().__init__()
        self.fused, self.decoder = fused, decoder

    def forward(self, features: Sequence[Features], views: Views) -> Float[Tensor, "VB R P"]:
        prefix = features[0].prefix.shape[1]
        (x,) = self.fused(features)
        return self.decoder(Features(x[:, :prefix], x[:, prefix:]), views)

    def describe(self) -> str:
        return self.decoder.describe()


__all__ = ["Fused", "FusedDecoder"]
