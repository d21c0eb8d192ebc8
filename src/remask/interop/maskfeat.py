"""MaskFeat's ViT checkpoints, SlowFast's and mmpretrain's, ⇄ ours (Wei et al., arXiv 2112.09133).

SlowFast                          mmpretrain                          ours
cls_token  pos_embed              backbone.(the same)                 backbone.network.(the same)
mask_token                        backbone.mask_token                 sees.mask_token
patch_embed.proj.*                backbone.patch_embed.projection.*   backbone.network.patch_embed.proj.*
blocks.i.*                        backbone.layers.i.*                 backbone.network.blocks.i.*
norm1  norm2  mlp.fc1  mlp.fc2    ln1  ln2  ffn.layers.0.0  .1        inside a block: SlowFast's names
pred_head.transforms.0.0.*        backbone.ln1.*                      backbone.network.norm.*
pred_head.projections.0.*         neck.fc.*                           branches.0.head.predict.*
hogs.*                            target_generator.*                  constants of the target, not stored
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.interop import mae, state_dicts
from remask.interop.beit import HEAD, MASK_TOKEN, NETWORK, counterpart, own_state
from remask.interop.mae import MEAN, STD, check, shape, sizes
from remask.interop.state_dicts import Source, State, label
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Method
from remask.methods.maskfeat import maskfeat
from remask.targets import Hog
from remask.types import Size

Name = Literal["slowfast", "mmpretrain"]


class Layout(NamedTuple):
    """The names of a code base.

    outside, inside   official prefix -> ours, outside of the blocks and inside of one
    blocks            the official prefix of the blocks
    constants         the official prefix of the target's constants, which are not weights
    """

    outside: Mapping[str, str]
    blocks: str
    inside: Mapping[str, str]
    constants: str


SAME = {name: name for name in ("norm1.", "norm2.", "attn.", "mlp.")}
LAYOUTS: Mapping[str, Layout] = {
    "slowfast": Layout(
        {
            "cls_token": NETWORK + "cls_token", "pos_embed": NETWORK + "pos_embed", "mask_token": MASK_TOKEN,
            "patch_embed.": NETWORK + "patch_embed.", "norm.": NETWORK + "norm.",  # of a classifier
            "pred_head.transforms.0.0.": NETWORK + "norm.", "pred_head.projections.0.": HEAD,
        },
        "blocks.", SAME, "hogs.",
    ),
    "mmpretrain": Layout(
        {
            "backbone.cls_token": NETWORK + "cls_token", "backbone.pos_embed": NETWORK + "pos_embed",
            "backbone.mask_token": MASK_TOKEN, "backbone.patch_embed.projection.": NETWORK + "patch_embed.proj.",
            "backbone.ln1.": NETWORK + "norm.", "neck.fc.": HEAD,
        },
        "backbone.layers.",
        {
            "ln1.": "norm1.", "ln2.": "norm2.", "attn.": "attn.",
            "ffn.layers.0.0.": "mlp.fc1.", "ffn.layers.1.": "mlp.fc2.",
        },
        "target_generator.",
    ),
}  # fmt: skip


def from_official(state: State) -> dict[str, Tensor]:
    """A pre-training state of either layout, or a part of one -> the state dict of `methods.maskfeat`.

    Raises UserError for unknown keys.
    """
    name = layout_of(state)
    layout = LAYOUTS[name]
    weights = {key: tensor for key, tensor in state.items() if not key.startswith(layout.constants)}
    named = {_renamed(key, name, layout, NETWORK + "blocks."): tensor for key, tensor in weights.items()}
    return {key: tensor.flatten() if key == MASK_TOKEN else tensor for key, tensor in named.items()}


def to_official(method: Method, layout: Name = "slowfast") -> dict[str, Tensor]:
    """The inverse of `from_official`, bit for bit. Raises UserError for tensors without a place in the layout."""
    if not isinstance(method.backbone, ViT) or method.backbone.prefix != 1:
        network_name = type(method.backbone.network).__name__
        raise UserError(f"MaskFeat's layouts hold a ViT with one prefix token, its class, and not this {network_name}")
    theirs = LAYOUTS[layout]
    back = Layout(_inverse(theirs.outside), NETWORK + "blocks.", _inverse(theirs.inside), theirs.constants)
    state = {_renamed(key, layout, back, theirs.blocks): tensor for key, tensor in own_state(method).items()}
    token = "backbone.mask_token" if layout == "mmpretrain" else "mask_token"
    return {**state, token: state[token].view(1, 1, -1)}


def load(
    source: Source,
    *,
    heads: int,
    size: Size | None = None,
    ratio: float = 78 / 196,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint of either layout, strictly, as a method that goes on training.

    heads   required, never guessed, since weights fit any number (ViT-B 12, L 16)
    size    pixels of the images it was trained on; needed only where they were not square
    ratio   of block-wise masking: the published 78 of 196 tokens
    The target is the HOG of the code base: mmpretrain weighs pixels by a Gaussian window.
    """
    where, state = label(source), read(source, classifiers=True)
    backbone = _backbone(state, where, heads, size, mean, std)
    windowed = layout_of(state) == "mmpretrain"
    target = Hog(backbone.patch, mean, std, flavour="sobel", norm="l2", gaussian=windowed)
    method = maskfeat(backbone, Masking(ratio, Blocks(15 / 196, 78 / 196), count="maskfeat"), target)
    check(_without_constants(state), to_official(method, layout_of(state)), where)
    method.load_state_dict(from_official(state))
    return method


def load_backbone(
    source: Source, *, heads: int, size: Size | None = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> ViT:
    """The encoder of a pre-training checkpoint, its final norm included, strictly. Arguments as in `load`."""
    where, state = label(source), read(source)
    backbone = _backbone(state, where, heads, size, mean, std)
    check(encoder := encoder_of(state), backbone.network.state_dict(), where)
    backbone.network.load_state_dict(encoder)
    return backbone


def classifier_state(state: State, network: VisionTransformer) -> dict[str, Tensor]:
    """The tensors that fine-tuning loads into a timm classifier, as in `interop.mae.classifier_state`."""
    return mae.classifier_state(encoder_of(state), network)


def layout_of(state: State) -> Name:
    """The code base whose names a state has."""
    return "mmpretrain" if any(key.startswith(("backbone.", "neck.")) for key in state) else "slowfast"


def read(source: Source, classifiers: bool = False) -> State:
    """The tensors of a file or dict in the names of its code base."""
    return state_dicts.read(source, "maskfeat", classifiers)


def _backbone(
    state: State, where: str, heads: int, size: Size | None, mean: Sequence[float], std: Sequence[float]
) -> ViT:
    """A backbone of the state's sizes, its weights not yet loaded."""
    encoder = encoder_of(state)
    width, depth, mlp_ratio = sizes(encoder, where, "blocks.", heads)
    patch = shape(encoder, "patch_embed.proj.weight", where)[-1]
    tokens = shape(encoder, "pos_embed", where)[1] - 1
    side = math.isqrt(tokens)
    if size is None and side * side != tokens:
        raise UserError(f"{where} has positions for {tokens} tokens, which are no square: give the image size")
    overrides = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": mlp_ratio}
    size = size or (side * patch, side * patch)
    return create_vit("vit_base_patch16_224", size, mean, std, positions="learned", overrides=overrides)


def encoder_of(state: State) -> dict[str, Tensor]:
    """The tensors of the backbone in a state, under timm's names."""
    named = from_official(state)
    return {key.removeprefix(NETWORK): tensor for key, tensor in named.items() if key.startswith(NETWORK)}


def _without_constants(state: State) -> dict[str, Tensor]:
    constants = LAYOUTS[layout_of(state)].constants
    return {key: tensor for key, tensor in state.items() if not key.startswith(constants)}


def _renamed(key: str, name: str, layout: Layout, blocks: str) -> str:
    """A key in the names of the other side, whose blocks begin with `blocks`."""
    if not key.startswith(layout.blocks):
        return counterpart(key, layout.outside, f"{name}'s MaskFeat")
    number, rest = key.removeprefix(layout.blocks).split(".", 1)
    return f"{blocks}{number}.{counterpart(rest, layout.inside, name)}"


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: key for key, ours in names.items()}


__all__ = [
    "classifier_state",
    "encoder_of",
    "from_official",
    "layout_of",
    "load",
    "load_backbone",
    "read",
    "to_official",
]
