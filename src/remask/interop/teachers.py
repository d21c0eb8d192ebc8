"""Networks of others as teachers: a specification such as "timm:NAME" → a network with a feature map, and constants.

timm:NAME                          any timm model, its last feature map before the final norm
untrained:NAME                     the same with random weights: the control that every teacher should beat
torchvision:NAME                   a torchvision model with `features`; mobilenet_v2 is read at layer 13, stride 16
torchvision:mobilenet_v2-tf        the same with weights from TensorFlow: its padding and its constants
clip:NAME or clip:FOLDER           transformers' CLIPVisionModel: patch tokens of the last hidden state
open_clip:NAME                     open_clip's image tower, its last feature map
tae:                               a tiny autoencoder's encoder (TAESD's layout, 32 channels, stride 8)

Those libraries fetch the weights, and only where none are given. `targets.map_teacher` takes the result. On the meta
device networks are made without weights, for counting.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.backbones.makers import refuse_tag
from remask.errors import UserError
from remask.interop.fetching import counting, fetched, package
from remask.interop.layouts import Layout
from remask.interop.loaded import Loaded, loaded_of, remember
from remask.interop.mae import MEAN, STD, check
from remask.interop.state_dicts import State, find
from remask.recipe.networks import check_teacher
from remask.types import Size

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of OpenAI's CLIP; open_clip states those of its models."""


class Opened(NamedTuple):
    """A teacher's network, images [B, 3, H, W] -> [B, width, h, w], and its images.

    mean, std   of pixel values 0..1, by which images are normalised
    size        pixels (height, width) of the images; None: any
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: Size | None
    width: int


class Map(nn.Module):
    """A network whose feature map is reach(network, images)."""

    def __init__(self, network: nn.Module, reach: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.reach = network, reach
        remember(self, loaded_of(network))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.reach(self.network, images)


def open_teacher(spec: str, weights: str | None = None) -> Opened:
    """The teacher that `spec` names; `weights` is a file (a folder for clip:), and None fetches the published ones.

    Raises UserError, in one line, for an unknown specification, a missing package, and weights that cannot be fetched
    or do not fit.
    """
    kind, _, name = spec.partition(":")
    path = Path(weights) if weights else None
    kinds: dict[str, Callable[[], Opened]] = {
        "timm": lambda: timm_teacher(name, path),
        "untrained": lambda: timm_teacher(name, fetch=False),
        "torchvision": lambda: torchvision_teacher(name.removesuffix("-tf"), path, tensorflow=name.endswith("-tf")),
        "clip": lambda: clip_teacher(weights or name),
        "open_clip": lambda: open_clip_teacher(name, path),
        "tae": lambda: autoencoder_teacher(path),
    }
    check_teacher(spec, weights)
    return kinds[kind]()


def timm_teacher(name: str, weights: Path | None = None, fetch: bool = True) -> Opened:
    """A timm model's last feature map or grid of tokens, before its final norm. A file may lack its classifier."""
    import timm

    if not fetch:
        refuse_tag(name)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(f"timm knows no model {name!r}; did you mean {' or '.join(near) or 'resnet50'}?")
    published = fetch and weights is None and not counting()
    network = fetched(lambda: timm.create_model(name, pretrained=published), f"timm:{name}")
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"timm's {name} gives no feature map; choose another teacher")
    cfg = network.pretrained_cfg
    if weights is not None:
        heads = cfg.get("classifier") or ()
        _load_strictly(network, weights, optional=(heads,) if isinstance(heads, str) else tuple(heads))

    def reach(model: Any, images: Tensor) -> Tensor:
        return model.forward_intermediates(images, indices=1, intermediates_only=True)[-1]

    return _opened(Map(network, reach), cfg["mean"], cfg["std"], cfg["input_size"][-2:])


def torchvision_teacher(
    name: str = "mobilenet_v2", weights: Path | None = None, layer: int | None = None, tensorflow: bool = False
) -> Opened:
    """`features[: layer + 1]` of a torchvision model. By default 13 of mobilenet_v2 (stride 16, 96 channels), else all.

    tensorflow   for weights converted from TensorFlow: convolutions of stride 2 pad below and to the right only, as
                 its "SAME" does for even sizes, and images are brought to -1..1
    """
    from torchvision import models

    if name not in models.list_models(models):
        raise UserError(f"torchvision knows no model {name!r}; try mobilenet_v2")
    published = "DEFAULT" if weights is None and not counting() else None
    network = fetched(lambda: models.get_model(name, weights=published), f"torchvision:{name}")
    if not isinstance(getattr(network, "features", None), nn.Sequential):
        raise UserError(f"torchvision's {name} has no `features` to read a map from; try mobilenet_v2")
    if weights is not None:
        _load_strictly(network, weights, optional=("classifier",))
    last = len(network.features) - 1
    layer = (13 if name == "mobilenet_v2" else last) if layer is None else layer
    if not 0 <= layer <= last:
        raise UserError(f"{name} has layers 0 to {last}, not {layer}")
    features = network.features[: layer + 1]
    remember(features, loaded_of(network))
    if not tensorflow:
        return _opened(features, MEAN, STD, (224, 224))
    pad_as_tensorflow(features)
    return _opened(features, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (224, 224))


def pad_as_tensorflow(network: nn.Module) -> None:
    """Let padded convolutions of stride 2 pad as TensorFlow's SAME does for even sizes: the larger half comes last."""
    for parent in [*network.modules()]:
        for name, conv in [*parent.named_children()]:
            if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2) and conv.padding != (0, 0):
                total = conv.kernel_size[0] - 2
                before, conv.padding = total // 2, (0, 0)
                after = total - before
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d((before, after, before, after)), conv))


def clip_teacher(name_or_folder: str) -> Opened:
    """Patch tokens of the last hidden state of transformers' CLIPVisionModel, class token dropped, as a map."""
    transformers = package("transformers", f"clip:{name_or_folder}")

    def make() -> Any:
        if not counting():
            return transformers.CLIPVisionModel.from_pretrained(name_or_folder)
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig.from_pretrained(name_or_folder))

    network = fetched(make, f"clip:{name_or_folder}")
    patch, side = network.config.patch_size, network.config.image_size

    def reach(model: Any, images: Tensor) -> Tensor:
        rows, cols = images.shape[-2] // patch, images.shape[-1] // patch
        return model(images).last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (rows, cols))

    return _opened(Map(network, reach), CLIP_MEAN, CLIP_STD, (side, side))


def open_clip_teacher(spec: str, weights: Path | None = None) -> Opened:
    """The last feature map of open_clip's image tower NAME/TAG, such as ViT-B-32/openai, before its final norm."""
    open_clip = package("open_clip", f"open_clip:{spec}")
    name, _, tag = spec.partition("/")
    if name not in open_clip.list_models():
        raise UserError(f"open_clip knows no model {name!r}; write NAME/TAG as open_clip.list_pretrained() lists them")
    if not (tag or weights or counting()):
        raise UserError(f"open_clip:{spec} names no weights; write NAME/TAG, such as ViT-B-32/openai, or give a file")
    published, device = None if counting() else str(weights or tag), torch.get_default_device()
    model = fetched(lambda: open_clip.create_model(name, pretrained=published, device=device), f"open_clip:{spec}")
    tower = model.visual

    def reach(visual: Any, images: Tensor) -> Tensor:
        return visual.forward_intermediates(images, indices=1, intermediates_only=True)["image_intermediates"][-1]

    stated = getattr(tower, "preprocess_cfg", {})
    mean, std = stated.get("mean", CLIP_MEAN), stated.get("std", CLIP_STD)
    side = tower.image_size
    return _opened(Map(tower, reach), mean, std, (side, side) if isinstance(side, int) else side)


def autoencoder_teacher(weights: Path | None) -> Opened:
    """The encoder of a tiny autoencoder (TAESD and its kin, MIT): latents of stride 8 from images in 0..1."""
    if weights is None:
        raise UserError("tae: needs a file: give the encoder of a tiny autoencoder in TAESD's layout as weights")
    with torch.device("cpu"):
        state = find(weights, Layout(("14.weight",))).state
    last = state.get("14.weight")
    if last is None or last.ndim != 4:
        raise UserError(f"{weights} is no encoder of a tiny autoencoder: it has no 14.weight of four axes")
    pooled = any(".pool." in key for key in state)
    return _opened(_autoencoder(last.shape[1], last.shape[0], pooled, state, weights), (0.0,) * 3, (1.0,) * 3, None)


class AutoencoderBlock(nn.Module):
    """Three 3×3 convolutions and a skip; in the last stage of newer ones a wide 1×1 branch is added first."""

    def __init__(self, width: int, pooled: bool) -> None:
        super().__init__()
        conv, relu = (lambda: nn.Conv2d(width, width, 3, padding=1)), nn.ReLU
        self.conv = nn.Sequential(conv(), relu(), conv(), relu(), conv())
        wide = 4 * width
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False), nn.GroupNorm(4, wide), relu(),
                nn.Conv2d(wide, width, 1, bias=False),
            )
            if pooled
            else None
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        x = x if self.pool is None else x + self.pool(x)
        return (self.conv(x) + x).relu()


def _autoencoder(width: int, latent: int, pooled: bool, state: State, weights: Path) -> nn.Sequential:
    """A convolution and a block, three stages that halve the side and have three blocks each, and a convolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), AutoencoderBlock(width, False)]
    for stage in range(3):
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [AutoencoderBlock(width, pooled and stage == 2) for _ in range(3)]
    network = nn.Sequential(*layers, nn.Conv2d(width, latent, 3, padding=1))
    _load(network, state, weights)
    return network


def _opened(network: nn.Module, mean: Sequence[float], std: Sequence[float], size: Sequence[int] | None) -> Opened:
    """A frozen network with its constants; its width is read from the map of one blank image."""
    network.eval().requires_grad_(False)
    height, width = size or (64, 64)
    with torch.no_grad():
        output = network(next(network.parameters()).new_zeros(1, 3, height, width))
    return Opened(network, tuple(mean), tuple(std), (height, width) if size else None, output.shape[1])


def _load_strictly(network: nn.Module, weights: Path, optional: tuple[str, ...] = ()) -> None:
    """Load a file, strictly but for the parts named `optional`, which are not needed."""
    own = network.state_dict()
    with torch.device("cpu"):
        file = find(weights, Layout((next(iter(own)),), names=frozenset(own)))
    prefixes = tuple(f"{name}." for name in optional)
    state = {key: tensor for key, tensor in file.state.items() if not key.startswith(prefixes)}
    _load(network, state, weights, prefixes)
    left_out = [key for key in file.state if key not in state]
    remember(network, Loaded(str(weights), len(state), file.copy, file.said, (*left_out, *file.left_out)))


def _load(network: nn.Module, state: State, weights: Path, optional: tuple[str, ...] = ()) -> None:
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith(optional)}
    check(state, own, str(weights))
    if not counting():
        network.load_state_dict(state, strict=not optional)


__all__ = [
    "Opened", "autoencoder_teacher", "clip_teacher", "open_clip_teacher", "open_teacher", "pad_as_tensorflow",
    "timm_teacher", "torchvision_teacher",
]  # fmt: skip
