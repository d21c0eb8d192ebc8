"""Figure of the nearest training images of some test images, by features and by pixels."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor

from remask.evaluation.figures.lettering import png, shown
from remask.evaluation.figures.sheet import canvas, place

RIGHT, _INK, _FAINT = "#2f9e5b", "#1f2328", "#59636e"
_CHUNK = 2**24
"""Maximum number of similarities computed at once, 64 MB."""


class Near(NamedTuple):
    """The nearest training images of a test image, nearest first, and the names of their classes."""

    images: Sequence[UInt8[Tensor, "Y X 3"]]
    classes: Sequence[str]


class Query(NamedTuple):
    """A test image, the name of its class, and its nearest training images in each group."""

    image: UInt8[Tensor, "Y X 3"]
    name: str
    near: Sequence[Near]


def nearest(train: Float[Tensor, "n D"], test: Float[Tensor, "m D"], k: int) -> Int[Tensor, "m k"]:
    """Numbers of the `k` training rows of largest cosine similarity, nearest first; the same as in kNN."""
    bank, queries = F.normalize(train, dim=1), F.normalize(test, dim=1)
    rows = max(1, _CHUNK // len(bank))
    return torch.cat([(column @ bank.T).topk(k, dim=1).indices for column in queries.split(rows)])


def agreement(near: Int[Tensor, "m k"], train_y: Int[Tensor, "n"], test_y: Int[Tensor, "m"]) -> float:
    """Precision at k in percent: the share of nearest images of the test image's class."""
    return 100 * float((train_y[near] == test_y[:, None]).double().mean())


def choose(labels: Int[Tensor, "m"], count: int, seed: int) -> Int[Tensor, "_"]:
    """Numbers of `count` random test images from as many classes as possible, sorted by class."""
    order = torch.randperm(len(labels), generator=Generator().manual_seed(seed))
    used, first, later = set[int](), list[int](), list[int]()
    for number, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        (later if label in used else first).append(number)
        used.add(label)
    chosen = torch.tensor([*first, *later][:count], dtype=torch.int64)
    return chosen[labels[chosen].argsort(stable=True)]


def neighbours_figure(
    rows: Sequence[Query], titles: Sequence[str], notes: Sequence[str] = (), side: float = 0.82, dpi: int = 150
) -> bytes:
    """A PNG with a row per test image: the image, then its nearest ones in each group, framed if of its class.

    titles   of the groups     notes   lines below     side   inches of an image's side
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    k, step, edge, gap, below, head = len(rows[0].near[0].images), side + 0.08, 0.12, 0.3, 0.2, 0.5
    lefts = [edge + side + gap + number * (k * step - 0.08 + gap) for number in range(len(titles))]
    total_x = lefts[-1] + k * step - 0.08 + edge
    lines = [line for note in notes for line in textwrap.wrap(note, max(40, int(total_x * 15)))]
    total_y = 2 * edge + head + len(rows) * (side + below) + 0.19 * len(lines) + 0.06
    figure = Figure(figsize=(total_x, total_y), dpi=dpi, facecolor="white")
    axes = canvas(figure)
    words: dict[str, Any] = {"parse_math": False, "color": _INK}

    def put(left: float, row: int, image: Tensor, name: str, frame: str | None) -> None:
        bottom = total_y - edge - head - (row + 1) * (side + below) + below
        x, y, wide, high = place(axes, image, (left, bottom, side, side))
        if frame:
            axes.add_patch(Rectangle((x, y), wide, high, fill=False, edgecolor=frame, linewidth=2.6))
        style = {**words, "color": frame or _FAINT}
        figure.text(
            (left + side / 2) / total_x, (bottom - 0.05) / total_y, shown(name, 13), ha="center", va="top",
            fontsize=6.8, fontweight="bold" if frame else "normal", **style,
        )  # fmt: skip

    top = (total_y - edge - head + 0.1) / total_y
    figure.text((edge + side / 2) / total_x, top, "test picture", ha="center", va="bottom", fontsize=8, **words)
    for left, title in zip(lefts, titles, strict=True):
        figure.text(left / total_x, top, title, va="bottom", fontsize=8, **words)
    for number, row in enumerate(rows):
        put(edge, number, row.image, row.name, _INK)
        for left, near in zip(lefts, row.near, strict=True):
            for rank, (image, name) in enumerate(zip(near.images, near.classes, strict=True)):
                put(left + rank * step, number, image, name, RIGHT if name == row.name else None)
    for number, line in enumerate(reversed(lines)):
        at = (edge + 0.19 * number) / total_y
        figure.text(edge / total_x, at, line, va="bottom", fontsize=7.5, parse_math=False, color=_FAINT)
    return png(figure)


__all__ = ["Near", "Query", "agreement", "choose", "nearest", "neighbours_figure"]
