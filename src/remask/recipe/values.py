"""The values that recipe keys share: sizes, pairs, devices, and Target, the τ of a branch.

A validator raises ValueError with the sentence a user should read; load.py turns the first one into a UserError.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

SHORTHANDS: Mapping[str, Mapping[str, Any]] = {
    "pixels": {"kind": "pixels", "norm": "none"},
    "pixels-norm": {"kind": "pixels", "norm": "patch"},
    "hog": {"kind": "hog", "norm": "layer", "flavour": "central"},
    "hog-l2": {"kind": "hog", "norm": "l2", "flavour": "sobel"},
}
"""Targets by one word, in TOML and in flags."""

NORMS = {"pixels": ("none", "patch"), "hog": ("none", "l2", "layer")}


def _pair(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(value)
    raise ValueError(f"must be two numbers, as in [0.2, 1.0], not {value}")


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"must be [low, high] with 0 < low ≤ high, not {list(value)}")
    return value


def _size(value: Any) -> Any:
    """32, [96, 160] or "96x160" -> (height, width)."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)(?:[x×](\d+))?", value.strip())):
        value = [int(side) for side in match.groups(default=match[1])]
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if isinstance(value, list | tuple) and [type(side) for side in value] == [int, int] and min(value) > 0:
        return tuple(value)
    raise ValueError(f'must be pixels as in 224, [96, 160] or "96x160" (height, width), not {value}')


def _device(value: str) -> str:
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        return value
    raise ValueError(f'must be auto, cpu, cuda, cuda:N or mps, not "{value}"')


Pair = Annotated[tuple[float, float], BeforeValidator(_pair)]
Range = Annotated[tuple[float, float], BeforeValidator(_pair), AfterValidator(_range)]
Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Device = Annotated[str, AfterValidator(_device)]
Deviation = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Strict: no unknown key, no text for a number, nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Target(Section):
    """τ: what a branch predicts. TOML also takes one word: pixels, pixels-norm, hog, hog-l2."""

    kind: Literal["pixels", "hog"] = Field(
        description="What is predicted: pixels, or histograms of oriented gradients."
    )
    norm: Literal["none", "patch", "l2", "layer"] = Field(description="pixels: none, patch; hog: none, l2, layer.")
    flavour: Literal["central", "sobel"] = Field(default="central", description="HOG of DMJD (central) or MaskFeat.")
    cell: int | None = Field(
        default=None, ge=1, description="Pixels a side of a HOG cell; unset = fitted to the patch."
    )
    bins: int = Field(default=9, ge=2, description="Orientation bins of HOG.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        """One word to its table; the paper's norm (patch, layer) where a table names none."""
        if isinstance(value, str):
            if value not in SHORTHANDS:
                raise ValueError(f'unknown target "{value}"; {", ".join(SHORTHANDS)}, or a table with kind and norm')
            return dict(SHORTHANDS[value])
        if isinstance(value, dict) and value.get("kind") in NORMS:
            return {"norm": NORMS[value["kind"]][-1], **value}
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Target":
        if self.norm not in NORMS[self.kind]:
            raise ValueError(f'{self.kind} takes one of the norms {", ".join(NORMS[self.kind])}, not "{self.norm}"')
        if self.kind == "pixels" and (self.flavour != "central" or self.cell is not None or self.bins != 9):
            raise ValueError('flavour, cell and bins belong to kind = "hog"; leave them out for pixels')
        return self
