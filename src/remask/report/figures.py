"""Charts of a report as inline SVG, transparent and readable on light and dark pages."""

import io
from collections.abc import Mapping, Sequence

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Label -> (x, y)."""

INK = "#808080"
COLOURS = ("#2f7ed8", "#e07b39", "#3aa76d", "#9467bd")


def lines(series: Series, x: str, y: str, log: bool = False) -> str:
    """A line chart; every series is labelled at its end."""
    axis, figure = _axes()
    for colour, (label, (xs, ys)) in zip(COLOURS, series.items(), strict=False):
        axis.plot(xs, ys, color=colour, linewidth=1.6, label=label, marker="o" if len(xs) < 15 else "", markersize=3)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if log:
        axis.set_yscale("log")
    if len(series) > 1:
        axis.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _svg(figure)


def bars(groups: Mapping[str, Mapping[str, float]], y: str) -> str:
    """Grouped bars, a number on each: {"kNN": {"trained": 50, "untrained": 30}}."""
    axis, figure = _axes(width=7.6)
    labels = list(next(iter(groups.values())))
    width = 0.8 / len(labels)
    for k, (label, colour) in enumerate(zip(labels, (COLOURS[0], "#9aa5b1", "#c9b458"), strict=False)):
        values = [group[label] for group in groups.values()]
        places = [i + (k - (len(labels) - 1) / 2) * width for i in range(len(groups))]
        drawn = axis.bar(places, values, width * 0.92, color=colour, label=label)
        axis.bar_label(drawn, fmt="%.1f", fontsize=8, color=INK, padding=1)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_ylabel(y)
    axis.margins(y=0.15)
    axis.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=3, loc="upper right", bbox_to_anchor=(1, 1.14))
    return _svg(figure)


def _axes(width: float = 5.2, height: float = 3.0):  # type: ignore[no-untyped-def]  # matplotlib has no types here
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axis = figure.subplots()
    axis.patch.set_alpha(0)
    axis.grid(True, color=INK, alpha=0.2, linewidth=0.6)
    axis.tick_params(colors=INK, labelsize=9)
    for name, spine in axis.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in ("left", "bottom"))
    axis.xaxis.label.set_color(INK)
    axis.yaxis.label.set_color(INK)
    return axis, figure


def _svg(figure) -> str:  # type: ignore[no-untyped-def]
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return (
        text[text.index("<svg") :]
        .replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")
        .replace("xlink:href", "href")
    )


__all__ = ["bars", "lines"]
