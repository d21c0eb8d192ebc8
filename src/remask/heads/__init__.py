"""Heads: the `h` of the equation, (features, views) -> predictions for the rows of a region, in raster order."""

from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from remask.heads.decoder import Decoder, TokenDecoder
from remask.heads.linear import Linear
from remask.heads.projector import ProjectionHead, Projector
from remask.types import Features
from remask.views import Views


class Head(Protocol):
    """Predicts the rows of one region from a backbone's features."""

    def __call__(self, features: Features, views: Views) -> Float[Tensor, "VB R P"]: ...

    def describe(self) -> str:
        """A few words for the printed equation."""
        ...


__all__ = ["Decoder", "Head", "Linear", "ProjectionHead", "Projector", "TokenDecoder"]
