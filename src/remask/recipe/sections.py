"""The sections of a recipe: keys with types, ranges, defaults and a line of help."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from remask.recipe.values import Deviation, Pattern, PixelRange, Range, Section, Size, Target

METHODS = (
    "mae", "simmim", "maskfeat", "beit", "convmae", "fastmim", "dmae", "moma", "crossmae", "data2vec", "localmim",
    "refiner",
)  # fmt: skip
"""Method names that build/pretraining.py knows."""

DROPPING = ("mae", "convmae", "dmae", "moma", "crossmae", "data2vec", "localmim")
"""Methods whose backbone encodes visible patches only; the others replace the masked ones."""

DISTILLING = ("dmae", "moma")
"""Methods with frozen teachers."""

TARGETLESS = ("moma", "refiner")
"""Methods whose target is part of them."""

STRIDES = {
    r"vit_micro|beit_micro|convvit_micro": 4,
    r"vit_tiny|beit_tiny|swin_micro": 8,
    r"convvit_.*": 16,
    r"swin_.*|cmt_.*|pvt_v2_.*": 32,
    r"(?:vit|beit|beitv2|deit3?)_.*patch(\d+).*": None,
}
"""Pattern of a network's name → pixels per side of a token; None: group 1 of the match."""

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OTHER_CHANNELS = {"mean": [0.5], "std": [0.25]}


class About(Section):
    """What every recipe says of itself, and its seed."""

    name: str = Field(description="The recipe's name: the stem of its file.")
    title: str = Field(default="", description="One line: what this trains.")
    paper: str = Field(default="", description="The paper, with its arXiv number.")
    table: str = Field(default="", description="Table and row that this reproduces.")
    expected: str = Field(default="", description="The number the paper reports, or that none is published.")
    command: str = Field(default="", description="The command that runs it.")
    cost: str = Field(default="", description="What it costs, as published or measured.")
    notes: list[str] = Field(default=[], description="What is known, what is assumed, where it differs.")
    seed: int = Field(default=0, ge=0, description="Seed of every random draw.")


class DataSection(Section):
    """Where pictures come from and how they are cut."""

    source: str | None = Field(default=None, description="Default source: folder, list file, shards, or a named set.")
    image_size: Size = Field(description='Pixels after cropping: 224, [96, 160] or "96x160" (height, width).')
    channels: int = Field(default=3, ge=1, description="Channels of a picture.")
    range: PixelRange = Field(
        default="auto",
        description="Values that are black and white in pictures deeper than 8 bits: auto, full, byte or [low, high].",
    )
    mean: list[float] = Field(
        default=[], description="Mean per channel of pixels in 0..1; unset = ImageNet's, measured unless colour."
    )
    std: list[Deviation] = Field(
        default=[], description="Deviation per channel; unset = ImageNet's, measured unless colour."
    )
    crop: Literal["random", "simple"] = Field(
        default="random", description="A random part, or nearly all of the picture: resized, padded, cut (PixMIM)."
    )
    crop_padding: int = Field(default=4, ge=0, description="Pixels by which a simple crop pads each side.")
    crop_scale: Range = Field(default=(0.2, 1.0), description="Share of the picture's area that a random crop keeps.")
    crop_ratio: Range = Field(default=(3 / 4, 4 / 3), description="Width / height of a random crop.")
    flip: bool = Field(default=True, description="Mirror half of the crops left to right.")
    reduced: bool = Field(
        default=False,
        description="Decode a JPEG no larger than its crop needs, and keep none: faster, other pixels by a few levels.",
    )
    crops: int = Field(
        default=1, ge=1, description="Crops of a decoded picture; they count as pictures of batch and epoch."
    )
    keep: Literal["auto", "never", "ram", "device"] = Field(
        default="auto", description="Keep decoded pictures: if 1 GB holds them, never, in memory, on the device."
    )
    decode: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where JPEGs are decoded and crops made; on cuda, pixels differ by a few levels."
    )
    limit: int | None = Field(default=None, ge=1, description="Use the first N pictures of the source only.")
    exclude: list[Pattern] = Field(default=[], description="Names or paths in the source to leave out.")
    max_bad: float = Field(default=0.01, ge=0, le=1, description="Share of unreadable pictures that stops the run.")

    @property
    def measured(self) -> bool:
        """Whether mean and deviation are measured on the source, because the recipe sets neither."""
        return not {"mean", "std"} & self.model_fields_set

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        """Repeat a single number for all channels."""
        if not isinstance(value, dict) or not isinstance(channels := value.get("channels", 3), int):
            return value
        given = {key: value[key] for key in ("mean", "std") if value.get(key)}
        return {k: v for k, v in value.items() if k not in ("mean", "std")} | {
            k: v * channels if isinstance(v, list) and len(v) == 1 else v for k, v in given.items()
        }

    @model_validator(mode="after")
    def _defaults(self) -> "DataSection":
        """Set default mean and deviation until a source is measured; `model_fields_set` still excludes them."""
        default = IMAGENET if self.channels == 3 else OTHER_CHANNELS
        for key, numbers in default.items():
            if not getattr(self, key):
                object.__setattr__(self, key, numbers if self.channels == 3 else numbers * self.channels)
        return self

    @model_validator(mode="after")
    def _fits(self) -> "DataSection":
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"data.{key} has {len(values)} numbers for data.channels {self.channels}; give 1 or that many"
                )
        if self.crop == "simple" and (self.reduced or self.decode == "cuda" or self.keep == "device"):
            key = "data.reduced" if self.reduced else "data.decode" if self.decode == "cuda" else "data.keep"
            raise ValueError(f'data.crop "simple" is cut from whole pictures on the CPU: leave {key} out')
        if self.crop == "simple" and self.crop_padding >= min(self.image_size):
            raise ValueError(
                f"data.crop_padding {self.crop_padding} must be below data.image_size, "
                f"{self.image_size[0]}x{self.image_size[1]}"
            )
        if self.decode == "cuda" and self.keep in ("ram", "device"):
            raise ValueError(f'data.decode "cuda" keeps no pictures: leave it out, or data.keep "{self.keep}"')
        if self.reduced and self.keep == "ram":
            raise ValueError(
                'data.reduced decodes for each crop anew and keeps no pictures: leave it out, or data.keep "ram"'
            )
        if self.crop_scale[1] > 1:
            raise ValueError(f"data.crop_scale {list(self.crop_scale)}: a crop cannot be larger than the picture, 1.0")
        return self


class BackboneSection(Section):
    """f: the network that is trained."""

    name: str = Field(
        min_length=1,
        description="A timm ViT, BEiT or Swin, convvit_{base,base_wide,large}, …_micro; for fastmim any timm name.",
    )
    patch_size: int | None = Field(
        default=None, ge=1, description="Pixels a side of a patch; unset = the network's own."
    )
    positions: Literal["sincos", "learned"] = Field(default="sincos", description="Position table: fixed or learned.")
    drop_path: float = Field(default=0.0, ge=0, lt=1, description="Stochastic depth at the last block.")
    weights: str | None = Field(
        default=None, min_length=1, description="Start from these: mae:FILE, mocov3:FILE, run:RUN, ..."
    )
    class_tokens: int | None = Field(
        default=None, ge=1, description="Class tokens of a plain ViT (Pixio: 8); unset = the network's own."
    )
    width: int | None = Field(default=None, ge=1, description="Overrides the network's width.")
    depth: int | None = Field(default=None, ge=1, description="Overrides the number of blocks.")
    heads: int | None = Field(default=None, ge=1, description="Overrides the number of attention heads.")

    @property
    def patch(self) -> int | None:
        """Pixels per side of a token, from patch_size or the name; None if only the network knows."""
        found = ((re.fullmatch(pattern, self.name), stride) for pattern, stride in STRIDES.items())
        match, stride = next(((match, stride) for match, stride in found if match), (None, None))
        if self.patch_size and self.name.startswith("swin"):
            return None  # patch_size is that of the stem
        return self.patch_size or stride or (int(match[1]) if match else None)


class MethodSection(Section):
    """The paper's row of the table: what the masked patches predict, and through which decoder."""

    name: str = Field(description=f"The method: {', '.join(METHODS)}.")
    target: Target = Field(
        default=Target(kind="pixels", norm="none"),
        description="What the masked branch predicts: pixels, pixels-norm, hog, hog-l2, tokens, average, clip…",
    )
    initial: Literal["published", "xavier"] = Field(
        default="published", description="First weights of simmim, maskfeat, beit: the papers', or MAE's if narrow."
    )
    decoder: Literal["self", "cross"] = Field(
        default="self", description="Mask tokens attend to all tokens (MAE), or to visible ones alone (CrossMAE)."
    )
    decoder_layers: list[Annotated[int, Field(ge=0)] | Literal["input", "end"]] | None = Field(
        default=None,
        description="Layers that the decoder reads: input, blocks from 0, end; unset = end; cross: all; localmim: 4.",
    )
    cells: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="Pixels of a HOG cell at each layer (localmim); unset = a patch / 4, / 2, · 1, · 2."
    )
    decoder_width: int = Field(default=512, ge=1, description="Width of the decoder.")
    decoder_depth: int = Field(default=8, ge=1, description="Blocks of the decoder.")
    decoder_heads: int = Field(default=16, ge=1, description="Attention heads of the decoder.")
    decoder_mlp_ratio: float = Field(default=4.0, gt=0, description="Hidden width of the decoder's MLPs, in widths.")
    decoder_kernel: int = Field(default=3, ge=1, description="Side of the decoder's convolutions, odd (data2vec).")
    class_weight: float = Field(
        default=0.01, ge=0, description="λ of the class token, which predicts the target's mean (data2vec); 0 = none."
    )

    @model_validator(mode="before")
    @classmethod
    def _stated(cls, value: Any) -> Any:
        """Require a target; remove that of methods with one of their own, as moma's are its teachers' features."""
        if not isinstance(value, dict) or "name" not in value:
            return value
        if value["name"] in TARGETLESS:
            return {key: inner for key, inner in value.items() if key != "target"}
        if value.get("target") is None:
            raise ValueError(
                f"method.target is missing: what method.name {value['name']} predicts, as pixels-norm or hog"
            )
        return value

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f'unknown method "{value}"; known: {", ".join(METHODS)}')
        return value


class DMSection(Section):
    """Disjoint masking (DMJD Eq. 3): several views of a picture that together hide more than one of them."""

    views: int = Field(default=2, ge=1, description="K: masked views per picture.")
    prediction: float = Field(default=1.0, gt=0, le=1, description="m_pred: share of patches that some view hides.")
    independent: bool = Field(default=False, description="Draw the views independently (baseline; ignores prediction).")


class JDSection(Section):
    """Joint distillation (DMJD Eq. 5): visible patches predict a target too."""

    target: Target = Field(default=Target(kind="hog", norm="layer"), description="What the visible branch predicts.")
    width: int = Field(default=512, ge=1, description="Width of the projector.")
    layers: int = Field(default=3, ge=1, description="Linear layers of the projector; 1 = linear (Table V).")
    beta: float = Field(default=2.0, gt=0, description="Where smooth-l1 turns from square to line.")
    weight: float = Field(default=1.0, ge=0, description="λ of the visible branch.")

    @model_validator(mode="before")
    @classmethod
    def _hog(cls, value: Any) -> Any:
        """Make a target table without kind HOG, so that `--set jd.target.cell=4` suffices."""
        if isinstance(value, dict) and isinstance(target := value.get("target"), dict):
            return {**value, "target": {"kind": "hog", **target}}
        return value
