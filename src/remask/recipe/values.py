"""Types of values for recipe keys: sizes, pairs, devices, and Target, the τ of a branch.

A validator raises ValueError with a sentence for the user; load.py converts the first one to a UserError.
"""

import contextlib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from remask.errors import UserError

SHORTHANDS: Mapping[str, Mapping[str, Any]] = {
    "pixels": {"kind": "pixels", "norm": "none"},
    "pixels-norm": {"kind": "pixels", "norm": "patch"},
    "hog": {"kind": "hog", "norm": "layer", "flavour": "central"},
    "hog-l2": {"kind": "hog", "norm": "l2", "flavour": "sobel"},
    "tokens": {"kind": "tokens", "norm": "none"},
    "average": {"kind": "average", "norm": "instance"},
    "clip": {"kind": "features", "norm": "layer", "teacher": "timm:vit_base_patch16_clip_224.openai"},
}
"""Target in one word, for TOML and flags → its keys."""

NORMS = {
    "pixels": ("none", "patch"),
    "hog": ("none", "l2", "layer"),
    "tokens": ("none",),
    "features": ("none", "layer"),
    "average": ("none", "layer", "instance"),
}
KEYS = {
    "low_pass": ("pixels",),
    "flavour": ("hog",), "cell": ("hog",), "bins": ("hog",), "tokenizer": ("tokens",), "over": ("tokens",),
    "vocabulary": ("tokens",), "file": ("tokens",),
    "top": ("average",), "layers": ("average",), "outputs": ("average",),
    "teacher": ("features", "tokens"), "weights": ("features", "tokens"),
}  # fmt: skip
"""Key of a target → kinds of targets that have it."""


Pattern = Annotated[str, Field(min_length=1)]
"""A shell-style pattern."""


def pair(value: Any) -> Any:
    """A list of two as a tuple."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(value)
    raise ValueError(f"must be two numbers, as in [0.2, 1.0], not {value}")


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"must be [low, high] with 0 < low ≤ high, not {list(value)}")
    return value


def _levels(value: Any) -> Any:
    """auto, full, byte, or two numbers low < high, as in [0, 4095] or "0,4095"."""
    if value in ("auto", "full", "byte"):
        return value
    if isinstance(value, str) and value.count(",") == 1:
        with contextlib.suppress(ValueError):
            value = [float(number) for number in value.strip("[]() ").split(",")]
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) == 2 and all(type(number) in (int, float) for number in numbers) and numbers[0] < numbers[1]:
        return float(numbers[0]), float(numbers[1])
    raise ValueError(f"must be auto, full, byte or two numbers low < high as in [0, 4095], not {value}")


def pixel_range(text: str | None) -> Any:
    """The value of `--range`; None if it is not given. Raises UserError."""
    try:
        return _levels(text) if text is not None else None
    except ValueError as error:
        raise UserError(f"--range {error}") from None


def _size(value: Any) -> Any:
    """32, [96, 160] or "96x160" -> (height, width)."""
    original = value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)(?:[x×](\d+))?", value.strip())):
        value = [int(side) for side in match.groups(default=match[1])]
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if isinstance(value, list | tuple) and [type(side) for side in value] == [int, int] and min(value) > 0:
        return tuple(value)
    raise ValueError(f'must be pixels as in 224, [96, 160] or "96x160" (height, width), not {original}')


def image_size(text: str | None, flag: str = "--image-size") -> tuple[int, int] | None:
    """The value of `--image-size`, (height, width) in pixels; None if it is not given. Raises UserError."""
    try:
        return _size(text) if text is not None else None
    except ValueError as error:
        raise UserError(f"{flag} {error}") from None


def _heads(value: Any) -> Any:
    """12, [1, 2, 5, 8] or "1,2,5,8" -> one number, or one per stage."""
    if isinstance(value, str) and re.fullmatch(r"\d+(,\d+)*", value.replace(" ", "")):
        value = [int(number) for number in value.split(",")]
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"must be a number of heads, or one a stage as in [1, 2, 5, 8], not {value}")
    return numbers[0] if len(numbers) == 1 else [*numbers]


def heads(text: str | None) -> int | list[int] | None:
    """The value of `--heads`; None if it is not given. Raises UserError."""
    try:
        return _heads(text) if text is not None else None
    except ValueError as error:
        raise UserError(f"--heads {error}") from None


def _device(value: str) -> str:
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        return value
    raise ValueError(f'must be auto, cpu, cuda, cuda:N or mps, not "{value}"')


Pair = Annotated[tuple[float, float], BeforeValidator(pair)]
Range = Annotated[tuple[float, float], BeforeValidator(pair), AfterValidator(_range)]
PixelRange = Annotated[Literal["auto", "full", "byte"] | tuple[float, float], BeforeValidator(_levels)]
Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Heads = Annotated[int | list[int], BeforeValidator(_heads)]
Device = Annotated[str, AfterValidator(_device)]
Deviation = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Strict: no unknown key, no text for a number, nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Target(Section):
    """τ: what a branch predicts. TOML also takes one word: pixels, pixels-norm, hog, hog-l2, tokens, average, clip."""

    kind: Literal["pixels", "hog", "tokens", "features", "average"] = Field(
        description="pixels, histograms of oriented gradients, token ids, a teacher's features, the moving average's."
    )
    norm: Literal["none", "patch", "l2", "layer", "instance"] = Field(
        description="pixels: none, patch; hog: none, l2, layer; features: none, layer; average: instance, layer, none."
    )
    low_pass: float | None = Field(
        default=None, gt=0, description="Leave out finer detail of pixels: cycles per shorter side (PixMIM: 40 of 112)."
    )
    flavour: Literal["central", "sobel"] = Field(default="central", description="HOG of DMJD (central) or MaskFeat.")
    cell: int | None = Field(
        default=None, ge=1, description="Pixels a side of a HOG cell; unset = fitted to the patch."
    )
    bins: int = Field(default=9, ge=2, description="Orientation bins of HOG.")
    tokenizer: Literal["codebook", "dalle", "stored"] = Field(
        default="codebook", description="Where ids come from: a k-means codebook, DALL-E's dVAE, a file of stored ids."
    )
    over: Literal["hog", "hog-l2", "pixels", "pixels-norm", "features"] = Field(
        default="hog",
        description="What a codebook without a file is fitted on, from the run's pictures.",
    )
    vocabulary: int = Field(default=512, ge=2, description="Words of a codebook without a file.")
    file: str | None = Field(
        default=None, min_length=1, description="Codebook, dVAE weights or stored ids; unset = fit a codebook first."
    )
    teacher: str | None = Field(
        default=None, min_length=1, description="timm:NAME, torchvision:mobilenet_v2, clip:NAME, open_clip:NAME, tae:."
    )
    weights: str | None = Field(default=None, min_length=1, description="The teacher's weights as a local file.")
    top: int | None = Field(default=None, ge=1, description="How many last blocks of the moving average; unset = all.")
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=1, description="Blocks of the moving average by number, in place of top."
    )
    outputs: Literal["ffn", "block"] = Field(
        default="ffn", description="Of a block: what its MLP adds (data2vec 2.0), or its output."
    )

    def opened(self, section: str) -> list[str]:
        """Dotted keys of files, networks and layers that the target reads; `section` is its dotted path."""
        if self.kind == "average":
            return [f"{section}.{key}" for key in ("top", "layers") if getattr(self, key)] or [f"{section}.kind"]
        return [f"{section}.{key}" for key in ("file", "teacher", "weights") if getattr(self, key)]

    @property
    def unfitted(self) -> bool:
        """Whether the target is a codebook without a file, which must be fitted first."""
        return self.kind == "tokens" and self.tokenizer == "codebook" and self.file is None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        """Expand one word to its table; add the paper's norm (patch, layer) to a table without one."""
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
            raise ValueError(f'norm of {self.kind} is one of {", ".join(NORMS[self.kind])}, not "{self.norm}"')
        given = {key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default}
        foreign = [key for key, kinds in KEYS.items() if key in given and self.kind not in kinds]
        if foreign:
            kinds = " or ".join(f'"{kind}"' for kind in KEYS[foreign[0]])
            raise ValueError(f"{', '.join(foreign)} belongs to kind = {kinds}; leave it out for {self.kind}")
        if self.kind == "features" and self.teacher is None:
            raise ValueError('kind = "features" needs a teacher, as in teacher = "timm:vit_small_patch16_224.dino"')
        if self.top and self.layers:
            raise ValueError(f"layers {self.layers} and top {self.top}: give one of them")
        if self.kind == "tokens" and self.tokenizer != "codebook" and self.file is None:
            raise ValueError(f'tokenizer = "{self.tokenizer}" needs a file: its weights or its ids')
        if self.kind == "tokens" and self.over == "features" and self.teacher is None:
            raise ValueError('over = "features" needs a teacher, as in teacher = "timm:vit_small_patch16_224.dino"')
        if self.kind == "tokens" and self.over != "features" and self.teacher is not None:
            raise ValueError('teacher belongs to a codebook over features: set over = "features", or leave it out')
        return self
