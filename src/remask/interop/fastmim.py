"""FastMIM's checkpoints, ViT, Swin, PVTv2 and CMT, ⇄ ours (Guo et al., arXiv 2212.06593).

official                                                     ours
mask_token  (a colour)                                       sees.mask_pixel
cls_token  pos_embed  patch_embed.*  blocks.*  norm.* (ViT)  backbone.network.(the same)
encoder.*  (CMT)                                             backbone.network.*
encoder.layers.i.downsample.*  (Swin)                        backbone.network.layers.(i+1).downsample.*
encoder.{patch_embedN,blockN.j,normN}.*  (PVTv2, N from 1)   backbone.network.stages.(N-1).{downsample,blocks.j,norm}.*
encoder.patch_embed1.*  *.dwconv.dwconv.*  (PVTv2)           backbone.network.{patch_embed.*, *.dwconv.*}
decoder_{embed,blocks,norm}.*                                branches.0.head.{embed,blocks,norm}.*
decoder_pred.*                                               branches.0.head.predict.*, rows reordered as `rows` says
relative_position_index  attn_mask  (Swin)                   computed, not stored
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from remask.errors import UserError
from remask.interop.beit import NETWORK, counterpart, own_state, weights
from remask.interop.fastmim_encoders import PREFIX, Heads, Network, build, encoder_state, inner
from remask.interop.mae import ENCODER, HEAD, MEAN, STD, check, shape, sizes
from remask.interop.state_dicts import Source, State, label, read
from remask.masking import Masking
from remask.method import Method
from remask.methods.fastmim import fastmim
from remask.targets import Hog, Pixels, Target
from remask.types import Grid, Size

Predicted: TypeAlias = Literal["hog", "pixels"]

MASK_PIXEL, PREDICT, BINS = "sees.mask_pixel", HEAD + "predict.", 9
DECODER = {
    "decoder_embed.": HEAD + "embed.",
    "decoder_blocks.": HEAD + "blocks.",
    "decoder_norm.": HEAD + "norm.",
    "decoder_pred.": PREDICT,
}
OURS = {**{key: NETWORK + key for key in ENCODER}, **DECODER}
OFFICIAL = {name: key for key, name in DECODER.items()}


def from_official(
    state: State, cells: Grid = (1, 1), target: Predicted = "hog", channels: int = 3
) -> dict[str, Tensor]:
    """A pre-training state, or a part of one -> the state dict of `methods.fastmim`. UserError for unknown keys.

    cells    rows and columns of the masks' grid in a token, `Method.cells_per_token`
    target   what the decoder predicts of images of so many channels
    """
    ours = {}
    for key, tensor in weights(state).items():
        if key == "mask_token":
            ours[MASK_PIXEL] = tensor.flatten()
        elif key.startswith(PREFIX):
            ours[NETWORK + inner(key.removeprefix(PREFIX))] = tensor
        else:
            name = counterpart(key, OURS, "FastMIM")
            ours[name] = tensor[rows(len(tensor), cells, target, channels)] if name.startswith(PREDICT) else tensor
    return ours


def to_official(method: Method) -> dict[str, Tensor]:
    """The inverse of `from_official`, bit for bit, buffers included. UserError for tensors that have no place there."""
    official, target = encoder_state(method.backbone), _predicted(method.branches[0].target)
    for name, tensor in own_state(method).items():
        if name == MASK_PIXEL:
            official["mask_token"] = tensor.view(1, -1, 1, 1)
        elif name.startswith(PREDICT):
            order = rows(len(tensor), method.cells_per_token, target, method.backbone.channels)
            official[counterpart(name, OFFICIAL, "FastMIM")] = tensor[order.argsort()]
        elif not name.startswith(NETWORK):
            official[counterpart(name, OFFICIAL, "FastMIM")] = tensor
    return official


def rows(count: int, cells: Grid, target: Predicted, channels: int = 3) -> Tensor:
    """Which official row each of our `count` rows of a token's prediction is, where masks cut the token into `cells`.

    Ours: mask cell after mask cell, each with a whole target's vector. Official HOG: channel and bin, HOG cell row, HOG
    cell column, over the whole token. Official pixels: number by number of a cell's vector, each for all cells.
    """
    inside, channel_bins = cells[0] * cells[1], channels * BINS
    if inside == 1:
        return torch.arange(count)
    if target == "pixels" and count % inside == 0:
        return torch.arange(count).view(-1, inside).T.flatten()
    side = math.isqrt(count // channel_bins)
    if target == "pixels" or channel_bins * side * side != count or side % cells[0] or side % cells[1]:
        raise UserError(f"{count} numbers a token are no {target} that can be cut into {cells[0]}×{cells[1]} cells")
    official = torch.arange(count).view(channel_bins, cells[0], side // cells[0], cells[1], side // cells[1])
    return official.permute(1, 3, 0, 2, 4).flatten()


def load(
    source: Source,
    *,
    heads: Heads = None,
    decoder_heads: int | None = None,
    size: Size | None = None,
    cell_pixels: int | None = None,
    target: Predicted = "hog",
    ratio: float = 0.75,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Method:
    """An official pre-training checkpoint, strictly, as a method that goes on training.

    heads          as in `load_backbone`, in pre-training
    decoder_heads  width / 32 unless given, as official code fixes it
    size           pixels of the images that it goes on with, as in `load_backbone`
    cell_pixels    side of the cells that are hidden: whole tokens, or a part of one; published 16 for ViT and 32 for
                   the others, which is a token unless given
    target, ratio  what is predicted, and the share of cells hidden, which the weights do not tell
    """
    where, state = label(source), weights(read(source, "fastmim", classifiers=True))
    if not any(key.startswith(tuple(DECODER)) for key in state):
        raise UserError(f"{where} holds no decoder: load its backbone with load_backbone")
    backbone, state = build(state, where, heads, size, mean, std)
    decoder_heads = decoder_heads or shape(state, "decoder_embed.weight", where)[0] // 32
    decoder = sizes(state, where, "decoder_blocks.", decoder_heads)
    masking, unit = _masking(ratio, backbone.patch, cell_pixels)
    # official: pixels are normalised over the part that is predicted, not over the token
    predicted: Target = Hog(unit, mean, std, "sobel", norm="l2") if target == "hog" else Pixels(unit, mean, std)
    method = fastmim(backbone, masking, predicted, unit, *decoder[:2], decoder_heads, decoder[2])
    check(state, weights(to_official(method)), where)
    method.load_state_dict(from_official(state, method.cells_per_token, target, backbone.channels))
    return method


def load_backbone(
    source: Source,
    *,
    heads: Heads = None,
    size: Size | None = None,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Network:
    """The encoder of a pre-training checkpoint, with or without a decoder in it, strictly.

    heads   of a ViT, and of a PVTv2 by stage; required, never guessed. FastMIM pre-trained ViT-B with 6 heads and
            fine-tuned it with 12. A Swin's and a CMT's are read from their position tables
    size    pixels of the images that it is for, whatever it was trained on: position tables are resized. Unless given
            those it was trained on; a Swin's weights do not tell them, and a PVTv2 takes any
    """
    where, state = label(source), weights(read(source, "fastmim"))
    encoder = {key: tensor for key, tensor in state.items() if not key.startswith((*DECODER, "mask_token"))}
    backbone, encoder = build(encoder, where, heads, size, mean, std)
    check(encoder, weights(encoder_state(backbone)), where)
    named = from_official(encoder)
    backbone.network.load_state_dict({name.removeprefix(NETWORK): tensor for name, tensor in named.items()})
    return backbone


def _masking(ratio: float, patch: Size, cell_pixels: int | None) -> tuple[Masking, Size]:
    """A masking by cells of whole tokens, or of a part of one; and the pixels of a cell of the grid of masks."""
    side = cell_pixels or patch[0]
    if side % patch[0] == 0 and patch[0] == patch[1]:
        return Masking(ratio, cell=side // patch[0]), patch
    if patch[0] % side or patch[1] % side:
        raise UserError(f"cells of {side} px are neither whole tokens of {patch[0]}×{patch[1]} px nor a part of one")
    return Masking(ratio), (side, side)


def _predicted(target: Target) -> Predicted:
    if isinstance(target, Hog) and target.flavour == "sobel" and target.bins == BINS:
        return "hog"
    if isinstance(target, Pixels):
        return "pixels"
    raise UserError(f"FastMIM's layout holds a decoder of pixels or of HOG (sobel, {BINS} bins)")


__all__ = ["from_official", "load", "load_backbone", "rows", "to_official"]
