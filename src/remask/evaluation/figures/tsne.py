"""t-SNE of the same images in several networks, side by side (DMJD, 2301.00230, figure 7), by scikit-learn.

Features are normalised to length 1, so that distances correspond to the cosine similarity of kNN, and reduced to at
most 50 principal components; the map is initialised by the first two (van der Maaten and Hinton 2008; Kobak and Berens
2019).
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor

from remask.errors import UserError
from remask.evaluation.figures.lettering import labels as short
from remask.evaluation.figures.lettering import legend, png, shown

COMPONENTS = 50
LEGEND = 20
"""Maximum number of classes with distinct colours and a legend."""
COLUMNS = 3
"""Columns of the legend per panel."""
TITLE = 40
"""Maximum number of characters of a panel's title."""


class Map(NamedTuple):
    """The map of a network, and kNN accuracies that show how well its classes are separated."""

    points: Float[Tensor, "n 2"]
    knn_features: float
    """Leave-one-out accuracy of the majority among the k nearest by features, in percent."""
    knn_map: float
    """The same accuracy by distance in the map."""


def choose_images(labels: Sequence[int] | None, classes: int, per_class: int, seed: int) -> list[int]:
    """Numbers of up to `per_class` random images of up to `classes` random classes, ascending.

    Raises UserError for missing labels or a single class.
    """
    y = _checked(None if labels is None else torch.tensor(labels, dtype=torch.int64))
    generator = Generator().manual_seed(seed)
    present = y.unique()
    chosen = present[torch.randperm(len(present), generator=generator)[:classes]]
    numbers = []
    for label in chosen.sort().values.tolist():
        members = (y == label).nonzero().flatten()
        numbers.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(numbers).sort().values.tolist()


def tsne_maps(
    features: Mapping[str, Float[Tensor, "_ _"]],
    labels: Int[Tensor, "n"] | None,
    *,
    perplexity: float = 30.0,
    k: int = 20,
    seed: int = 0,
    iterations: int = 1000,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Map]:
    """The map of each network by name; the same maps for the same seed.

    features   by network, of the same images in the same order; widths may differ
    k          neighbours whose majority predicts the class, in the features and in the map
    iterations of t-SNE
    progress   called with a line before each map
    Raises UserError for labels that are missing or of one class, features of another number of images, or no more
    images than neighbours.
    """
    from sklearn.manifold import TSNE

    y, say = _checked(labels), progress or (lambda line: None)
    for name, x in features.items():
        if len(x) != len(y):
            raise UserError(f"{name} has features of {len(x)} images and there are {len(y)} labels: one map, one list")
    if len(y) <= max(perplexity, k):
        raise UserError(
            f"{len(y)} images are too few for a perplexity of {perplexity:g} and {k} neighbours: "
            "give more images, or lower --perplexity and --k"
        )
    maps = {}
    for name, x in features.items():
        say(f"t-SNE of {len(x)} images, {name}")
        unit = F.normalize(x.double(), dim=1)
        tsne = TSNE(perplexity=perplexity, init="pca", max_iter=iterations, random_state=seed)
        points = torch.from_numpy(tsne.fit_transform(principal(unit).float().numpy())).float()
        maps[name] = Map(points, separation(unit, y, k), separation(points, y, k))
    return maps


def principal(x: Float[Tensor, "n D"], components: int = COMPONENTS) -> Float[Tensor, "n d"]:
    """The first principal components; unchanged but centred if x has no more. Signs are deterministic."""
    centred = x - x.mean(0)
    if min(x.shape) <= components:
        return centred
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:components]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return centred @ (directions * largest.sign()).T


def separation(x: Float[Tensor, "n D"], y: Int[Tensor, "n"], k: int) -> float:
    """Leave-one-out accuracy in percent of the majority class among the k nearest (ties: the smaller number)."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors(return_distance=False)  # without the image itself
    y = y.unique(return_inverse=True)[1]  # class numbers may be arbitrary integers
    votes = F.one_hot(y[torch.from_numpy(near)]).sum(1)
    return round(100 * float((votes.argmax(1) == y).double().mean()), 2)


def summary(maps: Mapping[str, Map], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of eval/tsne.json: {"separation": {name: {"features", "map"}}, "protocol"}; settings: added to it."""
    description = (
        "leave-one-out accuracy of the majority of the k nearest, percent, by cosine in the features and in the map"
    )
    return {
        "separation": {name: {"features": result.knn_features, "map": result.knn_map} for name, result in maps.items()},
        "protocol": {
            "separation": description,
            "tsne": f"scikit-learn, features of length 1, {COMPONENTS} principal components, PCA start",
            **settings,
        },
    }


def tsne_figure(
    maps: Mapping[str, Map], labels: Int[Tensor, "n"], names: Sequence[str] | None = None, columns: int = 4
) -> bytes:
    """A PNG with a panel per network, each class in the same colour in all panels, and a legend.

    names   of the classes, by number
    """
    from matplotlib.figure import Figure

    classes, y = labels.unique().tolist(), labels.numpy()
    across = min(columns, len(maps))
    down = -(-len(maps) // across)
    figure = Figure(figsize=(3.2 * across + 0.2, 3.5 * down + 0.8), dpi=150, facecolor="white", layout="constrained")
    colours = _colours(len(classes))
    for number, (name, result) in enumerate(maps.items()):
        axes = figure.add_subplot(down, across, number + 1)
        points, size = result.points.numpy(), max(2.0, min(18.0, 9000 / len(y)))
        for label, colour in zip(classes, colours, strict=True):
            members = y == label
            axes.scatter(points[members, 0], points[members, 1], s=size, color=colour, linewidths=0, alpha=0.8)
        numbers = f"kNN {result.knn_features:.1f} % in features, {result.knn_map:.1f} % in map"
        axes.set_title(f"{shown(name, TITLE)}\n{numbers}", fontsize=9, parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
    if len(classes) <= LEGEND:
        legend(
            figure, figure.axes[0].collections, short([named(label, names) for label in classes]),
            loc="outside lower center", ncols=min(len(classes), COLUMNS * across), frameon=False, fontsize=8,
            markerscale=2,
        )  # fmt: skip
    else:
        figure.supxlabel(f"{len(classes)} classes", fontsize=8)
    return png(figure)


def _colours(count: int) -> list[Any]:
    import matplotlib

    if count > LEGEND:
        return list(matplotlib.colormaps["hsv"](np.linspace(0, 1, count, endpoint=False)))
    few: Any = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    return list(few.colors[:count])


def named(label: int, names: Sequence[str] | None) -> str:
    """The name of a class, or its number as text."""
    return names[label] if names is not None and label < len(names) else str(label)


def table(
    maps: Mapping[str, Map],
    labels: Int[Tensor, "n"],
    index: Sequence[int],
    paths: Sequence[str],
    names: Sequence[str] | None = None,
) -> str:
    """Coordinates as CSV: run, index, path, label, class, x, y; one line per image and network."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "index", "path", "label", "class", "x", "y"))
    for run, result in maps.items():
        for i, path, label, (x, y) in zip(index, paths, labels.tolist(), result.points.tolist(), strict=True):
            writer.writerow((run, i, path, label, named(label, names), f"{x:.6g}", f"{y:.6g}"))
    return text.getvalue()


def _checked(labels: Int[Tensor, "n"] | None) -> Int[Tensor, "n"]:
    if labels is None:
        raise UserError("the images have no labels to colour a map by: it needs class folders or a label column")
    if len(labels.unique()) < 2:
        raise UserError(f"all {len(labels)} images are of one class: a map that is coloured by class needs two or more")
    return labels


__all__ = ["LEGEND", "Map", "choose_images", "principal", "separation", "summary", "table", "tsne_figure", "tsne_maps"]
