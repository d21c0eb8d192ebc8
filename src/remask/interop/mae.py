"""MAE's official checkpoints ⇄ ours (He et al., arXiv 2111.06377). Every tensor is taken as it is stored, tables too.

official                                                          ours
cls_token  pos_embed  patch_embed.*  blocks.*  norm.*             backbone.network.(the same)
mask_token                                                        branches.0.head.mask_token
decoder_embed.*  decoder_blocks.*  decoder_norm.*  decoder_pred.* branches.0.head.{embed,blocks,norm,predict}.*
decoder_pos_embed                                                 branches.0.head.positions, without the class row
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from remask.backbones import tables
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.files.tensors import refuse_non_finite
from remask.interop.state_dicts import Source, State, label, read
from remask.masking import Masking
from remask.method import Method
from remask.methods.mae import mae
from remask.targets import Pixels
from remask.types import Grid, Size

MEAN, STD = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")
DECODER = {
    "mask_token": "mask_token",
    "decoder_embed.": "embed.",
    "decoder_blocks.": "blocks.",
    "decoder_norm.": "norm.",
    "decoder_pred.": "predict.",
    "decoder_pos_embed": "positions",
}
NETWORK, HEAD, POSITIONS = "backbone.network.", "branches.0.head.", "decoder_pos_embed"
OURS = {**{key: NETWORK + key for key in ENCODER}, **{key: HEAD + name for key, name in DECODER.items()}}
OFFICIAL = {name: key for key, name in OURS.items()}


def from_official(state: State) -> dict[str, Tensor]:
    """A pre-training state, or a part of one -> the state dict of `methods.mae`. Raises UserError for unknown keys."""
    return {
        renamed(key, OURS): _without_class_row(tensor) if key == POSITIONS else tensor for key, tensor in state.items()
    }


def to_official(method: Method) -> dict[str, Tensor]:
    """The inverse of `from_official`, bit for bit. Raises UserError for tensors without a place in the layout."""
    if method.backbone.prefix != 1:
        raise UserError(f"MAE's layout has one class token, the backbone {method.backbone.prefix} prefix tokens")
    state = {renamed(name, OFFICIAL): tensor for name, tensor in method.state_dict().items()}
    return {key: F.pad(tensor, (0, 0, 1, 0))[None] if key == POSITIONS else tensor for key, tensor in state.items()}


def load(
    source: Source,
    *,
    heads: int,
    decoder_heads: int,
    size: Size | None = None,
    ratio: float = 0.75,
    per_patch: bool = True,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint, strictly, as a method that goes on training.

    heads, decoder_heads   required, never guessed, since weights fit any number (ViT-B 12, L and H 16; decoder 16)
    size                   pixels of the images it was trained on; needed only where they were not square
    ratio, per_patch       masking ratio and normalised pixels, which the weights do not tell
    """
    where, state = label(source), read(source, "mae", classifiers=True)
    if not any(key.startswith("decoder_") for key in state):
        raise UserError(f"{where} holds no decoder, as the files MAE published: load its backbone with load_backbone")
    backbone, size = _backbone(state, where, heads, size, mean, std)
    width, depth, mlp_ratio = sizes(state, where, "decoder_blocks.", decoder_heads)
    target = Pixels(backbone.patch, mean, std, per_patch)
    method = mae(backbone, Masking(ratio), target, size, width, depth, decoder_heads, mlp_ratio)
    check(state, to_official(method), where)
    method.load_state_dict(from_official(state))
    return method


def load_backbone(
    source: Source, *, heads: int, size: Size | None = None, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> ViT:
    """The encoder of a pre-training checkpoint, with or without a decoder in it, strictly. Arguments as in `load`."""
    where, state = label(source), read(source)
    backbone, _ = _backbone(state, where, heads, size, mean, std)
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith(tuple(DECODER))}
    check(encoder, backbone.network.state_dict(), where)
    backbone.network.load_state_dict(encoder)
    return backbone


def classifier_state(state: State, network: VisionTransformer) -> dict[str, Tensor]:
    """The tensors of an official pre-training state that MAE's fine-tuning loads into a timm classifier: the encoder.

    The position table is resized to the network's grid. Where the network averages the patch tokens it has a new
    `fc_norm` and no `norm`, which is left out; the head is new. Load the result with strict=False.
    """
    own, stem = network.state_dict(), network.patch_embed
    tensors = {key: state[key] for key in state if key in own and not key.startswith("head.")}
    prefix, (rows, cols) = network.num_prefix_tokens, stem.grid_size
    return {**tensors, "pos_embed": resize_positions(state["pos_embed"], (int(rows), int(cols)), prefix)}


def resize_positions(table: Tensor, grid: Grid, prefix: int = 1) -> Tensor:
    """A square table [1, prefix + N, D] for another grid: bicubic, corners not aligned, not antialiased (as MAE's)."""
    side = math.isqrt(table.shape[1] - prefix)
    return tables.resize_positions(table, (side, side), grid, prefix, antialias=False)


def check(state: State, expected: State, where: str) -> None:
    """Raise UserError unless names, shapes and kinds of number are those expected and all weights are finite."""
    common = [key for key in state if key in expected]
    faults = {
        "missing": [key for key in expected if key not in state],
        "unknown": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {[*state[key].shape]}, not {[*expected[key].shape]}"
            for key in common
            if state[key].shape != expected[key].shape
        ],
        "of integers where weights were expected": [
            key for key in common if expected[key].is_floating_point() and not state[key].is_floating_point()
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {_few(keys)}" for fault, keys in faults.items() if keys)
        raise UserError(f"{where} is not the checkpoint that was asked for: {listed}")
    refuse_non_finite(state, where)


def _few(keys: Sequence[str], count: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(keys[:count]) + f" and {len(keys) - count} more" * (len(keys) > count)


def renamed(key: str, names: Mapping[str, str]) -> str:
    """`key` with its prefix replaced by that in `names`. Raises UserError where `names` has no prefix of it."""
    old = next((prefix for prefix in names if key.startswith(prefix)), None)
    if old is None:
        raise UserError(f"{key} has no counterpart: MAE's layout knows {', '.join(names)}")
    return names[old] + key[len(old) :]


def shape(state: State, key: str, where: str) -> torch.Size:
    """The shape of a tensor that sizes are read from. Raises UserError where it is missing."""
    if key not in state:
        raise UserError(f"{where} is not the checkpoint that was asked for: missing: {key}")
    return state[key].shape


def sizes(state: State, where: str, blocks: str, heads: int) -> tuple[int, int, float]:
    """Width, depth and MLP ratio of a stack of blocks, read from its shapes; the head count must divide the width."""
    hidden, width = shape(state, f"{blocks}0.mlp.fc1.weight", where)
    if heads < 1 or width % heads:
        raise UserError(
            f"{heads} heads do not divide the width {width} of {blocks}* in {where}: "
            "shapes do not tell the number and a wrong one loads silently, so state the model's own"
        )
    return width, len({key.split(".")[1] for key in state if key.startswith(blocks)}), hidden / width


def _backbone(
    state: State, where: str, heads: int, size: Size | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[ViT, Size]:
    """A backbone of the state's sizes, its weights not yet loaded, and the image size of its position table."""
    if token := next((key for key in ("dist_token", "reg_token", "register_tokens") if key in state), None):
        raise UserError(
            f"{where} holds a ViT with {token}, for which these files' layout has no place: "
            "open it by its name in timm, as timm:NAME"
        )
    width, depth, mlp_ratio = sizes(state, where, "blocks.", heads)
    patch = shape(state, "patch_embed.proj.weight", where)[-1]
    tokens = shape(state, "pos_embed", where)[1] - 1
    side = math.isqrt(tokens)
    if size is None and side * side != tokens:
        raise UserError(f"{where} has positions for {tokens} tokens, which are no square: give the image size")
    size = size or (side * patch, side * patch)
    overrides = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": mlp_ratio}
    return create_vit("vit_base_patch16_224", size, mean, std, overrides=overrides), size


def _without_class_row(table: Tensor) -> Tensor:
    if bool(table[:, 0].any()):
        raise UserError("decoder_pos_embed gives the class token a position of its own, which has no place here")
    return table[0, 1:]


__all__ = [
    "check", "classifier_state", "from_official", "load", "load_backbone", "renamed",
    "resize_positions", "shape", "sizes", "to_official",
]  # fmt: skip
