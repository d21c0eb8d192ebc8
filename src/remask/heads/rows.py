"""Which rows of a backbone's features a head predicts."""

import torch
from jaxtyping import Float
from torch import Tensor

from remask.tokens import split_tokens, take
from remask.types import Features, Grid
from remask.views import Views


def rows_of(features: Features, views: Views, region: str) -> Float[Tensor, "VB R D"]:
    """The features of a region's tokens, in raster order.

    A backbone that drops masked tokens has computed the visible ones alone, one that replaces them has all N.
    Raises ValueError for masked rows of a backbone that dropped them.
    """
    if region == "encoded":
        return torch.cat([features.prefix, rows_of(features, views, "visible")], dim=1)
    if features.tokens.shape[1] == views.mask.shape[-1]:
        return take(features.tokens, views.ids(region))
    if region == "masked":
        raise ValueError("a linear head on masked tokens needs a backbone that replaces them; this one dropped them")
    return features.tokens


def cell_rows(
    predicted: Float[Tensor, "VB n FP"], views: Views, region: str, cells_per_token: Grid
) -> Float[Tensor, "VB R P"]:
    """The predictions of a region's mask cells; each row of `predicted` holds those of all F cells of a token."""
    grid = views.grid[0] // cells_per_token[0], views.grid[1] // cells_per_token[1]
    return take(split_tokens(predicted, grid, cells_per_token), views.ids(region))
