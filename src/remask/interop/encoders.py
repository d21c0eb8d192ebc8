"""Backbones by specification, to be frozen as a target's `f` or started from: "mae:FILE" and the like → a Backbone.

mae:FILE  dmae:FILE                  MAE's and DMAE's pre-training checkpoints, without decoder and heads
mocov3:FILE  mocov3-momentum:FILE    MoCo v3's, of the base or of the momentum encoder
dino:FILE                            a ViT under timm's names, as DINO's (Caron et al., arXiv 2104.14294); of a whole
                                     checkpoint the teacher, else the student; without heads and prefixes of wrappers
dmjd:FILE  convmae:FILE              DMJD's and ConvMAE's ConViT
timm:NAME  untrained:NAME            a timm VisionTransformer with published weights, or with random ones: the control
run:RUN                              the export of a run, or a folder that `remask export` wrote

What weights do not tell is asked for and never guessed. On the meta device networks are made without weights, for
counting.
"""

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from remask.backbones import Backbone
from remask.backbones.makers import maker
from remask.backbones.vit import SMALL, ViT, create_vit
from remask.interop import convmae, dmae, dmjd, mocov3
from remask.interop.mae import DECODER, MEAN, STD, State, _backbone, check, read, shape
from remask.interop.teachers import _counting, _fetched
from remask.tokens import grid_of
from remask.types import Size, UserError

KINDS = (
    "mae:FILE", "dmae:FILE", "mocov3:FILE", "mocov3-momentum:FILE", "dino:FILE", "dmjd:FILE", "convmae:FILE",
    "timm:NAME", "untrained:NAME", "run:RUN",
)  # fmt: skip
PUBLISHED_HEADS = {
    "mae": "MAE's ViT-B has 12, L and H 16",
    "dmae": "ViT-S has 6, B 12, L 16",
    "mocov3": "MoCo v3's ViT-S and B have 12",
    "mocov3-momentum": "MoCo v3's ViT-S and B have 12",
    "dino": "DINO's ViT-S has 6, B 12",
    "dmjd": "DMJD's ConViT-B has 12, L 16",
    "convmae": "ConvMAE's ConViT-B has 12",
}
FIXED = ("img_size", "in_chans", "num_classes", "global_pool", "fc_norm")
"""What a maker sets itself."""

WRAPPERS = re.compile(r"^(?:(?:module|teacher|student|backbone)\.)+")


class Asked(NamedTuple):
    """What was asked for, in `open_encoder`'s words."""

    spec: str
    heads: int | None
    size: Size | None
    mean: Sequence[float] | None
    std: Sequence[float] | None

    @property
    def kind(self) -> str:
        return self.spec.partition(":")[0]


def open_encoder(
    spec: str,
    *,
    heads: int | None = None,
    size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """The backbone that `spec` names, with its weights; nothing in it is frozen yet.

    heads       of attention, needed for files: weights fit any number. timm: and run: bring theirs
    size        pixels of the images it will see: its patches must divide them. A stored table of as many tokens is
                taken for this size as it is, which one that is not square needs; any other is resized when it is used
    mean, std   of pixel values 0..1 per channel; ImageNet's for files, as their papers have it, and needed where those
                have other than three channels. timm: and run: bring theirs
    An export holds no fusions of a ConvViT, which its masked views alone need: they start untrained.
    Raises UserError, in one line, for an unknown specification, weights that are out of reach or do not fit, and what
    is missing of the above.
    """
    kind, _, name = spec.partition(":")
    path, asked = Path(name).expanduser(), Asked(spec, heads, size, mean, std)
    kinds: dict[str, Callable[[], Backbone]] = {
        **{vit: lambda: _vit(asked, path) for vit in STATES},
        **{convvit: lambda: _convvit(asked, path) for convvit in ("dmjd", "convmae")},
        "timm": lambda: _published(asked, name),
        "untrained": lambda: _untrained(asked, name),
        "run": lambda: _exported(asked, path),
    }
    if kind not in kinds or not name:
        raise UserError(f"{spec!r} names no encoder; known are {', '.join(KINDS)}")
    if kind not in ("timm", "untrained") and not path.exists():
        raise UserError(f"{name} does not exist: the weights of the encoder {spec} were expected there")
    if (mean is None) != (std is None):
        raise UserError(f"{spec} was given one of mean and std: give both, or neither")
    backbone = kinds[kind]()
    if size:
        _divided(asked, backbone.patch)
        backbone.grid(size)
    return backbone


def _dino(path: Path) -> State:
    """The teacher of a whole checkpoint, else its student, or a state, without wrappers' prefixes and heads."""
    state = mocov3.read(path, ("teacher", "student", "state_dict"))
    if any(key.startswith(("teacher.", "module.teacher.")) for key in state):
        state = {key: tensor for key, tensor in state.items() if not key.startswith(("student.", "module.student."))}
    plain = {WRAPPERS.sub("", key): tensor for key, tensor in state.items()}
    return {key: tensor for key, tensor in plain.items() if not key.startswith("head.")}


STATES: Mapping[str, Callable[[Path], State]] = {
    "mae": lambda path: {k: tensor for k, tensor in read(path).items() if not k.startswith(tuple(DECODER))},
    "dmae": lambda path: dmae.encoder_of(read(path)),
    "mocov3": lambda path: mocov3.from_official(mocov3.read(path), False, str(path)),
    "mocov3-momentum": lambda path: mocov3.from_official(mocov3.read(path), True, str(path)),
    "dino": _dino,
}
"""How a file of each kind becomes the state of a plain ViT under timm's names."""


def _vit(asked: Asked, path: Path) -> ViT:
    heads, where = _heads(asked), str(path)
    with torch.device("cpu"):
        state = STATES[asked.kind](path)
    kernel = shape(state, "patch_embed.proj.weight", where)
    mean, std = _constants(asked, kernel[1])
    size = _trained(asked, kernel[-1], shape(state, "pos_embed", where)[1] - 1)
    backbone, _ = _backbone(state, where, heads, size, mean, std)
    check(state, backbone.network.state_dict(), where)
    if not _counting():
        backbone.network.load_state_dict(state)
    return backbone


def _convvit(asked: Asked, path: Path) -> Backbone:
    heads, where = _heads(asked), str(path)
    with torch.device("cpu"):
        state = read(path)
        kernels = [shape(state, f"patch_embed{stage}.proj.weight", where) for stage in (1, 2, 3)]
        mean, std = _constants(asked, kernels[0][1])
        patch = math.prod(kernel[-1] for kernel in kernels)
        size = _trained(asked, patch, shape(state, "pos_embed", where)[1])
        load = dmjd.load_backbone if asked.kind == "dmjd" else convmae.load_backbone
        backbone = load(path, heads=heads, size=size, mean=mean, std=std)
    return backbone.to("meta") if _counting() else backbone


def _published(asked: Asked, name: str) -> ViT:
    _bring(asked, "heads", "mean", "std")
    network = _timm(asked, name)
    mean, std, size = _own(network)
    with torch.device("meta"):  # all that is wrong is said before anything is fetched
        _divided(asked, ViT(network, mean, std).patch)
        backbone = create_vit(name, asked.size or size, mean, std, positions="learned")
    if _counting():
        return backbone
    base, arguments = backbone.origin or (name, {})
    fetched = _fetched(lambda: timm.create_model(base, pretrained=True, **arguments), asked.spec)
    return ViT(fetched, mean, std, origin=(base, arguments))


def _untrained(asked: Asked, name: str) -> ViT:
    _bring(asked, "heads")
    base, sizes = SMALL.get(name, (name, {}))
    network = _timm(asked, base, sizes)
    mean, std, size = _own(network)
    mean, std = asked.mean or mean, asked.std or std
    with torch.device("meta"):
        _divided(asked, ViT(network, mean, std).patch)
    return create_vit(name, asked.size or size, mean, std, positions="learned")


def _timm(asked: Asked, name: str, sizes: Mapping[str, int] | None = None) -> Any:
    """A timm model without memory, to be looked at. Raises UserError unless it is a plain ViT."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*(SMALL if sizes is not None else ()), *timm.list_models("*vit*")], n=3)
        raise UserError(f"timm knows no model {name!r}; did you mean {' or '.join(near) or 'vit_base_patch16_224'}?")
    try:
        with torch.device("meta"):
            network = timm.create_model(name, pretrained=False, **(sizes or {}))
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise UserError(f"{asked.spec} cannot be built: {(str(error).splitlines() or ['no reason'])[0]}") from error
    if not isinstance(network, VisionTransformer):
        raise UserError(f"{asked.spec} is a {type(network).__name__}, not a plain vision transformer; choose a ViT")
    return network


def _own(network: Any) -> tuple[Sequence[float], Sequence[float], Size]:
    """Mean, std and image size that timm states for a model."""
    cfg = network.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"]), (int(cfg["input_size"][1]), int(cfg["input_size"][2]))


def _exported(asked: Asked, path: Path) -> Backbone:
    _bring(asked, "heads", "mean", "std")
    folder = path if (path / "backbone.safetensors").is_file() else path / "export"
    weights, config = folder / "backbone.safetensors", folder / "config.json"
    if not weights.is_file() or not config.is_file():
        raise UserError(
            f"{path} holds no export, which a run has once it is finished: "
            f"finish it with remask resume {path}, or write one with remask export {path}"
        )
    try:
        content = json.loads(config.read_text())
        model, size = str(content["model"]), (int(content["image_size"][0]), int(content["image_size"][1]))
        mean, std = tuple(content["mean"]), tuple(content["std"])
        arguments = {key: v for key, v in content["arguments"].items() if key not in FIXED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{config} is damaged: export the run again with remask export {path}") from error
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    make = maker(model)
    keys = {"positions": "learned"} if make is create_vit else {}
    backbone = make(model, size, mean, std, overrides=given, **keys)
    with torch.device("cpu"):
        state = read(weights)
    check(state, backbone.network.state_dict(), str(weights))
    if not _counting():
        backbone.network.load_state_dict(dict(state))
    return backbone


def _heads(asked: Asked) -> int:
    if asked.heads is None:
        raise UserError(
            f"{asked.spec} does not tell its number of heads, which any weights fit: "
            f"give heads ({PUBLISHED_HEADS[asked.kind]})"
        )
    return asked.heads


def _constants(asked: Asked, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Those stated, or ImageNet's."""
    mean, std = asked.mean or MEAN, asked.std or STD
    if (len(mean), len(std)) != (channels, channels):
        stated = f"not {len(mean)}" if asked.mean else "and ImageNet's constants are for 3"
        raise UserError(
            f"{asked.spec} has {channels} channel{'s' * (channels != 1)}, {stated}: give as many in mean and std"
        )
    return mean, std


def _trained(asked: Asked, patch: int, tokens: int) -> Size | None:
    """The size asked for where the stored table has its tokens; else the table is that of a square."""
    size = asked.size
    whole = size and not (size[0] % patch or size[1] % patch)
    return size if size and whole and math.prod(grid_of(size, (patch, patch))) == tokens else None


def _bring(asked: Asked, *own: str) -> None:
    """Raise UserError where something was stated that the network brings along."""
    if stated := [name for name in own if getattr(asked, name) is not None]:
        raise UserError(f"{asked.spec} brings its own {' and '.join(stated)}: leave out what was given")


def _divided(asked: Asked, patch: Size) -> None:
    """Raise UserError where the patches do not divide the size that was asked for."""
    size = asked.size
    if size and (size[0] % patch[0] or size[1] % patch[1]):
        raise UserError(
            f"{asked.spec} cuts images into patches of {patch[0]}×{patch[1]} px, "
            f"which do not divide {size[0]}×{size[1]} px: give another size"
        )


__all__ = ["KINDS", "open_encoder"]
