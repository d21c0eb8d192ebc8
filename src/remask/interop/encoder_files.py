"""Encoders in files of the layouts that papers published: "mae:FILE" and the like → a Backbone.

Sizes are read from shapes, and the number of heads from position tables where a file has any. Where it has none, any
number fits the weights, so it is required and never guessed; so is the size of images that a Swin was trained on.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from remask.backbones import Backbone
from remask.backbones.beit import CLASS_ROWS
from remask.backbones.tables import offsets
from remask.backbones.vit import ViT
from remask.errors import UserError
from remask.interop import beit, convmae, dmae, dmjd, fastmim, maskfeat, mocov3, simmim
from remask.interop.fetching import counting
from remask.interop.loaded import Loaded, remember
from remask.interop.mae import DECODER, MEAN, STD, _backbone, check, shape
from remask.interop.state_dicts import FileState, State, find
from remask.interop.teachers import CLIP_MEAN, CLIP_STD
from remask.tokens import grid_of
from remask.types import Grid, Size

PUBLISHED_HEADS = {
    "mae": "MAE's ViT-B has 12, L and H 16",
    "dmae": "ViT-S has 6, B 12, L 16",
    "mocov3": "MoCo v3's ViT-S and B have 12",
    "mocov3-momentum": "MoCo v3's ViT-S and B have 12",
    "dino": "DINO's ViT-S has 6, B 12",
    "dmjd": "DMJD's ConViT-B has 12, L 16",
    "convmae": "ConvMAE's ConViT-B has 12",
    "maskfeat": "MaskFeat's ViT-B has 12, L 16",
}
NORMALISATIONS = {
    "imagenet": (MEAN, STD),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "clip": (CLIP_MEAN, CLIP_STD),
}
"""Mean and deviation of pixel values in 0..1, by the name of the data or model that they belong to."""

LAYOUT_OF = {"dmae": "mae", "dino": "mae", "dmjd": "convmae", "mocov3-momentum": "mocov3"}
"""Kind -> the kind whose layout its files have."""

PRETRAINING = re.compile(
    r"(?:encoder\.|backbone\.)?mask_token$|decoder|proj_embed\.|predictor\.|aligned_feature_projection_heads\.|lm_head\."
    r"|pred_head\.projections\.|neck\.|hogs\.|target_generator\.|base_encoder\.head\.|momentum_encoder\.head\."
)
"""Beginnings of the names of tensors that only pre-training needs, in any layout."""


class EncoderOptions(NamedTuple):
    """The arguments of `open_encoder`: a specification, and settings that its file may not tell."""

    spec: str
    heads: int | Sequence[int] | None
    size: Size | None
    mean: Sequence[float] | None
    std: Sequence[float] | None

    @property
    def kind(self) -> str:
        return self.spec.partition(":")[0]


STATES: Mapping[str, Callable[[State, str], State]] = {
    "mae": lambda state, where: {k: tensor for k, tensor in state.items() if not k.startswith(tuple(DECODER))},
    "dmae": lambda state, where: dmae.encoder_of(state),
    "mocov3": lambda state, where: mocov3.from_official(state, False, where),
    "mocov3-momentum": lambda state, where: mocov3.from_official(state, True, where),
    "dino": lambda state, where: state,
}
"""Kind -> the function (state, name for messages) -> the state of a plain ViT under timm's names."""


def _vit(options: EncoderOptions, file: FileState) -> ViT:
    heads, where = _heads(options), file.where
    state = STATES[options.kind](file.state, where)
    kernel = shape(state, "patch_embed.proj.weight", where)
    mean, std = _constants(options, kernel[1])
    size = _trained(options, kernel[-1], shape(state, "pos_embed", where)[1] - 1)
    backbone, _ = _backbone(state, where, heads, size, mean, std)
    check(state, backbone.network.state_dict(), where)
    if options.kind == "dino" and options.mean is None:
        raise UserError(
            f"{options.spec} may be any ViT, and its file does not tell how its pictures were normalised: "
            "state normalise=imagenet (DINO's own), half or clip, or mean and std"
        )
    if not counting():
        backbone.network.load_state_dict(state)
    return backbone


def _convvit(options: EncoderOptions, file: FileState) -> Backbone:
    heads, where, state = _heads(options), file.where, file.state
    kernels = [shape(state, f"patch_embed{stage}.proj.weight", where) for stage in (1, 2, 3)]
    size = _trained(options, math.prod(kernel[-1] for kernel in kernels), shape(state, "pos_embed", where)[1])
    mean, std = _constants(options, kernels[0][1])
    load = dmjd.load_backbone if options.kind == "dmjd" else convmae.load_backbone
    return load(state, heads=heads, size=size, mean=mean, std=std)


def _maskfeat(options: EncoderOptions, file: FileState) -> Backbone:
    heads, state = _heads(options), maskfeat.encoder_of(file.state)
    kernel = shape(state, "patch_embed.proj.weight", file.where)
    size = _trained(options, kernel[-1], shape(state, "pos_embed", file.where)[1] - 1)
    mean, std = _constants(options, kernel[1])
    return maskfeat.load_backbone(file.state, heads=heads, size=size, mean=mean, std=std)


def _beit(options: EncoderOptions, file: FileState) -> Backbone:
    return _with_tables(options, beit.weights(file.state), "", beit.load_backbone, "half")


def _simmim(options: EncoderOptions, file: FileState) -> Backbone:
    state = file.state
    if not any(key.startswith("encoder.layers.") for key in state):
        return _with_tables(options, beit.weights(state), "encoder.", simmim.load_backbone, "imagenet")
    # a Swin's encoder has the same names in FastMIM's layout, which is read for images of any size
    encoder = {k: tensor for k, tensor in state.items() if not k.startswith(("decoder.0.", "encoder.mask_token"))}
    return _fastmim_state(options, encoder)


def _fastmim(options: EncoderOptions, file: FileState) -> Backbone:
    return _fastmim_state(options, file.state)


def _fastmim_state(options: EncoderOptions, state: State) -> Backbone:
    first = next((state[key] for key in STEMS if key in state), None)
    mean, std = _constants(options, 3 if first is None else first.shape[1])  # without a stem it is refused below
    heads = options.heads if isinstance(options.heads, int | None) else tuple(options.heads)
    return fastmim.load_backbone(state, heads=heads, size=options.size, mean=mean, std=std)


STEMS = (
    "patch_embed.proj.weight", "encoder.patch_embed.proj.weight", "encoder.patch_embed1.proj.weight",
    "encoder.stem_conv1.weight",
)  # fmt: skip
"""The first convolutions of FastMIM's ViT, Swin, PVTv2 and CMT."""


def _with_tables(
    options: EncoderOptions, state: State, prefix: str, load: Callable[..., Backbone], normalise: str
) -> Backbone:
    """A ViT of the BEiT family: its tables of relative positions tell heads and grid, where it has any."""
    kernel = shape(state, f"{prefix}patch_embed.proj.weight", "the state")
    table = next((tensor for key, tensor in state.items() if key.endswith(beit.TABLE)), None)
    count, rows_of = (0, math.prod) if table is None else (len(table) - CLASS_ROWS, offsets)
    if table is None:
        count = shape(state, f"{prefix}pos_embed", "the state")[1] - 1
    mean, std = _constants(options, kernel[1], normalise)
    size = _trained(options, kernel[-1], count, rows_of)
    return load(state, heads=_heads_of_all_blocks(options), size=size, mean=mean, std=std)


KINDS: Mapping[str, Callable[[EncoderOptions, FileState], Backbone]] = {
    **dict.fromkeys(STATES, _vit),
    "dmjd": _convvit,
    "convmae": _convvit,
    "beit": _beit,
    "simmim": _simmim,
    "maskfeat": _maskfeat,
    "fastmim": _fastmim,
}
"""Kind -> the function that opens its files."""


def open_file(options: EncoderOptions, path: Path) -> Backbone:
    """The encoder of a file, without the tensors of pre-training. On the meta device no weights are loaded."""
    with torch.device("cpu"):
        file = _find(options.kind, path)
    if options.kind in STATES:
        backbone: Any = _vit(options, file)
    else:
        with torch.device("cpu"), _naming_file(path):
            backbone = KINDS[options.kind](options, file)
        backbone = backbone.to("meta") if counting() else backbone
    left_out = [key for key in file.state if PRETRAINING.match(key)]
    count = len(backbone.network.state_dict()) - file.new
    remember(backbone, Loaded(options.spec, count, file.copy, file.said, (*left_out, *file.left_out)))
    return backbone


def _find(kind: str, path: Path) -> FileState:
    """The network of a file. A linear probe of MoCo v3's has plain names."""
    file = find(path, LAYOUT_OF.get(kind, kind))
    return file if kind not in ("mocov3", "mocov3-momentum") or mocov3.both(file.state) else find(path, "mae")


@contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Errors raised inside name the file in the place of "the state"."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("the state", str(path), 1)) from error


def _heads_of_all_blocks(options: EncoderOptions) -> int | None:
    if not isinstance(options.heads, int | None):
        raise UserError(f"{options.spec} has one number of heads in all its blocks, not {[*options.heads]}: state one")
    return options.heads


def _heads(options: EncoderOptions) -> int:
    heads = _heads_of_all_blocks(options)
    if heads is None:
        raise UserError(
            f"{options.spec} does not tell its number of heads, which any weights fit: "
            f"give heads ({PUBLISHED_HEADS[options.kind]})"
        )
    return heads


def _constants(
    options: EncoderOptions, channels: int, default: str = "imagenet"
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation per channel: those in `options`, or those of the kind's paper."""
    known = NORMALISATIONS[default]
    mean, std = options.mean or known[0], options.std or known[1]
    if (len(mean), len(std)) != (channels, channels):
        whose = "and ImageNet's constants are" if default == "imagenet" else "and its paper's constants are"
        stated = f"not {len(mean)}" if options.mean else f"{whose} for 3"
        raise UserError(
            f"{options.spec} has {channels} channel{'s' * (channels != 1)}, {stated}: give as many in mean and std"
        )
    return mean, std


def _trained(
    options: EncoderOptions, patch: int, count: int, rows_of: Callable[[Grid], int] = math.prod
) -> Size | None:
    """The size in `options`, where a stored table of `count` rows is for its grid and for no square; else None.

    rows_of   grid -> the number of rows of its table
    """
    if any(rows_of((side, side)) == count for side in range(1, math.isqrt(max(count, 0)) + 1)):
        return None
    size = options.size
    divides = size and not (size[0] % patch or size[1] % patch)
    return size if size and divides and rows_of(grid_of(size, (patch, patch))) == count else None


__all__ = ["KINDS", "NORMALISATIONS", "EncoderOptions", "open_file"]
