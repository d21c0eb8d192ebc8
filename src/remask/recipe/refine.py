"""[refine]: instance discrimination after masked image modeling (MIM-Refiner, 2402.10093)."""

from typing import Annotated, Literal

from pydantic import Field

from remask.recipe.values import Section


class RefineSection(Section):
    """MIM-Refiner: the last blocks learn to tell images apart, by neighbours of another crop."""

    blocks: int | None = Field(default=None, ge=1, description="Last blocks that are trained; unset = a third of them.")
    layers: list[Annotated[int, Field(ge=-1)]] | None = Field(
        default=None, description="Blocks with a head, from 0, -1 is the end; unset = all that are trained."
    )
    frozen: float = Field(
        default=0.4, ge=0, lt=1, description="Share of the epochs, from the first, in which heads alone are trained."
    )
    pool: Literal["class", "mean"] | None = Field(
        default=None,
        description="What stands for a crop: class or mean; unset = the class token where it has one.",
    )
    width: int | None = Field(
        default=None, ge=1, description="Width of projections and predictions; unset = 256, or the network's if less."
    )
    hidden: int | None = Field(
        default=None, ge=1, description="Width inside the projectors; unset = twice the network's (ViT-L: 2048)."
    )
    predictor: int | None = Field(
        default=None, ge=1, description="Width inside the predictors; unset = four times the network's (ViT-L: 4096)."
    )
    queue: int = Field(default=65536, ge=1, description="Projections of the last crops, among which neighbours are.")
    neighbours: int = Field(default=20, ge=1, description="Nearest of the queue, one of which is the positive.")
    temperature: float = Field(default=0.2, gt=0, description="By which cosines are divided.")
    jitter: float = Field(default=0.0, ge=0, le=1, description="Strength of colour jitter on what the student sees.")
    layer_decay: float = Field(default=0.65, gt=0, le=1, description="Rate of a block over that of the block above.")
    head_decay: float = Field(default=1e-5, ge=0, description="Weight decay of the heads.")


__all__ = ["RefineSection"]
