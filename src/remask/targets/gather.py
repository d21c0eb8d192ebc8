"""Temporary."""

from torch import Tensor


def gather(x: Tensor) -> Tensor:
    return x


def offset(x: Tensor) -> int:
    return 0
