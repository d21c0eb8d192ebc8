"""Backbones by specification, to be frozen as a target's `f` or started from: "mae:FILE" and the like → a Backbone.

mae:FILE  dmae:FILE                  MAE's and DMAE's pre-training checkpoints, without decoder and heads
mocov3:FILE  mocov3-momentum:FILE    MoCo v3's, of the base or of the momentum encoder
dino:FILE                            a ViT under timm's names, as DINO's (Caron et al., arXiv 2104.14294); of a whole
                                     checkpoint the teacher, else the student; without heads and prefixes of wrappers
dmjd:FILE  convmae:FILE              DMJD's and ConvMAE's ConViT
beit:FILE  maskfeat:FILE             BEiT's of unilm; MaskFeat's of SlowFast or mmpretrain
simmim:FILE  fastmim:FILE            SimMIM's ViT and Swin; FastMIM's ViT, Swin, PVTv2 and CMT
timm:NAME  untrained:NAME            a timm VisionTransformer with published weights, or with random ones: the control
run:RUN                              the export of a run, or a folder that `remask export` wrote

Settings that weights do not tell are required and never guessed. On the meta device networks are made without weights,
for counting.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from remask.backbones import Backbone
from remask.backbones.makers import creator_of, refuse_tag
from remask.backbones.vit import SMALL, ViT, create_vit
from remask.errors import UserError
from remask.files.escaping import quoted
from remask.files.manifest import refuse_damaged
from remask.files.paths import home_expanded
from remask.files.tensors import content_of, refuse_non_finite
from remask.files.text import read_json
from remask.images.levels import levels_of
from remask.interop.encoder_files import NORMALISATIONS, EncoderOptions, open_file
from remask.interop.fetching import counting, fetched
from remask.interop.loaded import Loaded, remember, stated
from remask.interop.mae import check
from remask.recipe.networks import FILES, check_encoder, split_spec
from remask.types import Size

FIXED = ("img_size", "in_chans", "num_classes", "global_pool", "fc_norm")
"""Arguments that a `create_…` function sets itself."""


def open_encoder(
    spec: str,
    *,
    heads: int | Sequence[int] | None = None,
    size: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    normalise: str | None = None,
) -> Backbone:
    """The backbone that `spec` names, with its weights; nothing in it is frozen yet. `loaded_of` has a record of them.

    spec        settings may follow it, as "mae:FILE,heads=12"; they are heads, normalise, mean and std
    heads       of attention, needed for files without position tables: weights fit any number; one for each stage of
                FastMIM's PVTv2. timm: and run: have their own
    size        pixels of the images it will see: its patches must divide them. A stored table that is not square is
                taken for this size; a square one is resized when it is used. A Swin's file needs it
    normalise   the same by the name of who trained it: imagenet, half or clip
    mean, std   of pixel values 0..1 per channel; those of their papers for files, and needed for dino: and where those
                have other than three channels. timm: and run: have their own
    An export holds no fusions of a ConvViT, which its masked views alone need: they start untrained.
    Raises UserError, in one line, for an unknown specification, weights that cannot be fetched or do not fit, and
    required settings that are missing.
    """
    options = _options(spec, heads, size, normalise, mean, std)
    kind, _, name = options.spec.partition(":")
    path = Path(home_expanded(name))
    kinds: dict[str, Callable[[], Backbone]] = {
        **{file: lambda: open_file(options, path) for file in FILES},
        "timm": lambda: _published(options, name),
        "untrained": lambda: _untrained(options, name),
        "run": lambda: _exported(options, path),
    }
    check_encoder(spec)
    backbone = kinds[kind]()
    if size:
        _check_divided(options, backbone.patch)
        backbone.grid(size)
    return backbone


def _options(
    spec: str, heads: Any, size: Size | None, normalise: str | None, mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> EncoderOptions:  # fmt: skip
    """The options in the arguments and in the text behind a specification. Raises UserError where the two differ."""
    plain, written = split_spec(spec)
    heads = stated(plain, "heads", heads, written.get("heads"))
    normalise = stated(plain, "normalise", normalise, written.get("normalise"))
    mean, std = (stated(plain, key, v, written.get(key)) for key, v in (("mean", mean), ("std", std)))
    if (mean is None) != (std is None):
        raise UserError(f"{plain} was given one of mean and std: give both, or neither")
    if normalise is not None:
        if normalise not in NORMALISATIONS:
            raise UserError(f"{plain}: normalise={normalise} is not known; choose {', '.join(NORMALISATIONS)}")
        if mean is not None:
            raise UserError(f"{plain} was given normalise, and mean and std: give one or the other")
        mean, std = NORMALISATIONS[normalise]
    return EncoderOptions(plain, heads, size, mean, std)


def _published(options: EncoderOptions, name: str) -> ViT:
    _refuse_stated(options, "heads", "mean", "std")
    network = _timm(options, name)
    mean, std, size = _timm_constants(network)
    with torch.device("meta"):  # faults are reported before anything is fetched
        _check_divided(options, ViT(network, mean, std).patch)
        backbone = create_vit(name, options.size or size, mean, std, positions="learned")
    if counting():
        return backbone
    base, arguments = backbone.origin or (name, {})
    network = fetched(lambda: timm.create_model(base, pretrained=True, **arguments), options.spec)
    refuse_non_finite(network.state_dict(), options.spec)
    backbone = ViT(network, mean, std, origin=(base, arguments))
    remember(backbone, Loaded(options.spec, len(network.state_dict())))
    return backbone


def _untrained(options: EncoderOptions, name: str) -> ViT:
    _refuse_stated(options, "heads")
    refuse_tag(name)
    base, sizes = SMALL.get(name, (name, {}))
    network = _timm(options, base, sizes)
    mean, std, size = _timm_constants(network)
    mean, std = options.mean or mean, options.std or std
    with torch.device("meta"):
        _check_divided(options, ViT(network, mean, std).patch)
    return create_vit(name, options.size or size, mean, std, positions="learned")


def _timm(options: EncoderOptions, name: str, sizes: Mapping[str, int] | None = None) -> Any:
    """A timm model on the meta device, for its settings. Raises UserError unless it is a plain ViT."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*(SMALL if sizes is not None else ()), *timm.list_models("*vit*")], n=3)
        raise UserError(f"timm knows no model {name!r}; did you mean {' or '.join(near) or 'vit_base_patch16_224'}?")
    try:
        with torch.device("meta"):
            network = timm.create_model(name, pretrained=False, **(sizes or {}))
    except Exception as error:  # timm may raise anything
        raise UserError(f"{options.spec} cannot be built: {(str(error).splitlines() or ['no reason'])[0]}") from error
    if not isinstance(network, VisionTransformer):
        raise UserError(f"{options.spec} is a {type(network).__name__}, not a plain vision transformer; choose a ViT")
    return network


def _timm_constants(network: Any) -> tuple[Sequence[float], Sequence[float], Size]:
    """Mean, std and image size that timm states for a model."""
    cfg = network.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"]), (int(cfg["input_size"][1]), int(cfg["input_size"][2]))


def _exported(options: EncoderOptions, path: Path) -> Backbone:
    _refuse_stated(options, "heads", "mean", "std")
    folder = path if (path / "backbone.safetensors").is_file() else path / "export"
    weights, config = folder / "backbone.safetensors", folder / "config.json"
    if not weights.is_file() or not config.is_file():
        raise UserError(
            f"{path} holds no export, which a run has once it is finished: "
            f"finish it with remask resume {quoted(path)}, or write one with remask export {quoted(path)}"
        )
    refuse_damaged(folder)
    try:
        content = read_json(config)
        model, size = str(content["model"]), (int(content["image_size"][0]), int(content["image_size"][1]))
        mean, std = tuple(content["mean"]), tuple(content["std"])
        arguments = {key: v for key, v in content["arguments"].items() if key not in FIXED}
        levels = levels_of(content.get("range"))
        several = int(content.get("class_tokens", 1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{config} is damaged: export the run again with remask export {quoted(path)}") from error
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    make = creator_of(model)
    keys: dict[str, Any] = {}
    if make is create_vit:
        keys = {"positions": "learned", "class_tokens": several if several > 1 else None}
    backbone = make(model, size, mean, std, overrides=overrides, **keys)
    backbone.normalise.read_by(levels)
    with torch.device("cpu"):
        state = content_of(weights)
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{weights} is damaged: export the run again with remask export {quoted(path)}")
    check(state, backbone.network.state_dict(), str(weights))
    if not counting():
        backbone.network.load_state_dict(dict(state))
    remember(backbone, Loaded(options.spec, len(state), said=_outdated(path, weights)))
    return backbone


def _outdated(run: Path, weights: Path) -> tuple[str, ...]:
    """A line where a run has a checkpoint that was written after its export: it has been trained further since."""
    last = run / "checkpoints" / "last" / "state.json"
    if not last.is_file() or last.stat().st_mtime <= weights.stat().st_mtime:
        return ()
    return (f"its export is older than its last checkpoint; remask export {quoted(run)} writes it anew",)


def _refuse_stated(options: EncoderOptions, *names: str) -> None:
    """Raise UserError where one of these settings was stated, for a network that has its own."""
    if stated := [name for name in names if getattr(options, name) is not None]:
        raise UserError(f"{options.spec} brings its own {' and '.join(stated)}: leave out what was given")


def _check_divided(options: EncoderOptions, patch: Size) -> None:
    """Raise UserError where the patches do not divide the size in `options`."""
    size = options.size
    if size and (size[0] % patch[0] or size[1] % patch[1]):
        raise UserError(
            f"{options.spec} cuts images into patches of {patch[0]}×{patch[1]} px, "
            f"which do not divide {size[0]}×{size[1]} px: give another size"
        )


__all__ = ["open_encoder"]
