"""The probe: does the backbone know more than before it was trained, and more than the pixels it was shown?

Weighted kNN and a linear classifier on frozen features, with all labels and with few a class, each for the trained
network, for the same network untrained, and for raw pixels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from remask.backbones import Backbone
from remask.errors import UserError
from remask.evaluation.probing.features import Labelled, Pool, Progress, collect, flat, reader
from remask.evaluation.probing.knn import weighted_knn
from remask.evaluation.probing.logistic_regression import LinearResult, linear_probe

Factory = Callable[[], Iterable[Labelled]]
DRAWS = 5
"""Few labels are drawn this many times, and accuracies averaged: a single draw says more about luck."""
TEMPERATURE = 0.07


class Split(NamedTuple):
    """Every kind of features of the same images, and their class numbers."""

    x: Mapping[str, Float[Tensor, "n D"]]
    y: Int[Tensor, "n"]

    def take(self, ids: Int[Tensor, "few"]) -> "Split":
        return Split({name: features[ids] for name, features in self.x.items()}, self.y[ids])


def probe(
    backbones: Mapping[str, Backbone],
    train_batches: Factory,
    val_batches: Factory,
    *,
    few: int = 10,
    fractions: Sequence[float] = (),
    k: int = 20,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    on_fit: Progress | None = None,
    layer: int = -1,
    pool: Pool = "mean",
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """The content of eval/probe.json; accuracies in percent.

    backbones   {"top1": trained, "untrained": the same network untrained}; "pixels" is added here
    few         labels a class in the second half of the table
    fractions   shares of every class's labels, such as .01 and .1; each adds a table under "fractions"
    k           neighbours that vote; fewer where there are fewer training images, which `progress` and the protocol say
    progress    gets a line before each longer step
    fitted      told (classifiers done, of how many, words)
    Raises UserError for a source without labels or with one class, no neighbour, features that are not finite, or
    where a class of the validation images is not among the training images.
    """
    say = progress or (lambda line: None)
    for fraction in fractions:
        check_fraction(fraction)
    readers = {name: reader(backbone, layer=layer, pool=pool, dtype=dtype) for name, backbone in backbones.items()}
    readers["pixels"] = flat
    say("features of the training images")
    train, labels = collect(readers, backbones, train_batches())
    known = checked(labels)
    bank = neighbours(k, len(known), say)
    say(f"features of the validation images ({len(known)} training images)")
    val, labels = collect(readers, backbones, val_batches())
    train_y, val_y = numbered(known, labels)
    fit_counter = _FitCounter(on_fit, len(readers) * (1 + DRAWS * (1 + len(fractions))))
    result = _scores(Split(train, train_y), Split(val, val_y), few, fractions, bank, seed, say, fit_counter)
    result["protocol"] = {
        "features": {"layer": layer, "pool": pool, "widths": {x: train[x].shape[1] for x in readers}},
        "pixels": "values of 0..1, averaged over areas to at most 3072 values an image",
        "images": {"train": len(train_y), "val": len(val_y)},
        "classes": len(train_y.unique()),
        "seed": seed,
        **result["protocol"],
        **({"k_wanted": k} if bank < k else {}),
    }
    return result


def _scores(
    train: Split,
    val: Split,
    few: int,
    fractions: Sequence[float],
    k: int,
    seed: int,
    say: Callable[[str], None],
    fit_counter: "_FitCounter",
) -> dict[str, Any]:
    """All accuracies, and the part of the protocol that is about classifiers."""
    say(f"kNN and linear classifiers ({len(val.y)} validation images)")
    knn = {name: round(_knn(train, val, name, k), 2) for name in train.x}
    linear = {name: fit_counter(name, train, val, seed) for name in train.x}
    say(f"the same with {few} labels a class, {DRAWS} draws")
    few_labels = _few_labels(train, val, few, k, seed, fit_counter)
    shares = {f"{share:g}": _fraction(train, val, share, k, seed, say, fit_counter) for share in fractions}
    return {
        "linear": {name: round(result.accuracy, 2) for name, result in linear.items()},
        "few_labels": few_labels,
        **({"fractions": shares} if shares else {}),
        "knn": {**knn, "k": k},
        "protocol": {
            "knn": {
                "k": k,
                "temperature": TEMPERATURE,
                "similarity": "cosine",
                "weight": "exp(similarity / temperature)",
            },
            "linear": _linear_protocol(linear),
            "few_labels": few_labels.pop("protocol"),
        },
    }


class _FitCounter:
    """Linear classifiers, counted for `on_fit`."""

    def __init__(self, told: Progress | None, total: int) -> None:
        self.told, self.done, self.total = told or (lambda done, total, words: None), 0, total

    def __call__(self, name: str, train: Split, val: Split, seed: int) -> LinearResult:
        self.told(self.done, self.total, f"{len(train.y)} labels, {name}")
        result = linear_probe(train.x[name], train.y, val.x[name], val.y, seed=seed)
        self.done += 1
        if self.done == self.total:
            self.told(self.done, self.total, "")
        return result


def _linear_protocol(results: Mapping[str, LinearResult]) -> dict[str, Any]:
    """What the regressions have in common, and what differs between the kinds of features."""
    common = {key: value for key, value in results["pixels"].protocol.items() if key != "held_out_accuracy"}
    return {
        **common,
        "weight_decay": {x: result.weight_decay for x, result in results.items()},
        "held_out_accuracy": {x: result.protocol["held_out_accuracy"] for x, result in results.items()},
    }


def _few_labels(train: Split, val: Split, few: int, k: int, seed: int, fit_counter: "_FitCounter") -> dict[str, Any]:
    """Mean accuracies over draws of `few` labels a class."""
    return {"per_class": few, **_drawn(train, val, lambda number: draw_few(train.y, few, number), k, seed, fit_counter)}


def _fraction(
    train: Split, val: Split, fraction: float, k: int, seed: int, say: Callable[[str], None], fit_counter: "_FitCounter"
) -> dict[str, Any]:
    """Mean accuracies over draws of a share of every class's labels."""
    say(f"the same with {fraction:.3g} of the labels, {DRAWS} draws")
    return _drawn(train, val, lambda number: draw_fraction(train.y, fraction, number), k, seed, fit_counter)


def _drawn(
    train: Split, val: Split, draw: Callable[[int], Int[Tensor, "_"]], k: int, seed: int, fit_counter: "_FitCounter"
) -> dict[str, Any]:
    """Mean accuracies over draws of training images; every kind of features sees the same draws."""
    seeds = [seed + number for number in range(DRAWS)]
    draws = [train.take(draw(number)) for number in seeds]
    k = min(k, len(draws[0].y))
    linear = {n: [fit_counter(n, d, val, seed) for d in draws] for n in train.x}
    protocol = {
        "draws": DRAWS,
        "seeds": seeds,
        "average": f"mean accuracy over {DRAWS} draws",
        "images_per_draw": len(draws[0].y),
        "held_out": linear["pixels"][0].protocol["held_out"],
        "k": k,
        "weight_decay": {name: [result.weight_decay for result in results] for name, results in linear.items()},
    }
    return {
        **{name: round(fmean(result.accuracy for result in results), 2) for name, results in linear.items()},
        "knn": {name: round(fmean(_knn(draw, val, name, k) for draw in draws), 2) for name in train.x},
        "protocol": protocol,
    }


def draw_few(labels: Int[Tensor, "n"], few: int, seed: int) -> Int[Tensor, "few"]:
    """Numbers of `few` random images of each class, or of all where a class has fewer; ascending."""
    return _draw(labels, lambda count: few, seed)


def draw_fraction(labels: Int[Tensor, "n"], fraction: float, seed: int) -> Int[Tensor, "few"]:
    """Numbers of a share of each class's images, drawn at random, at least one; ascending. 0 < fraction <= 1.

    The first images of `draw_few` with the same seed: what one draw of a seed has, a larger one has too.
    """
    check_fraction(fraction)
    return _draw(labels, lambda count: max(1, round(fraction * count)), seed)


def check_fraction(fraction: float) -> None:
    """Raise UserError unless 0 < fraction <= 1."""
    if not 0 < fraction <= 1:
        raise UserError(f"a share of {fraction:g} of the labels: needs more than 0 and at most 1, such as 0.01 or 0.1")


def _draw(labels: Int[Tensor, "n"], of: Callable[[int], int], seed: int) -> Int[Tensor, "few"]:
    """`of(count)` random images of each class, where it has `count`."""
    generator = Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[: of(len(members))]])
    return torch.cat(chosen).sort().values


def _knn(train: Split, val: Split, name: str, k: int) -> float:
    return weighted_knn(train.x[name], train.y, val.x[name], val.y, k, TEMPERATURE)


def neighbours(k: int, images: int, say: Callable[[str], None]) -> int:
    """How many can vote: `k`, or all training images where there are fewer, which `say` is told. UserError below 1."""
    if k < 1:
        raise UserError(f"kNN with k = {k}: at least one neighbour votes; give --k 1 or more")
    if images < k:
        say(f"kNN: there are {images} training images and not {k}, so that all of them vote: k = {images}")
    return min(k, images)


def checked(labels: Int[Tensor, "n"] | None) -> Int[Tensor, "n"]:
    """Labels that a probe can learn from. Raises UserError."""
    labels = labelled(labels)
    if len(labels.unique()) < 2:
        raise UserError(f"all {len(labels)} training images are of one class: a probe needs at least two to tell apart")
    return labels


def labelled(labels: Int[Tensor, "n"] | None, images: str = "training") -> Int[Tensor, "n"]:
    """The labels. Raises UserError where there are none."""
    if labels is None:
        raise UserError(
            f"the {images} images have no labels: a probe needs class folders, .cls members or a label column"
        )
    return labels


def numbered(train: Int[Tensor, "n"], val: Int[Tensor, "m"] | None) -> tuple[Int[Tensor, "n"], Int[Tensor, "m"]]:
    """Class numbers without gaps, the same for both. Raises UserError for a class of `val` that `train` lacks."""
    val = labelled(val, "validation")
    classes, renumbered = train.unique(return_inverse=True)
    unknown = sorted(set(val.tolist()) - set(classes.tolist()))
    if unknown:
        raise UserError(
            f"class {unknown[0]} of the validation images has no training image: both sources need the same classes"
        )
    return renumbered, torch.searchsorted(classes, val)


__all__ = ["DRAWS", "checked", "draw_few", "draw_fraction", "labelled", "neighbours", "numbered", "probe"]
