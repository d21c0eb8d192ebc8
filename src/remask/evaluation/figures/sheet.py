"""A sheet of labelled panels as a PNG: rows of images, headings of columns, notes below. No global plotting state."""

import textwrap
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from remask.evaluation.figures.lettering import png

SHORT_SIDE = 224
"""Images are enlarged by an integer factor to at least this many pixels on the shorter side."""
_INK, _FAINT = "#1f2328", "#59636e"
_PLAIN: dict[str, Any] = {"color": _INK, "parse_math": False}


class Panel(NamedTuple):
    """An image, the heading of its column, and a caption."""

    heading: str
    image: UInt8[Tensor, "Y X 3"]
    caption: str = ""


class Reconstruction(NamedTuple):
    """Rows of panels, all with the same columns, and notes below."""

    rows: list[list[Panel]]
    notes: list[str]


def rgb(image: UInt8[Tensor, "C H W"], side: int = SHORT_SIDE) -> UInt8[Tensor, "Y X 3"]:
    """The image as RGB (other than 3 channels: their mean in grey), enlarged by an integer factor to `side` pixels."""
    if image.shape[0] != 3:
        image = image.float().mean(0, keepdim=True).round().to(torch.uint8).expand(3, -1, -1)
    factor = max(1, -(-side // min(image.shape[1:])))
    return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2).permute(1, 2, 0)


def canvas(figure: Any) -> Any:
    """Axes over the full figure, in inches, to place many images: separate axes for each take ten times as long."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(0, figure.get_figheight()), autoscale_on=False)
    return axes


def place(
    axes: Any, image: UInt8[Tensor, "Y X 3"], box: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Draw an image centred and as large as fits in a box on a `canvas`; returns the image's box.

    box   left, bottom, width, height in inches
    """
    left, bottom, wide, high = box
    rows, columns = image.shape[:2]
    scale = min(wide / columns, high / rows)
    x, y = left + (wide - scale * columns) / 2, bottom + (high - scale * rows) / 2
    axes.imshow(image.numpy(), extent=(x, x + scale * columns, y, y + scale * rows))
    return x, y, scale * columns, scale * rows


def sheet(reconstruction: Reconstruction, width: float = 1.6, dpi: int = 150) -> bytes:
    """A PNG of the panels, each `width` inches wide; the height follows from the first image."""
    from matplotlib.figure import Figure

    rows = reconstruction.rows
    columns, (y, x) = len(rows[0]), rows[0][0].image.shape[:2]
    height, gap, edge, head = width * y / x, 0.07, 0.12, 0.4
    below = 0.2 if any(panel.caption for row in rows for panel in row) else 0.0
    total_x = 2 * edge + columns * width + (columns - 1) * gap
    notes = [line for note in reconstruction.notes for line in textwrap.wrap(note, max(40, int(total_x * 15)))]
    foot = 0.17 * len(notes) + (0.08 if notes else 0.0)
    total_y = 2 * edge + head + len(rows) * (height + below) + (len(rows) - 1) * gap + foot
    figure = Figure(figsize=(total_x, total_y), dpi=dpi, facecolor="white")
    axes = canvas(figure)
    for r, row in enumerate(rows):
        bottom = total_y - edge - head - (r + 1) * height - r * (below + gap)
        for c, panel in enumerate(row):
            left = edge + c * (width + gap)
            box = (left, left + width, bottom, bottom + height)
            axes.imshow(panel.image.numpy(), extent=box, aspect="auto")
            if r == 0:
                middle = (left + width / 2) / total_x
                at = (bottom + height + 0.05) / total_y
                figure.text(middle, at, panel.heading, ha="center", va="bottom", fontsize=8, **_PLAIN)
            if panel.caption:
                at = (bottom - 0.04) / total_y
                middle = (left + width / 2) / total_x
                figure.text(middle, at, panel.caption, ha="center", va="top", fontsize=7.5, **_PLAIN)
    for number, line in enumerate(reversed(notes)):
        at = (edge + 0.17 * number) / total_y
        figure.text(edge / total_x, at, line, va="bottom", fontsize=7.5, color=_FAINT, parse_math=False)
    return png(figure)


__all__ = ["SHORT_SIDE", "Panel", "Reconstruction", "canvas", "place", "rgb", "sheet"]
