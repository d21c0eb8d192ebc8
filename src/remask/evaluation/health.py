"""How varied features are, without labels: their effective rank, and how far images lie apart."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rank_me(features: Float[Tensor, "n D"]) -> float:
    """The effective rank of features, from 1 to min(n, D): exp of the entropy of their singular values (2210.02885)."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def deviation(features: Float[Tensor, "n D"]) -> float:
    """The root mean square deviation of unit features from their mean: 0 where all are alike, about 1 where none are.

    For features in all directions alike it is 1 up to rounding and the number of images.
    """
    unit = F.normalize(features.double(), dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean().sqrt())


__all__ = ["deviation", "rank_me"]
