"""The decoders of methods that drop masked tokens: MAE's, CrossMAE's, and which layers of the backbone each reads."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from remask.backbones import Backbone
from remask.backbones.convvit_network import ConvViTNetwork
from remask.errors import UserError, setting
from remask.heads import CrossDecoder, Decoder, Fused, FusedDecoder, Head
from remask.masking import Masking
from remask.targets import Target
from remask.types import END, INPUT, Grid

Attention = Literal["self", "cross"]
"""Mask tokens attend to all tokens (MAE 2111.06377), or to the visible ones alone (CrossMAE 2401.14391)."""


class DecoderSizes(NamedTuple):
    """Width, blocks, attention heads and the MLPs' hidden width in widths."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float


def create_decoder(
    backbone: Backbone,
    target: Target,
    grid: Grid,
    masking: Masking,
    sizes: DecoderSizes,
    attention: Attention = "self",
    layers: Sequence[int] | None = None,
) -> tuple[Head, int | tuple[int, ...]]:
    """A decoder that predicts the target of what the masking predicts, and the layers of the backbone that it reads.

    layers   0 to depth - 1 are blocks, `END` is behind the final norm, `INPUT` before the first block. Of several,
             "cross" reads sums that differ by block, and "self" one sum (MFF 2308.00261). Unless given: the end for
             "self", all of them for "cross"
    Raises UserError for layers that do not exist.
    """
    region: Literal["masked", "predicted"] = "masked" if masking.predicted == "all" else "predicted"
    if layers is None:
        layers = every_layer(backbone) if attention == "cross" else (END,)
    check_layers(backbone, layers)
    shape = (backbone.width, target.width, grid, *sizes)
    layer = layers[0] if len(layers) == 1 else tuple(layers)
    if attention == "cross":
        return CrossDecoder(*shape, region, maps=len(layers)), layer
    decoder = Decoder(*shape, region)
    if len(layers) == 1:
        return decoder, layer
    return FusedDecoder(Fused(backbone.width, len(layers), weights="softmax"), decoder), layer


def every_layer(backbone: Backbone) -> tuple[int, ...]:
    """What CrossMAE fuses: the input of the first block and the output of every one, without the final norm.

    A ConvViT adds its convolutional stages to the last block's output before the final norm (ConvMAE, section 3.2), so
    there the end stands for the last block.
    """
    blocks = range(backbone.depth)
    if isinstance(backbone.network, ConvViTNetwork):
        return (INPUT, *blocks[:-1], END)
    return (INPUT, *blocks)


def check_layers(backbone: Backbone, layers: Sequence[int]) -> None:
    """Raise UserError unless the layers exist, each once."""
    wrong = [layer for layer in layers if layer not in (END, INPUT, *range(backbone.depth))]
    if not wrong and len({*layers}) == len(layers) > 0:
        return
    name = setting("method.decoder_layers", "layers")
    before, after = setting("input", f"{INPUT}, the input,"), setting("end", f"{END}, the end,")
    why = f"there is no layer {wrong[0]}" if wrong else "each one once, and at least one"
    raise UserError(
        f"{name}: {why}; the backbone has blocks 0 to {backbone.depth - 1}, {before} before them and "
        f"{after} behind its final norm"
    )


__all__ = ["Attention", "DecoderSizes", "check_layers", "create_decoder", "every_layer"]
