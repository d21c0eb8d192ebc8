"""The fast probe: weighted kNN and a linear classifier on frozen features, with all labels and with few per class.

Each is evaluated for the trained network, for the same network untrained, and for raw pixels.
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
from remask.evaluation.sharing import in_one, rows_of_all

Factory = Callable[[], Iterable[Labelled]]
DRAWS = 5
"""Number of random draws of few labels, whose accuracies are averaged: a single draw has a large variance."""
TEMPERATURE = 0.07


class Split(NamedTuple):
    """Features of the same images by name of the describer, and their class numbers."""

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
    on_features: Callable[[Split, Split], None] | None = None,
    layer: int = -1,
    pool: Pool = "mean",
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """The content of eval/probe.json; accuracies in percent.

    backbones   {"top1": trained, "untrained": the same network untrained}; "pixels" is added here
    few         labels per class (shots) for "few_labels"; all labels of a class that has fewer
    fractions   shares of every class's labels, such as .01 and .1; each adds a table under "fractions"
    k           neighbours that vote; reduced to the number of training images, which `progress` and the protocol note
    progress    called with a line before each longer step
    on_fit      called as on_fit(classifiers done, total, text)
    on_features called at the end with the features of the training and the validation images
    layer, pool, dtype   see `extract`
    Raises UserError for a source without labels or with one class, no neighbour, features that are not finite, or a
    class of the validation images that is not among the training images.
    """
    say = progress or (lambda line: None)
    check_shots(few, fractions)
    readers = {name: reader(backbone, layer=layer, pool=pool, dtype=dtype) for name, backbone in backbones.items()}
    readers["pixels"] = rows_of_all(flat)
    say("features of the training images")
    train, labels = collect(readers, backbones, train_batches())
    known = checked(labels)
    bank = neighbours(k, len(known), say)
    say(f"features of the validation images ({len(known)} training images)")
    val, labels = collect(readers, backbones, val_batches())
    train_y, val_y = numbered(known, labels)
    fit_counter = _FitCounter(on_fit, len(readers) * (1 + DRAWS * (1 + len(fractions))))
    splits = Split(train, train_y), Split(val, val_y)
    shown = (lambda: on_features(*splits)) if on_features else None
    result = in_one(lambda: _scores(*splits, few, fractions, bank, seed, say, fit_counter, shown))
    settings = _protocol(*splits, {"layer": layer, "pool": pool}, seed)
    result["protocol"] = {**settings, **result["protocol"], **({"k_wanted": k} if bank < k else {})}
    return result


def _protocol(train: Split, val: Split, features: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The entries of the protocol about features and images."""
    return {
        "features": {**features, "widths": {name: x.shape[1] for name, x in train.x.items()}},
        "pixels": "values of 0..1, averaged over areas to at most 3072 values an image",
        "images": {"train": len(train.y), "val": len(val.y)},
        "classes": len(train.y.unique()),
        "seed": seed,
    }


def _scores(
    train: Split,
    val: Split,
    few: int,
    fractions: Sequence[float],
    k: int,
    seed: int,
    say: Callable[[str], None],
    fit_counter: "_FitCounter",
    then: Callable[[], None] | None,
) -> dict[str, Any]:
    """All accuracies, and the entries of the protocol about classifiers; `then` is called at the end."""
    say(f"kNN and linear classifiers ({len(val.y)} validation images)")
    knn = {name: round(_knn(train, val, name, k), 2) for name in train.x}
    linear = {name: fit_counter(name, train, val, seed) for name in train.x}
    say(f"the same with {few} labels a class, {DRAWS} draws")
    few_labels = _few_labels(train, val, few, k, seed, fit_counter)
    shares = {f"{share:g}": _fraction(train, val, share, k, seed, say, fit_counter) for share in fractions}
    if then:
        then()
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
    """Fits linear classifiers, and reports their number to `on_fit`."""

    def __init__(self, report: Progress | None, total: int) -> None:
        self.report, self.done, self.total = report or (lambda done, total, words: None), 0, total

    def __call__(self, name: str, train: Split, val: Split, seed: int) -> LinearResult:
        self.report(self.done, self.total, f"{len(train.y)} labels, {name}")
        result = linear_probe(train.x[name], train.y, val.x[name], val.y, seed=seed)
        self.done += 1
        if self.done == self.total:
            self.report(self.done, self.total, "")
        return result


def _linear_protocol(results: Mapping[str, LinearResult]) -> dict[str, Any]:
    """Protocol entries that the regressions share, and {features: value} for those that differ."""
    common = {key: value for key, value in results["pixels"].protocol.items() if key != "held_out_accuracy"}
    return {
        **common,
        "weight_decay": {x: result.weight_decay for x, result in results.items()},
        "held_out_accuracy": {x: result.protocol["held_out_accuracy"] for x, result in results.items()},
    }


def _few_labels(train: Split, val: Split, few: int, k: int, seed: int, fit_counter: "_FitCounter") -> dict[str, Any]:
    """Mean accuracies over draws of `few` labels per class."""
    return {
        "per_class": few,
        **_mean_over_draws(train, val, lambda number: draw_few(train.y, few, number), k, seed, fit_counter),
    }


def _fraction(
    train: Split, val: Split, fraction: float, k: int, seed: int, say: Callable[[str], None], fit_counter: "_FitCounter"
) -> dict[str, Any]:
    """Mean accuracies over draws of a share of every class's labels."""
    say(f"the same with {fraction:.3g} of the labels, {DRAWS} draws")
    return _mean_over_draws(train, val, lambda number: draw_fraction(train.y, fraction, number), k, seed, fit_counter)


def _mean_over_draws(
    train: Split, val: Split, draw: Callable[[int], Int[Tensor, "_"]], k: int, seed: int, fit_counter: "_FitCounter"
) -> dict[str, Any]:
    """Mean accuracies over draws of training images; all kinds of features use the same draws."""
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
    """Numbers of `few` random images per class, all images of a class that has fewer; ascending."""
    return _draw(labels, lambda count: few, seed)


def draw_fraction(labels: Int[Tensor, "n"], fraction: float, seed: int) -> Int[Tensor, "few"]:
    """Numbers of a share of each class's images, drawn at random, at least one; ascending. 0 < fraction <= 1.

    Draws with the same seed are nested, also with those of `draw_few`: a larger one contains the smaller.
    """
    check_fraction(fraction)
    return _draw(labels, lambda count: max(1, round(fraction * count)), seed)


def check_shots(few: int, fractions: Sequence[float]) -> None:
    """Raise UserError for less than one label per class, and for invalid shares."""
    if few < 1:
        raise UserError(f"{few} labels a class leave nothing to learn from: give --shots 1 or more")
    for fraction in fractions:
        check_fraction(fraction)


def check_fraction(fraction: float) -> None:
    """Raise UserError unless 0 < fraction <= 1."""
    if not 0 < fraction <= 1:
        raise UserError(f"a share of {fraction:g} of the labels: needs more than 0 and at most 1, such as 0.01 or 0.1")


def _draw(labels: Int[Tensor, "n"], of: Callable[[int], int], seed: int) -> Int[Tensor, "few"]:
    """Numbers of `of(count)` random images of each class, `count` being its number of images; ascending."""
    generator = Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[: of(len(members))]])
    return torch.cat(chosen).sort().values


def _knn(train: Split, val: Split, name: str, k: int) -> float:
    return weighted_knn(train.x[name], train.y, val.x[name], val.y, k, TEMPERATURE)


def neighbours(k: int, images: int, say: Callable[[str], None]) -> int:
    """`k`, or the number of training images if smaller, in which case `say` gets a line. Raises UserError for k < 1."""
    if k < 1:
        raise UserError(f"kNN with k = {k}: at least one neighbour votes; give --k 1 or more")
    if images < k:
        say(f"kNN: there are {images} training images and not {k}, so that all of them vote: k = {images}")
    return min(k, images)


def checked(labels: Int[Tensor, "n"] | None) -> Int[Tensor, "n"]:
    """The labels of training images. Raises UserError if they are missing or of a single class."""
    labels = labelled(labels)
    if len(labels.unique()) < 2:
        raise UserError(f"all {len(labels)} training images are of one class: a probe needs at least two to tell apart")
    return labels


def labelled(labels: Int[Tensor, "n"] | None, images: str = "training") -> Int[Tensor, "n"]:
    """The labels. Raises UserError, which names `images`, if they are missing."""
    if labels is None:
        raise UserError(
            f"the {images} images have no labels: a probe needs class folders, .cls members or a label column"
        )
    return labels


def numbered(train: Int[Tensor, "n"], val: Int[Tensor, "m"] | None) -> tuple[Int[Tensor, "n"], Int[Tensor, "m"]]:
    """(train, val) as class numbers without gaps. Raises UserError for a class of `val` that `train` lacks."""
    val = labelled(val, "validation")
    classes, renumbered = train.unique(return_inverse=True)
    unknown = sorted(set(val.tolist()) - set(classes.tolist()))
    if unknown:
        raise UserError(
            f"class {unknown[0]} of the validation images has no training image: both sources need the same classes"
        )
    return renumbered, torch.searchsorted(classes, val)


__all__ = ["DRAWS", "Split", "checked", "draw_few", "draw_fraction", "labelled", "neighbours", "numbered", "probe"]
