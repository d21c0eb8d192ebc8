"""The backbone that a downstream task starts from: any encoder that can be opened, rebuilt for its images."""

from collections.abc import Callable, Sequence
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from remask.backbones import Backbone
from remask.backbones.cmt_network import Cmt
from remask.backbones.hierarchical import Hierarchical, create_hierarchical
from remask.backbones.makers import creator_of, refuse_tag
from remask.backbones.swin import create_swin
from remask.backbones.tables import resize_state
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.interop.encoders import FIXED, open_encoder
from remask.interop.fetching import fetched
from remask.interop.loaded import Loaded, loaded_of, remember, resized
from remask.interop.mae import check
from remask.recipe.networks import FILES
from remask.types import Size


def start(
    spec: str,
    size: Size | None = None,
    *,
    heads: int | Sequence[int] | None = None,
    normalise: str | None = None,
    drop_path: float = 0.0,
    untrained: bool = False,
) -> tuple[Backbone, Size]:
    """The backbone that `spec` names, for images of `size` pixels, and that size: the network's own by default.

    Tables of positions are resized, and trained from here on.

    spec        as for `open_encoder`; timm: and untrained: take any network that returns a map of features too
    heads       of attention, where a file does not tell them
    normalise   how the images of a file's network were normalised, where its kind does not tell: imagenet, half, clip
    untrained   the same network with first weights, a ViT's positions by sine and cosine: the control
    Raises UserError as `open_encoder` does, and where the network does not take the size.
    """
    kind, _, name = spec.partition(":")
    if kind == "untrained":
        refuse_tag(name)
    if kind in ("timm", "untrained") and creator_of(name) is create_hierarchical:
        size = size or _published_size(name)
        return _with_maps(spec, name, size, drop_path, fetch=kind == "timm" and not untrained), size
    made_for = size if kind in FILES else None  # not to be read from a Swin, and from a table that is not square
    source: Any = open_encoder(spec, heads=heads, size=made_for, normalise=normalise)
    if source.origin is None:
        raise UserError(f"{spec} does not say how it is rebuilt: export it again with remask export")
    model, arguments = source.origin
    make = creator_of(model)
    overrides = {key: value for key, value in arguments.items() if key not in FIXED}
    before = _built_for(source, arguments)
    size = size or before
    keys: dict[str, Any] = {}
    if make is create_vit:
        several = source.class_tokens if source.class_tokens > 1 else None
        keys = {"positions": "sincos" if untrained else "learned", "class_tokens": several}
    fresh = _rebuilt(make, model, size, constants(source), overrides, drop_path=drop_path, **keys)
    if not untrained and kind != "untrained":
        state = resize_state(source.network.state_dict(), fresh.network, before, size, fresh.patch)
        check(state, fresh.network.state_dict(), spec)
        fresh.network.load_state_dict(state)
        if loaded := loaded_of(source):
            remember(fresh, loaded._replace(said=(*loaded.said, *resized(state, before, size, fresh.patch))))
    fresh.normalise.read_by(source.normalise.levels)
    for name, parameter in fresh.network.named_parameters():
        if name == "pos_embed":  # fixed in pre-training, trained from here on (MAE, ConvMAE)
            parameter.requires_grad_(True)
    return fresh, size


def _with_maps(spec: str, name: str, size: Size, drop_path: float, fetch: bool) -> Any:
    """A timm network that returns a map of features; with published weights where they are to be fetched."""
    fresh: Any = create_hierarchical(name, size, *_published(name), drop_path=drop_path)
    if fetch:
        before = _published_size(name)
        network = fetched(lambda: timm.create_model(name, pretrained=True, num_classes=0), spec)
        state = resize_state(network.state_dict(), fresh.network, before, size, fresh.patch)
        check(state, fresh.network.state_dict(), spec)
        fresh.network.load_state_dict(state)
        remember(fresh, Loaded(spec, len(state), said=resized(state, before, size, fresh.patch)))
    return fresh


def _rebuilt(
    make: Callable[..., Any], model: str, size: Size, constants: Sequence[Any], overrides: dict[str, Any], **keys: Any
) -> Any:
    """A network rebuilt with its own arguments; a Swin's window is replaced where it does not tile the size."""
    try:
        return make(model, size, *constants, overrides=overrides, **keys)
    except UserError:
        if make is not create_swin or "window_size" not in overrides:
            raise
    return make(model, size, *constants, overrides={k: v for k, v in overrides.items() if k != "window_size"}, **keys)


def constants(backbone: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixel values in 0..1 that a backbone normalises by."""
    shift, scale = backbone.normalise.shift.flatten(), backbone.normalise.scale.flatten()
    return tuple((shift / 255).tolist()), tuple((1 / (scale * 255)).tolist())


def _built_for(backbone: Any, arguments: dict[str, Any]) -> Size:
    """Pixels of the images whose tables a backbone holds."""
    network = backbone.network
    if size := network.built_for if isinstance(network, Cmt) else arguments.get("img_size"):
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    if isinstance(backbone, Hierarchical):  # convolutions, which hold no table
        return backbone.size
    rows, columns = backbone.built_for
    return rows * backbone.patch[0], columns * backbone.patch[1]


def _published(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that timm states for a model; ImageNet's where it states none."""
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return (tuple(cfg.mean), tuple(cfg.std)) if cfg else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _published_size(name: str) -> Size:
    """Pixels of the images that timm states for a model; 224 where it states nothing."""
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return (int(cfg.input_size[1]), int(cfg.input_size[2])) if cfg else (224, 224)


__all__ = ["constants", "start"]
