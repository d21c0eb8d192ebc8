"""Targets: the `τ` of the equation. Each maps images to one vector per token, without gradient, once per image."""

from typing import Protocol

from jaxtyping import Num
from torch import Tensor

from remask.targets.hog import Hog
from remask.targets.pixels import Pixels
from remask.targets.token_teacher import TokenTeacher
from remask.types import Images
from remask.views import Views


class Target(Protocol):
    """(images, views) -> [B, N, P], or ids [B, N, 1]. A target that only needs the image ignores the views.

    A teacher may put the rows of its S `prefix` tokens first: [B, S+N, P]. One that sees no more than the student does
    is `per_view`: [VB, S+K, P], the visible tokens of each view.
    """

    width: int
    """P: the length of a token's vector; for ids the size of the vocabulary, which is what a head must predict."""

    def __call__(self, images: Images, views: Views) -> Num[Tensor, "_ _ T"]: ...

    def describe(self) -> str:
        """A few words for the printed equation."""
        ...


def per_view(target: Target) -> bool:
    """Whether a target has rows for each masked view, and not for the image."""
    return getattr(target, "per_view", False)


def prefix(target: Target) -> int:
    """S: the number of a target's rows that belong to prefix tokens."""
    return getattr(target, "prefix", 0)


__all__ = ["Hog", "Pixels", "Target", "TokenTeacher", "per_view", "prefix"]
