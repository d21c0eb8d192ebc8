"""SimMIM's checkpoints, ViT and Swin, ⇄ ours (Xie et al., arXiv 2111.09886).

official                                   ours
encoder.mask_token                         sees.mask_token
encoder.*                                  backbone.network.*
encoder.layers.i.downsample.*  (Swin)      backbone.network.layers.(i+1).downsample.*: timm begins a stage with it
decoder.0.*  (1×1 convolution)             branches.0.head.predict.*, rows from channel-row-column to row-column-channel
                                           (unit after unit of the masks' grid where it cuts a token)
relative_position_index  attn_mask         computed, not stored
"""

import math
import re
from collections.abc import Sequence

from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

from remask.backbones import stem_patch
from remask.backbones.beit import BeitViT
from remask.backbones.swin import Swin, create_swin
from remask.backbones.tables import resize_table
from remask.errors import UserError
from remask.interop import beit, state_dicts
from remask.interop.beit import BUFFERS, HEAD, MASK_TOKEN, NETWORK, TABLE, own_state, vit_of, weights, window_of
from remask.interop.mae import MEAN, STD, check, shape
from remask.interop.state_dicts import Source, State, label
from remask.masking import Masking
from remask.method import Method
from remask.methods.simmim import simmim
from remask.targets import Pixels
from remask.tokens import cell_of
from remask.types import Grid, Size

MERGING = re.compile(r"^layers\.(\d+)\.downsample\.")


def from_official(state: State, channels: int = 3, cells: Grid = (1, 1)) -> dict[str, Tensor]:
    """A pre-training state, or a part of one -> the state dict of `methods.simmim`. UserError for unknown keys.

    channels   of its images
    cells      rows and columns of the masks' grid in a token, `Method.cells_per_token`
    """
    ours = {}
    for key, tensor in weights(state).items():
        if key == "encoder.mask_token":
            ours[MASK_TOKEN] = tensor.flatten()
        elif key.startswith("encoder."):
            ours[NETWORK + _merging(key.removeprefix("encoder."), 1)] = tensor
        elif key.startswith("decoder.0."):
            side = math.isqrt(tensor.shape[0] // channels)
            # PixelShuffle's rows run channel, row, column; those of a patch vector row, column, channel
            flat = tensor.unsqueeze(-1).flatten(1)
            pixels = flat.unflatten(0, (channels, cells[0], side // cells[0], cells[1], side // cells[1]))
            vectors = pixels.permute(1, 3, 2, 4, 0, 5).flatten(0, 4)
            ours[HEAD + key.removeprefix("decoder.0.")] = vectors if tensor.ndim > 1 else vectors[:, 0]
        else:
            raise UserError(f"{key} has no counterpart: SimMIM's layout knows encoder. and decoder.0.")
    return ours


def to_official(method: Method) -> dict[str, Tensor]:
    """The inverse of `from_official`, bit for bit, buffers included. UserError for tensors that have no place there."""
    backbone = method.backbone
    if not isinstance(backbone, BeitViT | Swin) or backbone.patch[0] != backbone.patch[1]:
        kind = type(backbone.network).__name__
        raise UserError(f"SimMIM's layout holds a BEiT or a Swin of square patches, not a {kind} of {backbone.patch}")
    official = {f"encoder.{key}": tensor for key, tensor in encoder_state(backbone).items()}
    for name, tensor in own_state(method).items():
        if name == MASK_TOKEN:
            official["encoder.mask_token"] = tensor.view(1, 1, -1)
        elif name.startswith(HEAD):
            pixels = (
                tensor.unsqueeze(-1)
                .flatten(1)
                .unflatten(0, (*method.cells_per_token, *method.mask_unit, backbone.channels))
            )
            rows = pixels.permute(4, 0, 2, 1, 3, 5).flatten(0, 4)
            official["decoder.0." + name.removeprefix(HEAD)] = rows[..., None, None] if tensor.ndim > 1 else rows[:, 0]
        elif not name.startswith(NETWORK):
            raise UserError(f"{name} has no counterpart: SimMIM's layout holds an encoder and one linear decoder")
    return official


def encoder_state(backbone: BeitViT | Swin) -> dict[str, Tensor]:
    """A backbone's tensors and buffers under their official names, without the prefix."""
    network = backbone.network
    buffers_of = {name: buffer for name, buffer in network.named_buffers() if name.endswith(BUFFERS)}
    return {_merging(name, -1): tensor for name, tensor in {**network.state_dict(), **buffers_of}.items()}


def load(
    source: Source,
    *,
    heads: int | None = None,
    size: Size | None = None,
    ratio: float = 0.6,
    cell: int = 32,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint, strictly, as a method that goes on training.

    heads         of a ViT; read from its position table, and required where it has none
    size          pixels of the images it was trained on; a Swin's weights do not tell them
    ratio, cell   share hidden, in cells of so many pixels: whole patches of the stem, which in a Swin may be fewer than
                  a token of its last stage has, or cut one
    """
    where, state = label(source), read(source, classifiers=True)
    if not any(key.startswith("decoder.") for key in state):
        raise UserError(f"{where} holds no decoder: load its backbone with load_backbone")
    backbone = _backbone(state, where, heads, size, mean, std)
    units, unit = cell_of(cell, backbone.patch, stem_patch(backbone))
    target = Pixels(unit, mean, std, per_patch=False)
    method = simmim(backbone, Masking(ratio, cell=units, count="simmim"), target, unit=unit)
    check(weights(state), weights(to_official(method)), where)
    method.load_state_dict(from_official(state, backbone.channels, method.cells_per_token))
    return method


def load_backbone(
    source: Source,
    *,
    heads: int | None = None,
    size: Size | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> BeitViT | Swin:
    """The encoder of a pre-training checkpoint, with or without a decoder in it, strictly. Arguments as in `load`."""
    where, state = label(source), weights(read(source))
    backbone = _backbone(state, where, heads, size, mean, std)
    expected = {f"encoder.{key}": tensor for key, tensor in weights(encoder_state(backbone)).items()}
    encoder = {key: state[key] for key in state if not key.startswith(("decoder.0.", "encoder.mask_token"))}
    check(encoder, expected, where)
    named = from_official(encoder)
    backbone.network.load_state_dict({name.removeprefix(NETWORK): tensor for name, tensor in named.items()})
    return backbone


def classifier_state(state: State, network: Beit | SwinTransformer) -> dict[str, Tensor]:
    """The tensors that SimMIM's fine-tuning loads into a timm classifier; load them with strict=False.

    A ViT's as BEiT's: the shared table copied into every block. A Swin's tables are resized to the new windows.
    """
    encoder = {key.removeprefix("encoder."): tensor for key, tensor in state.items() if key.startswith("encoder.")}
    if isinstance(network, Beit):
        return beit.classifier_state(encoder, network)
    own, named = network.state_dict(), {_merging(key, 1): tensor for key, tensor in weights(encoder).items()}
    tensors = {key: tensor for key, tensor in named.items() if key in own and not key.startswith("head.")}
    for key in (key for key in tensors if key.endswith(TABLE) and tensors[key].shape != own[key].shape):
        window = network.get_submodule(key.removesuffix("." + TABLE)).window_size
        tensors[key] = resize_table(tensors[key], window_of(tensors[key], 0, key), (int(window[0]), int(window[1])))
    return tensors


def read(source: Source, classifiers: bool = False) -> State:
    """The tensors of a file or dict in official names, without its settings."""
    return state_dicts.read(source, "simmim", classifiers)


def _backbone(
    state: State, where: str, heads: int | None, size: Size | None, mean: Sequence[float], std: Sequence[float]
) -> BeitViT | Swin:
    encoder = {key.removeprefix("encoder."): state[key] for key in state if key.startswith("encoder.")}
    if not any(key.startswith("layers.") for key in encoder):
        return vit_of(encoder, where, heads, size, mean, std)
    if size is None:
        raise UserError(f"{where} holds a Swin, whose weights do not tell the size of its images: give it")
    stages = range(1 + max(int(key.split(".")[1]) for key in encoder if key.startswith("layers.")))
    tables = [shape(encoder, f"layers.{i}.blocks.0.attn.{TABLE}", where) for i in stages]
    hidden, width = shape(encoder, "layers.0.blocks.0.mlp.fc1.weight", where)
    overrides = {
        "patch_size": shape(encoder, "patch_embed.proj.weight", where)[-1],
        "embed_dim": width,
        "depths": tuple(len({k.split(".")[3] for k in encoder if k.startswith(f"layers.{i}.blocks.")}) for i in stages),
        "num_heads": tuple(table[1] for table in tables),
        "window_size": window_of(encoder[f"layers.0.blocks.0.attn.{TABLE}"], 0, where)[0],
        "mlp_ratio": hidden / width,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in encoder,
    }
    return create_swin("swin_base_patch4_window7_224", size, mean, std, overrides=overrides)


def _merging(name: str, by: int) -> str:
    """A name with the stage of its merging layer moved by `by`: official code merges at the end of a stage, timm at the
    beginning of the next one.
    """
    return MERGING.sub(lambda match: f"layers.{int(match[1]) + by}.downsample.", name)


__all__ = [
    "classifier_state", "encoder_state", "from_official", "load", "load_backbone", "read", "to_official",
]  # fmt: skip
