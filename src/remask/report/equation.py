"""The equation of the library with a method's names and numbers filled in: what `remask show` prints."""

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from remask.method import Branch, Method
from remask.types import Size


def equation(method: Method, size: Size) -> str:
    """Plain lines for images of `size` pixels. Raises UserError where patches or masking do not fit the size."""
    grid = method.grid(size)
    counts, views = method.masking.counts(grid), method.masking.views
    visible = counts.tokens - counts.hidden
    tokens = {"masked": counts.hidden, "visible": visible, "seen": visible + method.backbone.prefix}
    terms = list(_terms(method, tokens))
    sees = {
        None: "the visible patches of a view",
        "tokens": "all patches, the masked ones replaced by a learned fill",
        "pixels": "all patches, masked pixels replaced by a learned colour",
    }[method.replace]
    colours = ", in other colours" if method.jitter else ""
    unit = "" if method.unit == method.backbone.patch else f" of {method.unit[0]}×{method.unit[1]} px"
    network, (ph, pw) = method.backbone, method.backbone.patch
    name = type(network if network.modes else network.network).__name__
    return "\n".join(
        [
            "L(x) = " + "\n     + ".join(terms),
            "",
            f"f  {name} of width {network.width}, depth {network.depth}, patches of {ph}×{pw} px; sees {sees}{colours}",
            f"x  image of {size[0]}×{size[1]} px, {grid[0]}×{grid[1]} = {counts.tokens} tokens{unit}",
            f"v  {_pattern(method)}, m_corr {counts.hidden / counts.tokens:.4g}; K = {views} view{'s' * (views > 1)}"
            f"{_together(method, counts.predicted, counts.tokens)}",
        ]
    )


def _terms(method: Method, tokens: dict[str, int]) -> Iterator[str]:
    """A line per branch: λ · mean over Ω of d( h ; τ )."""
    views = method.masking.views
    for branch in method.branches:
        count = f"{tokens[branch.region]} {branch.region} tokens"
        over = f"{views} views, {count} each" if views > 1 else f"1 view, {count}"
        yield (
            f"{branch.weight:g} · mean over {over}, of {distance_name(branch.distance)}"
            f"( {branch.head.describe()}{_depth(branch)} ; {branch.target.describe()} )"
        )


def _depth(branch: Branch) -> str:
    return "" if branch.layer == -1 else f" at block {branch.layer}"


def distance_name(distance: Any) -> str:
    """`squared`, `smooth-l1 β=2`: the function's name and its parameters, fixed by `partial` or by default."""
    function, fixed = (distance.func, distance.keywords) if isinstance(distance, partial) else (distance, {})
    parameters = inspect.signature(function).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not p.empty} | fixed
    greek = {"beta": "β"}
    return " ".join([function.__name__.replace("_", "-"), *(f"{greek.get(k, k)}={v:g}" for k, v in values.items())])


def _pattern(method: Method) -> str:
    """`random`, `block-wise`, and the unit if it is not a patch."""
    score, cell = method.masking.score, method.masking.cell
    name = getattr(score, "__name__", type(score).__name__).lower()
    name = {"blocks": "block-wise"}.get(name, name)
    return f"{name} masking" + (f" of cells of {cell}×{cell} patches" if cell > 1 else "")


def _together(method: Method, predicted: float, tokens: int) -> str:
    """What the views predict between them."""
    masking = method.masking
    if masking.views == 1:
        return ""
    if masking.prediction is None:
        return f", drawn independently: m_pred {predicted / tokens:.4g} on average"
    return f", disjoint as far as they can be: m_pred {predicted / tokens:.4g} ({predicted:g} of {tokens} tokens)"


__all__ = ["distance_name", "equation"]
