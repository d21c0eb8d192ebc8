"""One term of the equation: λ · mean over Ω of d( h( f(x, v) ) ; τ(x, v) )."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from remask.distances import Distance, described, is_across_batch
from remask.errors import UserError
from remask.heads import Head
from remask.targets import Target, per_view
from remask.targets.loss_of import LossOf
from remask.training.gathering import all_rows
from remask.types import END, Features
from remask.views import Views

Region = Literal["masked", "predicted", "visible", "encoded", "pooled"]
"""Ω: "predicted" is what of the masked tokens the masking chose; "encoded" the prefix tokens, then the visible ones;
"pooled" one row for a view, whose target is the mean over all tokens of the image, or the target's only row."""

Pair = tuple[Float[Tensor, "VB R P"], Num[Tensor, "VB R T"]]
"""Predictions, and targets: vectors of the same length, or one id a token (T = 1)."""


class Branch(nn.Module):
    """One term of the sum: λ · mean over Ω of d(h(f(x)), τ(x)), read from one or several depths of the backbone.

    layer     -1 for the end; of several layers the head receives the features in a list
    learned   λ is trained, from `weight` on: exp(-s), and s is added to the term (Kendall et al., 1705.07115)
    """

    log_variance: Tensor | None

    def __init__(
        self,
        name: str,
        head: Head,
        target: Target,
        distance: Distance,
        region: Region,
        weight: float = 1.0,
        layer: int | Sequence[int] = END,
        learned: bool = False,
    ) -> None:
        super().__init__()
        if region in ("masked", "predicted") and per_view(target):
            raise UserError(f"{target.describe()}: it knows nothing of masked tokens; choose a target that sees them")
        self.name, self.region, self.weight = name, region, weight
        self.layer: int | tuple[int, ...] = layer if isinstance(layer, int) else tuple(layer)
        self.head, self.target, self.distance = head, target, distance
        self.log_variance = nn.Parameter(torch.tensor(-math.log(weight))) if learned else None

    def forward(self, features: Features | list[Features], targets: Num[Tensor, "_ _ T"], views: Views) -> Pair:
        """Predictions and targets of Ω, token by token. Rows of targets beyond the grid's are prefix tokens, first."""
        if isinstance(self.target, LossOf):  # has the rows of Ω already, which its branch predicts
            return self.head(features, views), targets
        of_view = per_view(self.target)
        first = targets.shape[1] - (views.visible if of_view else views.mask).shape[-1]
        prefix, tokens = targets[:, :first], targets[:, first:]
        if self.region == "pooled":
            mean = targets[:, max(first, 0) :].mean(dim=1, keepdim=True)
            return self.head(features, views), mean if of_view else views.repeat(mean)
        if not of_view:
            prefix, tokens = views.repeat(prefix), views.gather(tokens, self.region)
        return self.head(features, views), torch.cat([prefix, tokens], dim=1) if self.region == "encoded" else tokens

    @property
    def across_batch(self) -> bool:
        """Whether the distance compares pictures of a batch with one another."""
        return is_across_batch(self.distance)

    def loss(
        self, prediction: Float[Tensor, "VB R P"], target: Num[Tensor, "VB R T"], views: Views
    ) -> Float[Tensor, ""]:
        """Mean over Ω of d. Across the batch: over Ω of all processes, the same number in each of them. Collective."""
        prediction = prediction.float()
        if self.across_batch:
            by_view = (x.unflatten(0, views.mask.shape[:2]) for x in (prediction, target))
            prediction, target = (all_rows(x, dim=1) for x in by_view)
        return self.distance(prediction, target).mean()

    def read(self, encoded: Mapping[int, Features]) -> Features | list[Features]:
        """What the head reads of a backbone's features by layer."""
        return encoded[self.layer] if isinstance(self.layer, int) else [encoded[layer] for layer in self.layer]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the backbone that the head reads."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer

    @property
    def learned(self) -> Float[Tensor, ""] | None:
        """λ = exp(-s), where it is trained."""
        return None if self.log_variance is None else (-self.log_variance).exp()

    def term(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """λ · loss, and s beside it where λ is trained."""
        s = self.log_variance
        return self.weight * loss if s is None else (-s).exp() * loss + s

    def describe(self, over: str) -> str:
        """λ · mean over Ω of d( h ; τ ), where `over` says how many tokens Ω has."""
        depth = f" of {len(self.layers)} layers" if len(self.layers) > 1 else f" at block {self.layer}"
        prediction = self.head.describe() + ("" if self.layer == END else depth)
        compared = " ; ".join(words for words in (prediction, self.target.describe()) if words)
        return f"{self.weight:g} · mean over {over}, of {described(self.distance)}( {compared} )"


__all__ = ["Branch", "Pair", "Region"]
