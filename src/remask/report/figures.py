"""Curves as SVG elements for an HTML page, in the page's font and text colour (light and dark)."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from remask.evaluation.figures.lettering import as_written, legend

COLOURS = ("#3f83c8", "#d9822b", "#4c9f70", "#b0567c", "#8a6fc0")
"""Readable on white and on near-black."""
_INK = "#010203"
"""Placeholder colour, replaced by the page's text colour in the SVG."""
_POINTS = 600
"""Maximum number of points of a curve; longer ones are averaged."""

Curve = tuple[Sequence[float], Sequence[float]]


def curves(name: str, series: Mapping[str, Curve], x_label: str, *, markers: bool = False, zero: bool = False) -> str:
    """An <svg> element with one line per series {label: (x, y)}, and a legend for several.

    name  makes ids inside the SVG unique on the page     zero  start the y axis at 0
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _INK,
        "text.color": _INK,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for number, curve in enumerate(series.values()):
            x, y = averaged(*curve)
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(x, y, color=colour, linewidth=1.6, marker="o" if markers or len(x) < 3 else None)
        axes.set_xlabel(x_label, color=_INK)
        axes.tick_params(colors=_INK, labelsize=8)
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        axes.margins(x=0.01)
        if zero:
            axes.set_ylim(bottom=0)
        if len(series) > 1:
            legend(axes, axes.lines, [*series], frameon=False, labelcolor=_INK, fontsize=8)
        as_written(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue())


def averaged(x: Sequence[float], y: Sequence[float]) -> Curve:
    """The curve, averaged over consecutive points if it has more than _POINTS."""
    if len(x) <= _POINTS:
        return x, y
    cuts = [round(i * len(x) / _POINTS) for i in range(_POINTS + 1)]
    pairs = list(pairwise(cuts))
    return [sum(x[a:b]) / (b - a) for a, b in pairs], [sum(y[a:b]) / (b - a) for a, b in pairs]


def inline(svg: str) -> str:
    """A matplotlib SVG file as an element of a page: without prolog, metadata and namespaces, in the page's colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'^<svg([^>]*?) (?:width|height)="[\d.]+pt"', r"<svg\1", svg)
    svg = re.sub(r'^<svg([^>]*?) (?:width|height)="[\d.]+pt"', r"<svg\1", svg)
    return svg.replace(_INK, "currentColor").strip()


__all__ = ["COLOURS", "averaged", "curves", "inline"]
