"""LocalMIM: Masked Image Modeling with Local Multi-Scale Reconstruction (Wang et al., arXiv 2303.05251)."""

from collections.abc import Sequence

from torch import nn

from remask.backbones import Backbone
from remask.distances import squared
from remask.errors import UserError, setting
from remask.heads import Decoder
from remask.heads.local_decoder import CellLayer, LocalDecoder
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods.decoders import DecoderSizes, check_layers
from remask.methods.defaults import masking_of, size_of
from remask.methods.mae import initialise, initialise_tokens
from remask.targets import Hog
from remask.targets.coarse import Coarse
from remask.targets.hog import Flavour, Norm
from remask.types import END, INPUT, Grid, Size


def localmim(
    backbone: Backbone,
    masking: Masking | float = 0.75,
    size: int | Size | None = None,
    layers: Sequence[int] | None = None,
    cells: Sequence[int] | None = None,
    width: int = 256,
    depth: int = 1,
    heads: int = 8,
    mlp_ratio: float = 4.0,
    flavour: Flavour = "sobel",
    norm: Norm = "l2",
    bins: int = 9,
) -> Method:
    """f drops the masked tokens; at several layers a decoder predicts HOG, finer at the lower ones; squared; masked.

    As published: blocks 1, 3, depth - 3 and depth - 1, HOG cells of 4, 8, 16 and 32 px, a norm of its own for each.
    layers   0 to depth - 1 are blocks, `END` is the last one behind f's final norm; the published ones, of those that
             there are, unless given
    cells    side of a HOG cell at each layer in pixels: the patch divided by a power of two, or times a whole number; a
             quarter, a half, one and two patches unless given, the last of these for fewer layers
    width, depth, heads, mlp_ratio are those of every decoder; flavour, norm, bins are the HOG's.
    # official: the last layer has another norm than f's final one, which is then not trained
    Raises UserError for layers that do not exist, and cells that do not fit the patch or the grid.
    """
    layers, grid = _layers(backbone, layers), backbone.grid(size_of(backbone, size))
    sizes, branches = DecoderSizes(width, depth, heads, mlp_ratio), []
    for layer, cell in zip(layers, _cells(backbone, cells, len(layers)), strict=True):
        pooled = _pooled(backbone, cell, grid)
        head, target = _decoder(backbone, grid, sizes, layer, cell, pooled, flavour, norm, bins)
        branches.append(Branch(_name(layer), head, target, squared, "masked", layer=layer))
    method = Method(backbone, masking_of(masking), branches)
    method.apply(initialise)
    initialise_tokens(method)
    return method


def _decoder(
    backbone: Backbone, grid: Grid, sizes: DecoderSizes, layer: int, cell: int, pooled: Grid,
    flavour: Flavour, norm: Norm, bins: int,
) -> tuple[LocalDecoder, Hog | Coarse]:  # fmt: skip
    """The head and the target of a layer."""
    constants, (side, _) = backbone.normalise, backbone.patch
    patch = (side * pooled[0], side * pooled[1])
    hog = Hog(patch, constants.mean, constants.std, flavour, cell, bins, norm)
    decoder = Decoder(backbone.width, hog.width, grid, *sizes)
    if cell < side:
        steps = (side // cell).bit_length() - 1
        decoder.predict = CellLayer(sizes.width, steps, hog.width * cell**2 // side**2, flavour == "sobel")
    own = None if layer == END else nn.LayerNorm(backbone.width, eps=1e-6)
    return LocalDecoder(own, decoder, pooled), hog if pooled == (1, 1) else Coarse(hog, pooled)


def _layers(backbone: Backbone, layers: Sequence[int] | None) -> tuple[int, ...]:
    if layers is not None:
        check_layers(backbone, layers)
        return tuple(layers)
    last = backbone.depth - 1
    return (*sorted({1, 3, backbone.depth - 3} & {*range(last)}), END)


def _cells(backbone: Backbone, cells: Sequence[int] | None, layers: int) -> Sequence[int]:
    (side, other), name = backbone.patch, setting("method.cells", "cells")
    published = [max(side // 4, 1), max(side // 2, 1), side, 2 * side]
    cells = published[-layers:] if cells is None else cells
    if len(cells) != layers:
        raise UserError(f"{name}: {len(cells)} for {layers} layers; name one for each")
    for cell in cells:
        ratio, rest = divmod(side, cell) if cell <= side else (1, cell % side)
        if side != other or rest or ratio & (ratio - 1):
            raise UserError(
                f"{name}: a cell of {cell} px does not fit patches of {side}×{other} px: it is a square patch "
                "divided by 2, 4, 8, …, or times a whole number"
            )
    return cells


def _pooled(backbone: Backbone, cell: int, grid: Grid) -> Grid:
    """Rows and columns of tokens that share a cell. Raises UserError where they do not tile the grid."""
    count = max(cell // backbone.patch[0], 1)
    if any(side % count for side in grid):
        name, places = setting("method.cells", "cells"), "×".join(map(str, grid))
        raise UserError(
            f"{name}: cells of {cell} px are {count}×{count} tokens, which do not tile the grid of {places}"
        )
    return (count, count)


def _name(layer: int) -> str:
    return {END: "end", INPUT: "input"}.get(layer, f"block{layer}")
