"""Figure of segmentations: image, true classes and predicted classes side by side, with a legend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from torch import Tensor

from remask.downstream.segment.mask_source import IGNORE
from remask.evaluation.figures.lettering import labels, png

_INK = "#1f2328"
_NONE = (40, 40, 40)
"""The colour of pixels without a label."""
_HEADINGS = ("image", "truth", "prediction")
_WIDTH, _GAP, _EDGE, _HEAD, _LINE = 2.6, 0.06, 0.12, 0.24, 0.2
"""Inches: width of a panel, gap between panels, margin, height of the heading, height of a line of the legend."""


def frames(
    images: Sequence[UInt8[Tensor, "C _ _"]],
    truths: Sequence[Integer[Tensor, "_ _"] | None],
    predictions: Sequence[Integer[Tensor, "_ _"]],
    palette: Sequence[Sequence[int]],
    classes: Sequence[str],
    *,
    ignore: int = IGNORE,
    dpi: int = 110,
) -> bytes:
    """A PNG with one row per image: the image, its mask (dark where it has no label), the prediction.

    palette, classes   a colour (r, g, b) of 0..255 and a name for every class number; the legend lists those that occur
    truths             masks; None for an image without one
    ignore             the number in masks that is no class
    """
    from matplotlib.figure import Figure

    rows = [
        (_image(image), None if truth is None else painted(truth, palette, ignore), painted(guess, palette, ignore))
        for image, truth, guess in zip(images, truths, predictions, strict=True)
    ]
    shown = _occurring([mask for mask in (*truths, *predictions) if mask is not None], ignore)
    named = [(palette[number], classes[number]) for number in shown if number < len(classes)]
    if any(truth is not None and (truth == ignore).any() for truth in truths):
        named.append((_NONE, "no label"))
    heights = [_WIDTH * row[0].shape[0] / row[0].shape[1] for row in rows]
    across = 2 * _EDGE + 3 * _WIDTH + 2 * _GAP
    columns = max(1, int((across - 2 * _EDGE) / 1.5))
    down = 2 * _EDGE + _HEAD + sum(heights) + _GAP * len(rows) + _LINE * -(-len(named) // columns)
    figure = Figure(figsize=(across, down), dpi=dpi, facecolor="white")
    top = down - _EDGE - _HEAD
    for heading, c in zip(_HEADINGS, range(3), strict=True):
        middle = (_EDGE + _WIDTH / 2 + c * (_WIDTH + _GAP)) / across
        figure.text(middle, (top + 0.06) / down, heading, ha="center", va="bottom", fontsize=9, color=_INK)
    for row, height in zip(rows, heights, strict=True):
        top -= height
        for c, panel in enumerate(row):
            left = _EDGE + c * (_WIDTH + _GAP)
            axes = figure.add_axes((left / across, top / down, _WIDTH / across, height / down))
            axes.set_axis_off()
            if panel is not None:
                axes.imshow(panel, aspect="auto")
        top -= _GAP
    _legend(figure, named, columns, top, (across, down))
    return png(figure)


def painted(
    mask: Integer[Tensor, "H W"], palette: Sequence[Sequence[int]], ignore: int = IGNORE
) -> UInt8[np.ndarray, "H W 3"]:
    """A mask as RGB, each pixel in the colour of its class."""
    table = np.tile(np.array(_NONE, np.uint8), (max(ignore, len(palette)) + 1, 1))
    table[: len(palette)] = np.array(palette, np.uint8)
    table[ignore] = _NONE
    return table[mask.cpu().numpy()]


def _image(image: UInt8[Tensor, "C H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image as RGB; for other than three channels their mean in gray."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    if pixels.shape[-1] == 3:
        return pixels
    return np.repeat(pixels.mean(-1, keepdims=True).round().astype(np.uint8), 3, axis=2)


def _occurring(masks: Sequence[Tensor], ignore: int) -> list[int]:
    numbers = {int(number) for mask in masks for number in mask.unique()}
    return sorted(numbers - {ignore})


def _legend(
    figure: Any, named: Sequence[tuple[Sequence[int], str]], columns: int, top: float, size: tuple[float, float]
) -> None:
    """Draw squares of colour with names, `columns` per line; `top` and `size` in inches from the bottom left."""
    from matplotlib.patches import Rectangle

    across, down = size
    step = (across - 2 * _EDGE) / columns
    texts = labels([name for _, name in named])
    for number, ((colour, _), text) in enumerate(zip(named, texts, strict=True)):
        left, base = _EDGE + number % columns * step, top - _LINE * (number // columns + 1)
        shade = tuple(value / 255 for value in colour)
        square = Rectangle(
            (left / across, (base + 0.03) / down), 0.14 / across, 0.14 / down, color=shade, transform=figure.transFigure
        )
        figure.add_artist(square)
        position = (left + 0.2) / across, (base + 0.1) / down
        figure.text(*position, text, va="center", fontsize=7.5, color=_INK, parse_math=False)


__all__ = ["frames", "painted"]
