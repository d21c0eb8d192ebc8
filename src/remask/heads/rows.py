"""Which rows of a backbone's features a head predicts."""

import torch
from jaxtyping import Float
from torch import Tensor

from remask.tokens import finer, take
from remask.types import Features, Grid
from remask.views import Views


def rows_of(features: Features, views: Views, region: str) -> Float[Tensor, "VB R D"]:
    """The features of a region's tokens, in raster order.

    A backbone that drops masked tokens has computed the visible ones alone, one that replaces them has all N.
    Raises ValueError for masked rows of a backbone that dropped them.
    """
    if region == "seen":
        return torch.cat([features.prefix, rows_of(features, views, "visible")], dim=1)
    if features.tokens.shape[1] == views.mask.shape[-1]:
        return take(features.tokens, views.rows(region))
    if region == "masked":
        raise ValueError("a linear head on masked tokens needs a backbone that replaces them; this one dropped them")
    return features.tokens


def finer_rows(predicted: Float[Tensor, "VB n FP"], views: Views, region: str, fine: Grid) -> Float[Tensor, "VB R P"]:
    """Predictions per token, cut into `fine` rows and columns of mask cells each: those of a region's cells."""
    grid = views.grid[0] // fine[0], views.grid[1] // fine[1]
    return take(finer(predicted, grid, fine), views.rows(region))
