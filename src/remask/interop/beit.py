"""BEiT's pre-training checkpoints in unilm's layout ⇄ ours (Bao et al., arXiv 2106.08254).

official                                                                  ours
cls_token  pos_embed  patch_embed.*  blocks.*  norm.*  rel_pos_bias.*     backbone.network.(the same)
mask_token                                                                sees.mask_token
lm_head.*                                                                 branches.0.head.predict.*
relative_position_index                                                   computed, not stored
"""

import math
from collections.abc import Mapping, Sequence

from timm.models.beit import Beit
from torch import Tensor

from remask.backbones.beit import CLASS_ROWS, BeitViT, create_beit
from remask.backbones.tables import resize_table
from remask.errors import UserError
from remask.interop.mae import check, resize_positions, shape, sizes
from remask.interop.state_dicts import Source, State, label, read
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Method
from remask.methods.beit import beit
from remask.targets import Target
from remask.types import Grid, Size

MEAN = STD = (0.5, 0.5, 0.5)
NETWORK, HEAD, MASK_TOKEN = "backbone.network.", "branches.0.head.predict.", "sees.mask_token"
TABLE, SHARED = "relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
BUFFERS = ("relative_position_index", "attn_mask")
"""Ends of the names of buffers that official files store, although they follow from the sizes."""

ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "rel_pos_bias.")
OURS = {**{key: NETWORK + key for key in ENCODER}, "mask_token": MASK_TOKEN, "lm_head.": HEAD}
OFFICIAL = {name: key for key, name in OURS.items()}


def from_official(state: State) -> dict[str, Tensor]:
    """A pre-training state, or a part of one -> the state dict of `methods.beit`. Raises UserError for unknown keys."""
    named = {counterpart(key, OURS, "BEiT"): tensor for key, tensor in weights(state).items()}
    return {name: tensor.flatten() if name == MASK_TOKEN else tensor for name, tensor in named.items()}


def to_official(method: Method) -> dict[str, Tensor]:
    """The inverse of `from_official`, bit for bit, indices included. UserError for tensors that have no place there."""
    if not isinstance(method.backbone, BeitViT):
        raise UserError(f"BEiT's layout holds a BEiT, not a {type(method.backbone.network).__name__}")
    state = {counterpart(name, OFFICIAL, "BEiT"): tensor for name, tensor in own_state(method).items()}
    return {**state, "mask_token": state["mask_token"].view(1, 1, -1), **buffers(method.backbone)}


def load(
    source: Source,
    target: Target,
    *,
    heads: int | None = None,
    size: Size | None = None,
    ratio: float = 74.5 / 196,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint, strictly, as a method that goes on training.

    target   the tokenizer whose ids it was trained on; its vocabulary must be that of the head
    heads    read from the position table; required where the weights hold none, since no other shape tells it
    size     pixels of the images it was trained on; needed only where they were not square
    ratio    of block-wise masking: the published 75 of 196 tokens
    """
    where, state = label(source), read(source, "beit", classifiers=True)
    backbone = vit_of(state, where, heads, size, mean, std)
    method = beit(backbone, Masking(ratio, Blocks()), target)
    check(weights(state), weights(to_official(method)), where)
    method.load_state_dict({**method.state_dict(), **from_official(state)})
    return method


def load_backbone(
    source: Source,
    *,
    heads: int | None = None,
    size: Size | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> BeitViT:
    """The encoder of a pre-training checkpoint, with or without its head, strictly. Arguments as in `load`."""
    where, state = label(source), weights(read(source, "beit"))
    backbone = vit_of(state, where, heads, size, mean, std)
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith(("mask_token", "lm_head."))}
    check(encoder, backbone.network.state_dict(), where)
    backbone.network.load_state_dict(encoder)
    return backbone


def classifier_state(state: State, network: Beit) -> dict[str, Tensor]:
    """The tensors of a pre-training state that fine-tuning loads into a timm classifier: the encoder, tables resized.

    A classifier has a table in every block: each starts as a copy of the shared one. Where it averages the patch
    tokens it has a new `fc_norm` and no `norm`, which is left out; the head is new. Load with strict=False.
    """
    own, stored = network.state_dict(), weights(state)
    tensors = {key: tensor for key, tensor in stored.items() if key in own and not key.startswith("head.")}
    if SHARED in stored and SHARED not in own:
        tensors |= {key: stored[SHARED].clone() for key in own if key.endswith(TABLE)}
    grid = int(network.patch_embed.grid_size[0]), int(network.patch_embed.grid_size[1])
    for key in (key for key in tensors if key.endswith(TABLE) and tensors[key].shape != own[key].shape):
        tensors[key] = resize_table(tensors[key], window_of(tensors[key], CLASS_ROWS, key), grid, CLASS_ROWS)
    if "pos_embed" in tensors:
        tensors["pos_embed"] = resize_positions(tensors["pos_embed"], grid)
    return tensors


def vit_of(
    state: State, where: str, heads: int | None, size: Size | None, mean: Sequence[float], std: Sequence[float]
) -> BeitViT:
    """A backbone of the sizes of an encoder's state, its weights not yet loaded."""
    table = next((key for key in state if key.endswith(TABLE)), None)
    table_heads = None if table is None else state[table].shape[1]
    if heads is None and table_heads is None:
        raise UserError(f"{where} holds no position table to tell the number of heads: state the model's own")
    if table_heads is not None and heads not in (None, table_heads):
        raise UserError(f"{where} has position tables for {table_heads} heads, not for the {heads} that were stated")
    heads = table_heads or heads or 0
    width, depth, mlp_ratio = sizes(state, where, "blocks.", heads)
    patch = shape(state, "patch_embed.proj.weight", where)[-1]
    if size is None:
        rows, cols = _grid_of(state, table, where)
        size = rows * patch, cols * patch
    flags = {
        "use_shared_rel_pos_bias": SHARED in state,
        "use_rel_pos_bias": f"blocks.0.attn.{TABLE}" in state,
        "use_abs_pos_emb": "pos_embed" in state,
        "qkv_bias": "blocks.0.attn.q_bias" in state,
        "init_values": 0.1 if "blocks.0.gamma_1" in state else 0.0,
    }
    overrides = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": mlp_ratio}
    return create_beit("beit_base_patch16_224", size, mean, std, overrides={**overrides, **flags})


def _grid_of(state: State, table: str | None, where: str) -> Grid:
    if table is not None:
        return window_of(state[table], CLASS_ROWS, f"{table} of {where}")
    tokens = shape(state, "pos_embed", where)[1] - 1
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"{where} has positions for {tokens} tokens, which are no square: give the image size")
    return side, side


def window_of(table: Tensor, extra: int, where: str) -> Grid:
    """The square window that a table of biases by relative offset was made for."""
    offsets = table.shape[0] - extra
    side = (math.isqrt(max(offsets, 0)) + 1) // 2
    if (2 * side - 1) ** 2 != offsets:
        raise UserError(f"{where} has {offsets} offsets, which are no square window: give the image size")
    return side, side


def weights(state: State) -> dict[str, Tensor]:
    """A state without the buffers that follow from the sizes."""
    return {key: tensor for key, tensor in state.items() if not key.endswith(BUFFERS)}


def buffers(backbone: BeitViT) -> dict[str, Tensor]:
    """The buffers of a backbone that follow from its sizes, as official code stores them."""
    return {name: buffer for name, buffer in backbone.network.named_buffers() if name.endswith(BUFFERS)}


def own_state(method: Method) -> dict[str, Tensor]:
    """A method's state without the tensors of its targets, which official files do not hold."""
    return {name: tensor for name, tensor in method.state_dict().items() if ".target." not in name}


def counterpart(key: str, names: Mapping[str, str], layout: str) -> str:
    """`key` with its prefix replaced by that in `names`. Raises UserError where `names` has no prefix of it."""
    old = next((prefix for prefix in names if key.startswith(prefix)), None)
    if old is None:
        raise UserError(f"{key} has no counterpart: {layout}'s layout knows {', '.join(names)}")
    return names[old] + key[len(old) :]


__all__ = [
    "buffers", "classifier_state", "counterpart", "from_official", "label", "load", "load_backbone", "own_state",
    "to_official", "vit_of", "weights", "window_of",
]  # fmt: skip
