"""The loss of another branch as a target: what is hard to predict is predicted itself (HPM 2304.05919)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LossOf(nn.Module):
    """The distances of the branch `name`, token by token, detached. A method computes that branch first.

    distance   that branch's
    """

    width = 1

    def __init__(self, name: str, distance: Callable[..., Tensor]) -> None:
        super().__init__()
        self.name, self.distance = name, distance

    @torch.no_grad()
    def forward(self, pairs: Mapping[str, tuple[Any, Any]]) -> Float[Tensor, "VB R 1"]:
        """From the predictions and targets of a method's branches so far."""
        prediction, target = pairs[self.name]
        return self.distance(prediction.float(), target).unsqueeze(-1)

    def describe(self) -> str:
        return f"loss of the {self.name} branch"


__all__ = ["LossOf"]
