"""Linear probe and kNN at every layer, of the trained network and of the untrained one.

One pass over the images extracts all layers. The best layer is chosen on a held-out part of the TRAINING images; the
result has the test accuracies of all layers. SimMIM's best layer is in the middle (its repository's issue 14).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remask.backbones import Backbone, class_tokens
from remask.errors import UserError
from remask.evaluation.figures.lettering import legend, png, shown
from remask.evaluation.probing.fast_probe import TEMPERATURE, Factory, checked, neighbours, numbered
from remask.evaluation.probing.features import Labelled, Pool, Progress, check_pool, evaluating, frozen, pooled
from remask.evaluation.probing.knn import weighted_knn
from remask.evaluation.probing.logistic_regression import linear_probe, stratified
from remask.evaluation.sharing import in_one, rows_of_all
from remask.types import Images

HELD_OUT = 0.2
"""Share of each class's training images that selects the best layer."""
TITLE = 64
"""Maximum number of characters of the figure's title."""
_COLOURS = {"linear": "#3f83c8", "knn": "#d9822b"}
_LABELS = {"linear": "linear", "knn": "kNN"}

Depths = dict[int, Float[Tensor, "n D"]]
"""Features by layer, in half precision. Widths differ between the stages of a hierarchical network."""


class Layered(NamedTuple):
    """Features by network and layer, and the labels of the images."""

    x: dict[str, Depths]
    y: Int[Tensor, "n"] | None


def every_layer(backbone: Backbone) -> list[int]:
    """Indices of all blocks, and -1: the end, after the final norm."""
    return [*range(backbone.depth), -1]


def probe_layers(
    backbones: Mapping[str, Backbone],
    train_batches: Factory,
    val_batches: Factory,
    *,
    layers: Sequence[int] | None = None,
    pool: Pool = "mean",
    k: int = 20,
    seed: int = 0,
    memory_gb: float = 8.0,
    dtype: torch.dtype | None = None,
    progress: Callable[[str], None] | None = None,
    on_fit: Progress | None = None,
) -> dict[str, Any]:
    """The content of eval/layers.json: linear probe and kNN of each layer, accuracies in percent, and the best ones.

    backbones   {"top1": trained, "untrained": the same network untrained}, of the same depth
    layers      indices of blocks, and -1 for the end; None: all
    memory_gb   maximum size of features in GB: images · widths · layers · networks · 2 bytes
    progress    called with a line before each longer step
    on_fit      called as on_fit(layers done, total, text)
    Raises UserError for a layer that does not exist, too many features, and like `probe`.
    """
    say, report = progress or (lambda line: None), on_fit or (lambda done, total, words: None)
    chosen = list(layers if layers is not None else every_layer(next(iter(backbones.values()))))
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"layers {chosen}: name each layer once, at least one, or all of them")
    say(f"features of the training images at {len(chosen)} layers")
    train = collect_layers(backbones, train_batches(), chosen, pool, memory_gb, dtype)
    known = checked(train.y)
    k, requested_k = neighbours(k, len(known), say), k
    say(f"features of the validation images ({len(known)} training images)")
    val = collect_layers(backbones, val_batches(), chosen, pool, memory_gb, dtype)
    train_y, val_y = numbered(known, val.y)
    held_out = stratified(train_y, HELD_OUT, seed)

    def table(name: str, before: int) -> list[dict[str, Any]]:
        say(f"classifiers of {len(chosen)} layers, {name}")
        rows = list[dict[str, Any]]()
        for layer in chosen:
            report(before + len(rows), len(chosen) * len(backbones), f"layer {layer}, {name}")
            rows.append(_row(layer, train.x[name][layer], train_y, val.x[name][layer], val_y, held_out, k, seed))
        return rows

    rows = in_one(lambda: {name: table(name, len(chosen) * i) for i, name in enumerate(backbones)})
    protocol = {"features": {"pool": pool, "dtype": "float16"}, "k": k, **_protocol(train_y, val_y, held_out, seed)}
    protocol |= {"k_wanted": requested_k} if k < requested_k else {}
    return {"layers": rows, "best": {name: _best(table) for name, table in rows.items()}, "protocol": protocol}


def _protocol(
    train_y: Int[Tensor, "n"], val_y: Int[Tensor, "m"], held_out: Bool[Tensor, "n"], seed: int
) -> dict[str, Any]:
    return {
        "temperature": TEMPERATURE,
        "images": {"train": len(train_y), "val": len(val_y)},
        "classes": len(train_y.unique()),
        "held_out": int(held_out.sum()),
        "best": f"the layer of the highest accuracy on {HELD_OUT:g} of each class's training images, held out",
        "seed": seed,
    }


def collect_layers(
    backbones: Mapping[str, Backbone],
    batches: Iterable[Labelled],
    layers: Sequence[int],
    pool: Pool = "mean",
    memory_gb: float = 8.0,
    dtype: torch.dtype | None = None,
) -> Layered:
    """Features of all layers of all networks, in one pass over the images.

    Raises UserError for features of more than `memory_gb` GB, no image, or a pool or layer that does not exist.
    """
    for backbone in backbones.values():
        check_pool(backbone, pool)
    describers = {name: rows_of_all(_describer(backbone, layers, pool, dtype)) for name, backbone in backbones.items()}
    rows: dict[str, dict[int, list[Tensor]]] = {name: {layer: [] for layer in layers} for name in describers}
    labels, images, read_bytes = list[Tensor | None](), 0, 0
    with torch.inference_mode(), evaluating(backbones.values()):
        for batch in batches:
            for name, describe in describers.items():
                for layer, chunk in describe(batch.images).items():
                    rows[name][layer].append(chunk)
                    read_bytes += chunk.nbytes
            labels.append(batch.labels)
            images += len(chunk)
            if read_bytes > memory_gb * 1e9:
                raise UserError(
                    f"features of {len(layers)} layers took {read_bytes / 1e9:.1f} GB after {images} images, more than "
                    f"{memory_gb:g} GB: name fewer layers, or use fewer images (--limit)"
                )
    if not labels:
        raise UserError("there is no image to extract features of: the source gave no batch")
    known = [chunk.cpu().long() for chunk in labels if chunk is not None]
    x = {
        name: {layer: torch.cat(chunks).clone() for layer, chunks in by_layer.items()}
        for name, by_layer in rows.items()
    }
    return Layered(x, torch.cat(known) if len(known) == len(labels) else None)


def _describer(
    backbone: Backbone, layers: Sequence[int], pool: Pool, dtype: torch.dtype | None
) -> Callable[[Images], Depths]:
    """The function images -> features by layer."""
    encode, prefixes = frozen(backbone, layers, dtype=dtype), class_tokens(backbone)
    return lambda images: {i: _to_half(pooled(features, pool, prefixes)) for i, features in encode(images).items()}


def _to_half(x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """In half precision, clamped, for inner blocks of large networks may exceed its range."""
    return x.clamp(-65504, 65504).half().cpu()


def _row(
    layer: int,
    train_x: Float[Tensor, "n D"],
    train_y: Int[Tensor, "n"],
    val_x: Float[Tensor, "m D"],
    val_y: Int[Tensor, "m"],
    held_out: Bool[Tensor, "n"],
    k: int,
    seed: int,
) -> dict[str, Any]:
    """One row of the table: accuracies in percent of a layer, on test images and on held-out training images."""
    x, queries = train_x.float(), val_x.float()
    linear = linear_probe(x, train_y, queries, val_y, held_out=HELD_OUT, seed=seed)
    bank = min(k, int((~held_out).sum()))
    row: dict[str, Any] = {
        "layer": layer,
        "width": x.shape[1],
        "linear": linear.accuracy,
        "knn": weighted_knn(x, train_y, queries, val_y, k, TEMPERATURE),
        "held_out_linear": max(linear.protocol["held_out_accuracy"].values(), default=0.0),
        "held_out_knn": weighted_knn(
            x[~held_out], train_y[~held_out], x[held_out], train_y[held_out], bank, TEMPERATURE
        )
        if bool(held_out.any())
        else 0.0,
    }
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
    return {**rounded, "weight_decay": linear.weight_decay}


def _best(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """{classifier: {"layer": first of the best on held-out images, "held_out", "test": accuracies in percent}}."""
    best = {}
    for kind in ("linear", "knn"):
        row = max(table, key=lambda row: row[f"held_out_{kind}"])
        best[kind] = {"layer": row["layer"], "held_out": row[f"held_out_{kind}"], "test": row[kind]}
    return best


def layers_figure(result: Mapping[str, Any], title: str = "") -> bytes:
    """A PNG of the result of `probe_layers`: test accuracy over depth, with a circle at the chosen layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    layers = [row["layer"] for row in next(iter(result["layers"].values()))]
    lines = dict[str, Any]()
    for name, table in result["layers"].items():
        trained = name != "untrained"
        for kind, colour in _COLOURS.items():
            values = [row[kind] for row in table]
            label = f"{_LABELS[kind]}, {'trained' if name == 'top1' else name}"
            style: dict[str, Any] = {
                "color": colour,
                "linewidth": 1.8 if trained else 1.2,
                "linestyle": "-" if trained else "--",
            }
            alpha = 1 if trained else 0.6
            (lines[label],) = axes.plot(range(len(layers)), values, marker=".", alpha=alpha, **style)
            if trained:
                best = layers.index(result["best"][name][kind]["layer"])
                axes.plot(best, values[best], "o", markersize=10, markerfacecolor="none", markeredgecolor=colour)
    axes.set_xticks(range(len(layers)), ["end" if layer == -1 else str(layer) for layer in layers])
    axes.set_xlabel(
        "block, counted from 0 (end: after the final norm); circled: best on held-out training images", fontsize=9
    )
    axes.set_ylabel("test accuracy, %")
    axes.set_title(shown(title, TITLE), fontsize=10, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.15)
    legend(axes, [*lines.values()], [*lines], frameon=False, fontsize=8)
    return png(figure)


__all__ = ["HELD_OUT", "Layered", "collect_layers", "every_layer", "layers_figure", "probe_layers"]
