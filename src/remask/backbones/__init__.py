"""Backbones: the `f` of the equation. Each wraps a network whose state dict is the export."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from remask.backbones.normalise import Normalise
from remask.types import Features, Grid, Images, Size
from remask.views import Views

Mode = Literal["drop", "replace"]


class Backbone(Protocol):
    """The interface of a backbone. `network.state_dict()` is the export: nothing of pre-training lives in it."""

    @property
    def network(self) -> nn.Module: ...

    patch: Size
    """Pixels of a token of the grid on which masks, heads and targets live."""
    width: int
    """D, of the tokens that `encode` returns."""
    stem_width: int
    """Width of the stem's tokens: the length of a mask token."""
    modes: tuple[Mode, ...]
    """Whether it can drop or replace masked tokens. Their pixels can be hidden before the stem of any backbone."""
    depth: int
    """Number of blocks, or of stages."""
    prefix: int
    """S: number of class and register tokens."""
    channels: int
    """Of the images."""
    size: Size
    """Height and width in pixels of the images that it was built for."""

    normalise: Normalise
    """Normalises integer images; a float image is normalised already."""

    def grid(self, size: Size) -> Grid:
        """Token grid of an image of `size` pixels. Raises UserError where the size does not fit."""
        ...

    def embed(self, images: Images) -> Any:
        """The embedded patches, computed once per image and shared by its views."""
        ...

    def encode(
        self,
        patches: Any,
        views: Views | None = None,
        mask_token: Float[Tensor, "F"] | None = None,
        layers: Sequence[int] = (-1,),
    ) -> dict[int, Features]:
        """Features at the named blocks, at the `END` or the `INPUT`.

        views None -> [B, N, D], the whole image · views -> [VB, K, D], masked tokens dropped ·
        views and mask_token -> [VB, N, D], masked tokens replaced by it.
        """
        ...

    def param_depth(self, name: str) -> int:
        """0 for the embedding, i + 1 for block i, depth + 1 for the rest: what layer decay counts."""
        ...


def class_tokens(backbone: Backbone) -> int:
    """How many of the first prefix tokens are class tokens, whose mean stands for the image; others are registers."""
    return int(getattr(backbone, "class_tokens", min(backbone.prefix, 1)))


def stem_patch(backbone: Backbone) -> Size:
    """Pixels of the smallest part of an image that a mask token stands for: a token of the stem, finer in a Swin."""
    return getattr(backbone, "stem_patch", backbone.patch)


__all__ = ["Backbone", "Mode", "class_tokens", "stem_patch"]
