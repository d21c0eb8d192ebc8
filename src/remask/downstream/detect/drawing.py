"""Figure of images with detected boxes, masks, names and scores. Uses no global plotting state."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from remask.downstream.detect.detector import Found
from remask.errors import UserError
from remask.evaluation.figures.lettering import png, shown

CAPTION = 48
"""Maximum number of characters of an image's caption."""
_INK, _PAPER, _BLEND = "#1f2328", "white", 0.45


class Drawing(NamedTuple):
    """An image, instances in its pixels (scores and masks Bool[n, H, W] are optional), and a caption."""

    image: UInt8[Tensor, "3 H W"]
    found: Found
    caption: str = ""


def sheet_of_boxes(
    drawings: Sequence[Drawing],
    classes: Sequence[str],
    *,
    columns: int = 4,
    score: float = 0.3,
    width: float = 3.2,
    dpi: int = 120,
) -> bytes:
    """A PNG of images with instances of at least `score`, `columns` images per row, each `width` inches wide.

    classes   names of labels 1, 2, …; a class has the same colour in every image
    Raises UserError for no images.
    """
    if not drawings:
        raise UserError("there is no picture to draw boxes on: the source gave none")
    from matplotlib.figure import Figure

    columns = min(columns, len(drawings))
    rows = math.ceil(len(drawings) / columns)
    tall = max(d.image.shape[1] / d.image.shape[2] for d in drawings)
    figure = Figure(figsize=(columns * width, rows * (width * tall + 0.25)), dpi=dpi, facecolor=_PAPER)
    for number, drawing in enumerate(drawings):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, drawing, classes, score)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.22 / (rows * (width * tall + 0.25)))
    figure.subplots_adjust(wspace=0.03, hspace=0.25 / (width * tall))
    return png(figure)


def _draw(axes: Any, drawing: Drawing, classes: Sequence[str], score: float) -> None:
    from matplotlib.patches import Rectangle

    instances = drawing.found
    keep = instances["scores"] >= score if "scores" in instances else instances["labels"] > 0
    instances = {key: value[keep].cpu() for key, value in instances.items() if isinstance(value, Tensor)}
    colours = [_colour(label) for label in instances["labels"].tolist()]
    axes.imshow(blended(drawing.image, instances.get("masks"), colours))
    scores: list[float | None] = instances["scores"].tolist() if "scores" in instances else [None] * len(colours)
    for box, label, colour, value in zip(
        instances["boxes"].tolist(), instances["labels"].tolist(), colours, scores, strict=True
    ):
        x, y, right, bottom = box
        axes.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, edgecolor=colour, linewidth=1.2))
        name = shown(classes[label - 1])
        words = name if value is None else f"{name} {value:.2f}"
        plate = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
        axes.text(x, y, words, fontsize=5.5, color=_PAPER, va="bottom", bbox=plate, clip_on=True, parse_math=False)
    axes.set_title(shown(drawing.caption, CAPTION), fontsize=7, color=_INK, pad=3, parse_math=False)
    axes.set_axis_off()


def blended(
    image: UInt8[Tensor, "3 H W"], masks: Tensor | None, colours: Sequence[tuple[float, float, float]]
) -> Float[np.ndarray, "H W 3"]:
    """The image as 0..1 with each mask tinted in its colour, the first on top."""
    pixels = image.permute(1, 2, 0).cpu().double().numpy() / 255
    for mask, colour in reversed(list(zip(masks if masks is not None else (), colours, strict=False))):
        lit = mask.numpy().astype(bool)
        pixels[lit] = (1 - _BLEND) * pixels[lit] + _BLEND * np.asarray(colour)
    return pixels


def _colour(label: int) -> tuple[float, float, float]:
    """A colour of a label: hues at the golden ratio, distinct for close labels, dark enough for white text."""
    from matplotlib.colors import hsv_to_rgb

    red, green, blue = hsv_to_rgb((label * 0.618034 % 1.0, 0.85, 0.75))
    return float(red), float(green), float(blue)


__all__ = ["Drawing", "blended", "sheet_of_boxes"]
