"""Targets: the `τ` of the equation. Each maps images to one vector per token, without gradient, once per image."""

from typing import Protocol

from jaxtyping import Num
from torch import Tensor

from remask.targets.hog import Hog
from remask.targets.pixels import Pixels
from remask.types import Images
from remask.views import Views


class Target(Protocol):
    """(images, views) -> [B, N, P], or ids [B, N, 1]. What only needs the image ignores the views."""

    width: int
    """P: the length of a token's vector; for ids the size of the vocabulary, which is what a head must predict."""

    def __call__(self, images: Images, views: Views) -> Num[Tensor, "B N T"]: ...

    def describe(self) -> str:
        """A few words for the printed equation."""
        ...


__all__ = ["Hog", "Pixels", "Target"]
