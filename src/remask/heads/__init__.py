"""Heads: the `h` of the equation, (features, views) -> predictions for the rows of a region, in raster order."""

from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from remask.heads.conv_decoder import ConvDecoder, Pooled
from remask.heads.cross_decoder import CrossDecoder
from remask.heads.decoder import Decoder, TokenDecoder
from remask.heads.fused import Fused, FusedDecoder
from remask.heads.instance_head import InstanceHead
from remask.heads.linear import Linear
from remask.heads.projector import ProjectionHead, Projector
from remask.views import Views


class Head(Protocol):
    """Predicts the rows of one region from a backbone's features: those of a layer, or of several in a list."""

    def __call__(self, features: Any, views: Views) -> Float[Tensor, "VB R P"]: ...

    def describe(self) -> str:
        """A few words for the printed equation."""
        ...


__all__ = [
    "ConvDecoder", "CrossDecoder", "Decoder", "Fused", "FusedDecoder", "Head", "InstanceHead", "Linear", "Pooled",
    "ProjectionHead", "Projector", "TokenDecoder",
]  # fmt: skip
