"""[masking]: who is hidden, and which of the hidden are predicted."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from remask.recipe.values import Section

GUIDED = ("attention", "loss")
"""Patterns that go by the student's moving average."""


class MaskingSection(Section):
    """Ω: who is hidden."""

    pattern: Literal["random", "cells", "blocks", "inverse-blocks", "green", "attention", "loss", "none"] = Field(
        description="Random patches, SimMIM's cells, BEiT's blocks, data2vec's squares that stay visible, green noise "
        "(ColorMAE); by the moving average: what it attends to (AttMask), what it finds hard to predict (HPM); none "
        "for refiner, which compares whole crops."
    )
    ratio: float = Field(ge=0, lt=1, description="m_corr: the share of patches that a view hides; 0 for none.")
    cell: int = Field(default=1, ge=1, description='Side of the smallest hidden unit in patches; 2 for "cells".')
    cell_pixels: int | None = Field(
        default=None, ge=1, description="The same in pixels, in place of cell; finer than a patch in fastmim, simmim."
    )
    count: Literal["mae", "simmim", "maskfeat"] | None = Field(
        default=None, description="How a ratio becomes a number of cells: as that method's code; unset = the method's."
    )
    predicted: Literal["all", "once"] | Annotated[float, Field(gt=0, lt=1)] = Field(
        default="all", description="Hidden patches that are predicted: all, a share γ of all patches, once under DM."
    )
    blob: float = Field(
        default=2.0, ge=1, description="Size of blobs of green noise in cells; two lie side by side in a picture."
    )
    probability: float = Field(
        default=0.5, ge=0, le=1, description="Of hiding the most attended first; else at random (attention)."
    )
    hints: float = Field(
        default=0.0, ge=0, le=1, description="Share of all cells, of the most attended, shown again (attention)."
    )
    share: float = Field(
        default=0.5, ge=0, lt=1, description="Share of the hidden that is the hardest at the end; it rises (loss)."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_cell(cls, value: Any) -> Any:
        cells = isinstance(value, dict) and value.get("pattern") == "cells" and not value.get("cell_pixels")
        return {"cell": 2, **value} if cells else value

    @model_validator(mode="after")
    def _fits(self) -> "MaskingSection":
        if self.ratio == 0 and self.pattern != "none":
            raise ValueError('masking.ratio: must be above 0, not 0, unless masking.pattern is "none"')
        if self.ratio and self.pattern == "none":
            raise ValueError(f'masking.pattern "none" hides nothing: masking.ratio must be 0, not {self.ratio:g}')
        if self.pattern == "attention" and self.hints > 1 - self.ratio:
            raise ValueError(
                f"masking.hints {self.hints:g} is more than masking.ratio {self.ratio:g} lets be shown, "
                f"{1 - self.ratio:g} of all cells: lower it"
            )
        if self.cell > 1 and self.cell_pixels:
            raise ValueError(f"masking.cell {self.cell} and masking.cell_pixels {self.cell_pixels}: give one of them")
        if not isinstance(self.predicted, str) and self.predicted > self.ratio:
            raise ValueError(
                f"masking.predicted {self.predicted:g} is above masking.ratio {self.ratio:g}: it is a share of all "
                "patches, of those that are hidden; lower it or raise the ratio"
            )
        if self.pattern == "random" and self.cell > 1:
            raise ValueError(f'masking.cell {self.cell} needs masking.pattern "cells": "random" hides single patches')
        return self


__all__ = ["GUIDED", "MaskingSection"]
