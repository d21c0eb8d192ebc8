"""Pictures of what a method predicts: originals, masked views, predictions, and the union that the views cover."""

import io
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from remask.evaluation.features import evaluating
from remask.method import Method, Pair
from remask.targets import Hog, Pixels, Target
from remask.tokens import patchify, scatter, unpatchify
from remask.types import Grid
from remask.views import Views

GREY = 0.5
GLYPH = 15
"""Pixels a side of a HOG glyph."""


class Panel(NamedTuple):
    """One column of a sheet: a caption and a picture [H, W, C] of 0..1 for every image."""

    caption: str
    pictures: Float[Tensor, "B h w c"]


def reconstruct(method: Method, images: UInt8[Tensor, "B C H W"], views: Views) -> bytes:
    """A PNG with a row per image: original, each masked view with its prediction, HOG as glyphs, the covered union."""
    return sheet(list(panels(method, images, views)))


def panels(method: Method, images: UInt8[Tensor, "B C H W"], views: Views) -> Iterator[Panel]:
    """The columns of a sheet, left to right."""
    with torch.inference_mode(), evaluating([method]):
        pairs = method.pairs(images, views)
        targets = {branch.name: branch.target(images, views) for branch in method.branches}
    original, patch = images.float() / 255, method.backbone.patch
    patches = patchify(original, patch)
    masks = views.mask
    yield Panel("original", _hwc(original))
    masked = next(branch for branch in method.branches if branch.region == "masked")
    if isinstance(masked.target, Hog):
        yield Panel("HOG target", _glyphs(masked.target, targets[masked.name], views.grid))
    for v, mask in enumerate(masks):
        number = f" {v + 1}" if len(masks) > 1 else ""
        hidden = torch.where(mask.unsqueeze(-1), GREY, patches)
        yield Panel(f"view{number}: {mask[0].float().mean():.0%} hidden", _hwc(unpatchify(hidden, views.grid, patch)))
        filled = _filled(masked.target, targets[masked.name], pairs, method, views, v)
        if isinstance(masked.target, Hog):
            yield Panel(f"predicted HOG{number}", _glyphs(masked.target, filled, views.grid))
        elif isinstance(masked.target, Pixels):
            seen = torch.where(mask.unsqueeze(-1), _colours(masked.target, filled, original), patches)
            caption = f"predicted{number}" + (", own patch mean and contrast" if masked.target.per_patch else "")
            yield Panel(caption, _hwc(unpatchify(seen, views.grid, patch)))
    covered = masks.any(0)
    union = torch.where(covered.unsqueeze(-1), patches, GREY)
    yield Panel(f"predicted in some view: {covered.float().mean():.0%}", _hwc(unpatchify(union, views.grid, patch)))


def _filled(
    target: Target, values: Float[Tensor, "B N P"], pairs: dict[str, Pair], method: Method, views: Views, v: int
) -> Float[Tensor, "B N P"]:
    """The target's map in view v with every token that a branch with this target predicts replaced by the prediction."""
    rows = slice(v * len(values), (v + 1) * len(values))
    for branch in method.branches:
        if branch.target is target:
            values = scatter(pairs[branch.name][0][rows].float(), views.rows(branch.region)[rows], values)
    return values


def _colours(target: Pixels, tokens: Float[Tensor, "B N P"], original: Float[Tensor, "B C H W"]) -> Tensor:
    """Predicted pixel vectors as colours of 0..1; per-patch normalisation is undone with the true mean and deviation."""
    if target.per_patch:
        normalised = patchify((original - target.mean) / target.std, target.patch)
        var, mean = torch.var_mean(normalised, dim=-1, keepdim=True)
        tokens = tokens * (var + 1e-6).sqrt() + mean
    pixels = target.patch[0] * target.patch[1]
    mean, std = (x.flatten().repeat(pixels) for x in (target.mean, target.std))
    return (tokens * std + mean).clamp(0, 1)


def _glyphs(target: Hog, tokens: Float[Tensor, "B N P"], grid: Grid) -> Float[Tensor, "B h w c"]:
    """Each cell as a star of edge directions, as bright as their share; what a LayerNorm made negative stays dark."""
    cells = target.cells(tokens, grid).clamp(min=0).mean(1)  # over channels: [B, bins, h, w]
    lines = _lines(target.bins)
    drawn = (cells.movedim(1, -1)[..., None, None] * lines).amax(3)  # [B, h, w, glyph, glyph]
    b, h, w = drawn.shape[:3]
    picture = drawn.permute(0, 1, 3, 2, 4).reshape(b, h * GLYPH, w * GLYPH, 1)
    bright = picture.flatten(1).quantile(0.995, dim=1).clamp(min=1e-6).view(-1, 1, 1, 1)
    return (picture / bright).clamp(0, 1)


def _lines(bins: int) -> Float[Tensor, "bins glyph glyph"]:
    """A soft line through the centre for each bin: the edge, which is perpendicular to the gradient."""
    centre = (GLYPH - 1) / 2
    y, x = torch.meshgrid(torch.arange(GLYPH) - centre, torch.arange(GLYPH) - centre, indexing="ij")
    angles = (torch.arange(bins) + 0.5) * math.pi / bins
    across = x * angles.cos()[:, None, None] + y * angles.sin()[:, None, None]  # distance from the edge's line
    inside = (x.square() + y.square()).sqrt() <= centre
    return (1.3 - across.abs()).clamp(0, 1) * inside


def _hwc(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W C"]:
    """Channels last; one or three of them: other counts show their first."""
    return (images if images.shape[1] == 3 else images[:, :1]).permute(0, 2, 3, 1)


def sheet(columns: list[Panel]) -> bytes:
    """A labelled figure, a row per image and a column per panel, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(columns[0].pictures)
    height, width = columns[0].pictures.shape[1:3]
    cell = 2.0
    figure = Figure(figsize=(cell * len(columns) * width / max(height, width) + 0.2, cell * rows * height / width + 0.5))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for column, panel in enumerate(columns):
        axes[0][column].set_title(_wrapped(panel.caption), fontsize=8)
        for row, picture in enumerate(panel.pictures):
            axis = axes[row][column]
            axis.imshow(picture.numpy().squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axis.set_axis_off()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.42 / figure.get_figheight(), wspace=0.04, hspace=0.04)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": "remask"})
    return buffer.getvalue()


def _wrapped(caption: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(caption, 24))


__all__ = ["Panel", "panels", "reconstruct", "sheet"]
