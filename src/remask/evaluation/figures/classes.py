"""Figure of a data set's classes: training images of each class, below a larger image if there is one."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from remask.evaluation.figures.lettering import png, shown
from remask.evaluation.figures.sheet import canvas, place

MOST = 24
"""Maximum number of classes in a figure."""
_INK, _FAINT = "#1f2328", "#59636e"


class Shown(NamedTuple):
    """A class: its name, some of its images, and optionally a larger one."""

    name: str
    images: Sequence[UInt8[Tensor, "Y X 3"]]
    portrait: UInt8[Tensor, "H W 3"] | None = None


def classes_figure(
    classes: Sequence[Shown], notes: Sequence[str] = (), columns: int = 4, width: float = 2.3, dpi: int = 120
) -> bytes:
    """A PNG of cells, `columns` per row, `width` inches wide: a class's name, its portrait, its images in a row."""
    from matplotlib.figure import Figure

    columns = min(columns, len(classes))
    count = max(len(entry.images) for entry in classes)
    small, tall = width / count, 0.66 * width if any(entry.portrait is not None for entry in classes) else 0.0
    edge, gap, head = 0.12, 0.16, 0.2
    height = head + tall + (0.05 if tall else 0) + small + gap
    total_x = 2 * edge + columns * width + (columns - 1) * gap
    lines = [line for note in notes for line in textwrap.wrap(note, max(40, int(total_x * 15)))]
    foot = 0.19 * len(lines) + 0.04
    total_y = 2 * edge + -(-len(classes) // columns) * height + foot
    figure = Figure(figsize=(total_x, total_y), dpi=dpi, facecolor="white")
    axes = canvas(figure)

    for number, entry in enumerate(classes):
        left, top = edge + number % columns * (width + gap), total_y - edge - number // columns * height
        figure.text(
            left / total_x, (top - head + 0.05) / total_y, shown(entry.name, 30), va="bottom", fontsize=8.5,
            fontweight="bold", color=_INK, parse_math=False,
        )  # fmt: skip
        if entry.portrait is not None:
            place(axes, _cut(entry.portrait, tall / width), (left, top - head - tall, width, tall))
        for column, image in enumerate(entry.images):
            place(axes, image, (left + column * small, top - height + gap, 0.96 * small, 0.96 * small))
    for number, line in enumerate(reversed(lines)):
        at = (edge + 0.19 * number) / total_y
        figure.text(edge / total_x, at, line, va="bottom", fontsize=7.5, color=_FAINT, parse_math=False)
    return png(figure)


def _cut(image: UInt8[Tensor, "H W 3"], ratio: float) -> UInt8[Tensor, "h w 3"]:
    """The central rows of an image, cropped to height / width <= ratio; the width is not cropped."""
    rows, columns = image.shape[:2]
    tall = min(rows, round(columns * ratio))
    top = (rows - tall) // 2
    return image[top : top + tall]


__all__ = ["MOST", "Shown", "classes_figure"]
