"""Terms that any method can have beside its own: [uniformity]."""

from typing import Literal

from pydantic import Field

from remask.recipe.values import Section


class UniformitySection(Section):
    """Different pictures are to have different features (U-MAE): mean squared cosine of all pairs of a batch."""

    weight: float = Field(default=0.01, gt=0, description="λ of the term.")
    of: Literal["mean", "class"] = Field(
        default="mean", description="Of a view's features: the mean of its tokens, or its class token."
    )


__all__ = ["UniformitySection"]
