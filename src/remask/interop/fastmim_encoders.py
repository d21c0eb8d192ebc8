"""FastMIM's encoders (arXiv 2212.06593): official names ⇄ ours, and networks of the sizes that weights tell."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor

from remask.backbones.cmt_network import STAGES, Cmt
from remask.backbones.hierarchical import Hierarchical, create_hierarchical
from remask.backbones.swin import Swin, create_swin
from remask.backbones.tables import BIASES, resize_state
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.interop import simmim
from remask.interop.beit import counterpart, window_of
from remask.interop.mae import ENCODER, shape, sizes
from remask.interop.state_dicts import State
from remask.tokens import grid_of
from remask.types import Size

Heads: TypeAlias = int | Sequence[int] | None
Network: TypeAlias = ViT | Swin | Hierarchical
Plan: TypeAlias = tuple[dict[str, Any], Size]
"""Arguments of a network, and the size of the images that its position tables are for."""

PREFIX = "encoder."
STAGED = {"patch_embed": "downsample", "block": "blocks", "norm": "norm"}
TURNED = {inner: outer for outer, inner in STAGED.items()}
PUBLISHED: Size = (128, 128)
"""Pixels of FastMIM's images, for networks whose weights do not depend on the size."""


def encoder_state(backbone: Any) -> dict[str, Tensor]:
    """A backbone's tensors, and a Swin's buffers, under their official names. UserError for another network."""
    network = getattr(backbone, "network", backbone)
    if isinstance(backbone, Swin):
        return {PREFIX + name: tensor for name, tensor in simmim.encoder_state(backbone).items()}
    if isinstance(backbone, ViT) and backbone.prefix == 1:
        return {counterpart(name, {k: k for k in ENCODER}, "FastMIM"): t for name, t in network.state_dict().items()}
    if isinstance(network, Cmt | PyramidVisionTransformerV2):
        renamed = _outer if isinstance(network, PyramidVisionTransformerV2) else str
        return {PREFIX + renamed(name): tensor for name, tensor in network.state_dict().items()}
    kind = type(network).__name__
    raise UserError(f"FastMIM's layout holds a ViT with one class token, a Swin, a PVTv2 or a CMT, not this {kind}")


def inner(key: str) -> str:
    """A key of an official encoder in timm's names: PVTv2's and Swin's differ, CMT's are ours."""
    if match := re.match(r"(patch_embed|block|norm)(\d)\.", key):
        stage = f"stages.{int(match[2]) - 1}.{STAGED[match[1]]}."
        key = ("patch_embed." if match[0] == "patch_embed1." else stage) + key[match.end() :]
    return simmim._merging(key.replace(".dwconv.dwconv.", ".dwconv."), 1)


def _outer(name: str) -> str:
    """A name of timm's PVTv2 among the official ones."""
    name = name.replace("patch_embed.", "stages.0.downsample.").replace(".dwconv.", ".dwconv.dwconv.")
    return re.sub(r"^stages\.(\d)\.(\w+)", lambda match: f"{TURNED[match[2]]}{int(match[1]) + 1}", name)


def build(
    state: State, where: str, heads: Heads, size: Size | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[Network, dict[str, Tensor]]:
    """A backbone of the state's sizes, its weights not yet loaded, and the state with its position tables resized."""
    kind = next((kind for start, kind in KINDS.items() if any(key.startswith(start) for key in state)), None)
    if kind is None:
        raise UserError(f"{where} holds none of FastMIM's encoders: {', '.join(f'{start}*' for start in KINDS)}")
    create, name, plan = kind
    encoder = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    overrides, before = plan(encoder, where, heads, size)
    backbone: Network = create(name, size or before, mean, std, overrides=overrides)
    tables = {key: t for key, t in encoder.items() if key == "pos_embed" or key.endswith(BIASES) or "relative_" in key}
    resized = resize_state(tables, backbone.network, before, size or before, backbone.patch)
    return backbone, {key: resized.get(key.removeprefix(PREFIX), tensor) for key, tensor in state.items()}


def _vit(state: State, where: str, heads: Heads, size: Size | None) -> Plan:
    if not isinstance(heads, int):
        raise UserError(
            f"{where} holds a ViT, whose weights do not tell its heads: state one number "
            "(FastMIM pre-trained ViT-B with 6 and fine-tuned it with 12)"
        )
    width, depth, mlp_ratio = sizes(state, where, "blocks.", heads)
    patch = shape(state, "patch_embed.proj.weight", where)[-1]
    before = _trained(shape(state, "pos_embed", where)[1] - 1, patch, size, where)
    numbers = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": mlp_ratio}
    return numbers, before


def _swin(state: State, where: str, heads: Heads, size: Size | None) -> Plan:
    if size is None:
        raise UserError(f"{where} holds a Swin, whose weights do not tell the size of its images: give it")
    stages = range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("layers.")))
    tables = [shape(state, f"layers.{i}.blocks.0.attn.{BIASES}", where) for i in stages]
    hidden, width = shape(state, "layers.0.blocks.0.mlp.fc1.weight", where)
    patch = shape(state, "patch_embed.proj.weight", where)[-1]
    window = window_of(state[f"layers.0.blocks.0.attn.{BIASES}"], 0, where)[0]
    grids = [side // (patch * 2**i) for i in stages for side in size]
    numbers = {
        "patch_size": patch,
        "embed_dim": width,
        "depths": tuple(_count(state, f"layers.{i}.blocks.") for i in stages),
        "num_heads": _table_heads([table[1] for table in tables], heads, where),
        "mlp_ratio": hidden / width,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in state,
    }
    # windows that do not tile images of another size give way to those of `create_swin`
    tiled = all(side <= window or side % window == 0 for side in grids)
    return {**numbers, **({"window_size": window} if tiled else {})}, size


def _pvt(state: State, where: str, heads: Heads, size: Size | None) -> Plan:
    stages = range(1, 1 + sum(bool(re.fullmatch(r"patch_embed\d\.proj\.weight", key)) for key in state))
    if heads is None or isinstance(heads, int) or len(heads) != len(stages):
        raise UserError(
            f"{where} holds a PVTv2, whose weights do not tell its heads: state one number for each of its "
            f"{len(stages)} stages (B0 to B5 have 1, 2, 5 and 8)"
        )
    hidden = [shape(state, f"block{i}.0.mlp.fc1.weight", where) for i in stages]
    numbers = {
        "embed_dims": tuple(width for _, width in hidden),
        "depths": tuple(_count(state, f"block{i}.") for i in stages),
        "num_heads": tuple(heads),
        "mlp_ratios": tuple(out / width for out, width in hidden),
        "sr_ratios": tuple(_kernel(state, f"block{i}.0.attn.sr.weight") for i in stages),
        "qkv_bias": "block1.0.attn.q.bias" in state,
    }
    return numbers, size or PUBLISHED


def _cmt(state: State, where: str, heads: Heads, size: Size | None) -> Plan:
    tables = [shape(state, f"relative_pos_{stage}", where) for stage in STAGES]
    widths = [shape(state, f"patch_embed_{stage}.proj.weight", where)[0] for stage in STAGES]
    numbers = {
        "stem_width": shape(state, "stem_conv1.weight", where)[0],
        "embed_dims": tuple(widths),
        "depths": tuple(_count(state, f"blocks_{stage}.") for stage in STAGES),
        "num_heads": _table_heads([table[0] for table in tables], heads, where),
        "mlp_ratio": shape(state, "blocks_a.0.mlp.conv1.0.weight", where)[0] / widths[0],
        "sr_ratios": tuple(_kernel(state, f"blocks_{stage}.0.attn.sr.0.weight") for stage in STAGES),
    }
    return numbers, _trained(tables[0][1], 4, size, where)


KINDS: dict[str, tuple[Callable[..., Network], str, Callable[[State, str, Heads, Size | None], Plan]]] = {
    "blocks.": (create_vit, "vit_base_patch16_224", _vit),
    "encoder.layers.": (create_swin, "swin_base_patch4_window7_224", _swin),
    "encoder.block1.": (create_hierarchical, "pvt_v2_b2", _pvt),
    "encoder.blocks_a.": (create_hierarchical, "cmt_s", _cmt),
}
"""Beginning of a key that only this network has -> its `create_…` function, its name, and the reader of its sizes."""


def _trained(count: int, stride: int, size: Size | None, where: str) -> Size:
    """Pixels of the images that a table for `count` tokens was made for: the size given, or a square."""
    if size and math.prod(grid_of(size, (stride, stride))) == count:
        return size
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(f"{where} has positions for {count} tokens, which are no square: give the size it was made for")
    return side * stride, side * stride


def _table_heads(counts: Sequence[int], heads: Heads, where: str) -> tuple[int, ...]:
    """Heads by stage, from the `counts` in position tables. Raises UserError where other heads were stated."""
    stated = [heads * number // counts[0] for number in counts] if isinstance(heads, int) else heads
    if stated is not None and [*stated] != [*counts]:
        raise UserError(f"{where} has position tables for {[*counts]} heads, not for the {heads} that were stated")
    return tuple(counts)


def _count(state: State, start: str) -> int:
    """The number of blocks: of different words that follow `start` in the names."""
    return len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)})


def _kernel(state: State, key: str) -> int:
    """Side of a convolution that is as large as its stride; 1 where there is none."""
    return state[key].shape[-1] if key in state else 1


__all__ = ["PREFIX", "Heads", "Network", "build", "encoder_state", "inner"]
