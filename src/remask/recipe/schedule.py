"""[optim] and [progress]: epochs, learning rate, and image sizes over time."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from remask.recipe.values import Pair, Section, Size


class OptimSection(Section):
    """How long, how fast."""

    epochs: int = Field(ge=1, description="Passes over the pictures.")
    warmup_epochs: float = Field(ge=0, description="Epochs in which the learning rate rises from 0.")
    batch_size: int = Field(ge=1, description="Unique pictures per step, over all devices.")
    base_lr: float | None = Field(default=None, gt=0, description="Learning rate per 256 pictures.")
    lr: float | None = Field(default=None, gt=0, description="Absolute learning rate; overrides base_lr and lr_rule.")
    lr_rule: Literal["dmjd", "linear"] = Field(
        default="dmjd",
        description="base_lr · batch / 256, times m_pred / m_corr under DM (dmjd, Eq. 4) or not (linear).",
    )
    min_lr: float = Field(default=0.0, ge=0, description="Learning rate at the end of the cosine.")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW weight decay; none on biases and norms.")
    betas: Pair = Field(default=(0.9, 0.95), description="AdamW betas.")
    clip: float | None = Field(default=None, gt=0, description="Largest gradient norm; unset = no clipping.")
    max_skipped: int = Field(
        default=3, ge=0, description="Steps in a row, skipped as not finite, that stop the run; 0 = the first."
    )
    drop_epoch: float | None = Field(
        default=None, gt=0, description="Constant rate, a tenth of it from this epoch on (SimMIM); unset = cosine."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="Numbers of forward and backward.")
    max_steps: int | None = Field(default=None, ge=1, description="End after N steps; the schedule stays as planned.")

    @model_validator(mode="after")
    def _fits(self) -> "OptimSection":
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"optim.warmup_epochs {self.warmup_epochs:g} is more than optim.epochs {self.epochs}; lower it with "
                f"--set optim.warmup_epochs={self.epochs / 20:g}"
            )
        if self.lr is None and self.base_lr is None:
            raise ValueError("optim.base_lr is missing: the rate per 256 pictures; give it, or optim.lr")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas {list(self.betas)}: each must be at least 0 and below 1")
        return self


class ProgressSection(Section):
    """FastMIM-P: the image size grows during pre-training; data.image_size is the last one."""

    sizes: list[Size] = Field(min_length=1, description="Image sizes one after the other, growing.")
    epochs: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="Epochs at each size; unset = even shares of optim.epochs."
    )

    @model_validator(mode="after")
    def _grows(self) -> "ProgressSection":
        for before, after in itertools.pairwise(self.sizes):
            if after[0] < before[0] or after[1] < before[1] or after == before:
                raise ValueError(f"progress.sizes go from {_px(before)} to {_px(after)}: each must be larger")
        if self.epochs and len(self.epochs) != len(self.sizes):
            raise ValueError(f"progress.epochs has {len(self.epochs)} numbers for {len(self.sizes)} sizes")
        return self

    def even(self, epochs: int) -> list[int]:
        """Number of epochs at each size, in equal shares; later sizes get the remainder."""
        count = len(self.sizes)
        return [epochs * (i + 1) // count - epochs * i // count for i in range(count)]


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


__all__ = ["OptimSection", "ProgressSection"]
