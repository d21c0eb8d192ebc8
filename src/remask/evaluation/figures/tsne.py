"""t-SNE of the same images in several networks, side by side (DMJD, 2301.00230, figure 7), by scikit-learn.

Features are divided by their length, so that distances are those of the cosine as in kNN, and reduced to at most 50
principal components; the map starts from the first two (van der Maaten and Hinton 2008; Kobak and Berens 2019).
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
from remask.evaluation.figures.lettering import png, shown

COMPONENTS = 50
LEGEND = 20
"""Most classes that a legend names, and that have colours of their own."""
COLUMNS = 3
"""Columns of the legend below each panel."""
TITLE = 40
"""Characters of a network's name that fit above its panel."""


class Map(NamedTuple):
    """One network's map, and how many of its images have neighbours of their own class."""

    points: Float[Tensor, "n 2"]
    knn_features: float
    """Leave-one-out accuracy of the majority among the k nearest by features, in percent."""
    knn_map: float
    """The same by distance in the map."""


def choose_images(labels: Sequence[int] | None, classes: int, per_class: int, seed: int) -> list[int]:
    """Numbers of images for a map: `per_class` random ones of `classes` random classes, or of all where there are
    fewer; ascending. Raises UserError where there are no labels, or one class.
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
    """A map for each network, by name; the same maps for the same seed.

    features   of the same images in the same order, whatever the width
    k          neighbours whose majority names the class, in the features and in the map
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
    """The first principal components, at most as many as there are; the same signs on every machine."""
    centred = x - x.mean(0)
    if min(x.shape) <= components:
        return centred
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:components]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return centred @ (directions * largest.sign()).T


def separation(x: Float[Tensor, "n D"], y: Int[Tensor, "n"], k: int) -> float:
    """Share in percent of the images whose k nearest others are mostly of their class (ties: the smaller number)."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors(return_distance=False)  # without the image itself
    y = y.unique(return_inverse=True)[1]  # numbers of classes may be ids of any size
    votes = F.one_hot(y[torch.from_numpy(near)]).sum(1)
    return round(100 * float((votes.argmax(1) == y).double().mean()), 2)


def summary(maps: Mapping[str, Map], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of eval/tsne.json; `settings` are those of the call."""
    how = "leave-one-out accuracy of the majority of the k nearest, percent, by cosine in the features and in the map"
    return {
        "separation": {name: {"features": found.knn_features, "map": found.knn_map} for name, found in maps.items()},
        "protocol": {
            "separation": how,
            "tsne": f"scikit-learn, features of length 1, {COMPONENTS} principal components, PCA start",
            **settings,
        },
    }


def tsne_figure(
    maps: Mapping[str, Map], labels: Int[Tensor, "n"], names: Sequence[str] | None = None, columns: int = 4
) -> bytes:
    """A PNG with a panel a network, every class in the same colour everywhere, and a legend.

    names   of the class numbers
    """
    from matplotlib.figure import Figure

    classes, y = labels.unique().tolist(), labels.numpy()
    across = min(columns, len(maps))
    down = -(-len(maps) // across)
    figure = Figure(figsize=(3.2 * across + 0.2, 3.5 * down + 0.8), dpi=150, facecolor="white", layout="constrained")
    colours = _colours(len(classes))
    for number, (name, found) in enumerate(maps.items()):
        axes = figure.add_subplot(down, across, number + 1)
        points, size = found.points.numpy(), max(2.0, min(18.0, 9000 / len(y)))
        for label, colour in zip(classes, colours, strict=True):
            of = y == label
            axes.scatter(points[of, 0], points[of, 1], s=size, color=colour, linewidths=0, alpha=0.8)
        numbers = f"kNN {found.knn_features:.1f} % in features, {found.knn_map:.1f} % in map"
        axes.set_title(f"{shown(name, TITLE)}\n{numbers}", fontsize=9, parse_math=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_aspect("equal", "datalim")
    if len(classes) <= LEGEND:
        legend = figure.legend(
            figure.axes[0].collections, map(str, classes), loc="outside lower center",
            ncols=min(len(classes), COLUMNS * across), frameon=False, fontsize=8, markerscale=2,
        )  # fmt: skip
        texts = short([named(label, names) for label in classes])
        for text, label in zip(legend.get_texts(), texts, strict=True):  # a legend would drop names that begin with _
            text.set_parse_math(False)
            text.set_text(label)
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
    """The name of a class, or its number."""
    return names[label] if names is not None and label < len(names) else str(label)


def table(
    maps: Mapping[str, Map],
    labels: Int[Tensor, "n"],
    index: Sequence[int],
    paths: Sequence[str],
    names: Sequence[str] | None = None,
) -> str:
    """Coordinates as CSV: run, index, path, label, class, x, y; a line an image and a network."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "index", "path", "label", "class", "x", "y"))
    for run, found in maps.items():
        for i, path, label, (x, y) in zip(index, paths, labels.tolist(), found.points.tolist(), strict=True):
            writer.writerow((run, i, path, label, named(label, names), f"{x:.6g}", f"{y:.6g}"))
    return text.getvalue()


def _checked(labels: Int[Tensor, "n"] | None) -> Int[Tensor, "n"]:
    if labels is None:
        raise UserError("the images have no labels to colour a map by: it needs class folders or a label column")
    if len(labels.unique()) < 2:
        raise UserError(f"all {len(labels)} images are of one class: a map that is coloured by class needs two or more")
    return labels


__all__ = ["LEGEND", "Map", "choose_images", "principal", "separation", "summary", "table", "tsne_figure", "tsne_maps"]
