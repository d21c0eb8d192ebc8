"""Report of a pre-training run: a self-contained RUN/report.html, which also works if files are missing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.files.escaping import printable
from remask.files.records import read_json_lines
from remask.report.evaluations import HEADS, evaluations, percent, section_of
from remask.report.figures import curves
from remask.report.reading import (
    Figure,
    losses,
    number,
    pretty,
    read_json,
    read_text,
    read_toml,
    series,
    shared,
    write_page,
)


class Bar(NamedTuple):
    """An accuracy of the probe in percent, drawn as a bar."""

    who: str
    kind: str
    value: float


def write_report(run: Path, recipe_text: str = "", equation: str = "") -> Path:
    """Write RUN/report.html from the files of the run folder and return its path.

    recipe_text  the resolved recipe as TOML; "": RUN/recipe.toml     equation  lines to print above the curves
    Raises UserError if RUN is no folder.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no run folder: give the folder that --out named")
    return write_page(run, "template.html.j2", _content(run, recipe_text or read_text(run / "recipe.toml"), equation))


def _content(run: Path, recipe_text: str, equation: str) -> dict[str, Any]:
    """The variables of the template."""
    metrics, cost, probe = (
        read_json_lines(run / "metrics.jsonl"),
        read_json(run / "cost.json"),
        read_json(run / "eval" / "probe.json"),
    )
    recipe = read_toml(recipe_text)
    hides = section_of(recipe, "masking").get("ratio", 1)  # else there is nothing to be shown
    results = ["export/backbone.safetensors", *(["pictures/reconstruction.png"] if hides else [])]
    everything = shared(run, recipe_text, results)
    figures = everything.pop("pictures")
    probed = {name: [(title, figure) for stem, figure in figures if stem == name] for name, title in PROBED.items()}
    return {
        **everything,
        **probed,
        "pictures": [(name, figure) for name, figure in figures if name not in PROBED],
        "title": str(recipe.get("title") or "") or printable(run.name),
        "summary": summary(recipe, cost, metrics),
        "equation": equation,
        "figures": _figures(metrics),
        "knn": _knn(metrics),
        "probe": _bars(probe),
        "probed": probed_on(probe),
        "heads": HEADS,
        "evaluations": evaluations(run),
        "protocol": pretty(section_of(probe, "protocol")),
    }


PROBED = {"classes": "What is to be told apart", "neighbours": "What it takes to be alike"}
"""File name of a probe's figure → its title; these stand beside the probe's numbers."""

NAMES = {
    "mae": "MAE", "simmim": "SimMIM", "maskfeat": "MaskFeat", "beit": "BEiT", "convmae": "ConvMAE",
    "fastmim": "FastMIM", "dmae": "DMAE", "moma": "MOMA", "crossmae": "CrossMAE", "data2vec": "data2vec",
    "localmim": "LocalMIM", "refiner": "Refiner",
}  # fmt: skip
"""Names of methods as in their papers."""


def summary(recipe: Mapping[str, Any], cost: Mapping[str, Any], metrics: list[dict[str, Any]]) -> str:
    """A sentence with method, backbone, data and cost, without unknown ones."""
    section = {key: recipe.get(key) or {} for key in ("method", "backbone", "data", "optim", "dm", "jd")}
    name = NAMES.get(method_name := str(section["method"].get("name", "")), method_name)
    if section["dm"]:
        name += f" with disjoint masking ({section['dm'].get('views', 2)} views)"
    if section["jd"]:
        name += " and joint distillation" if section["dm"] else " with joint distillation"
    words = [name or "A run", f"on {section['backbone']['name']}" if section["backbone"].get("name") else ""]
    if section["data"].get("source"):
        words.append(f"trained on {printable(section['data']['source'])}")
    if metrics and "epoch" in metrics[-1]:
        words.append(f"for {metrics[-1]['epoch']:g} of {section['optim'].get('epochs', '?')} epochs")
    if cost:
        hours = "gpu_hours" if cost.get("gpu_hours") else "cpu_hours"
        words.append(
            f"({number(cost.get('ete'))} ETE): {number(cost.get('views'))} views of {number(cost.get('images'))} "
            f"images in {number(cost.get(hours))} {hours[:3].upper()}-hours"
        )
    return " ".join(word for word in words if word) + "."


def _figures(metrics: list[dict[str, Any]]) -> list[Figure]:
    """Curves of loss, gradient norm, learning rate, throughput and waiting over epochs, as far as they were logged."""
    plots: list[tuple[str, dict[str, str], float, bool]] = [
        ("Loss", {key: key.removeprefix("loss/") for key in losses(metrics)}, 1, False),
        ("Norm of the gradients", {"grad_norm": "norm"}, 1, True),
        ("Learning rate", {"lr": "lr"}, 1, True),
        ("Images and views per second", {"images_per_s": "images", "views_per_s": "views"}, 1, True),
        ("Waiting for data, % of the time", {"data_wait": "data wait"}, 100, True),
    ]
    figures = []
    for title, keys, factor, zero in plots:
        lines = {label: series(metrics, key, factor) for key, label in keys.items()}
        lines = {label: curve for label, curve in lines.items() if curve[0]}
        if lines:
            figures.append(Figure(title, curves(title, lines, "epoch", zero=zero)))
    return figures


def _knn(metrics: list[dict[str, Any]]) -> Figure | None:
    curve = series(metrics, "probe/knn")
    title = "kNN accuracy on the way, %"
    return Figure(title, curves(title, {"kNN": curve}, "epoch", markers=True)) if curve[0] else None


def probed_on(probe: Mapping[str, Any]) -> str:
    """The test data of eval/probe.json; "" if it is not stated."""
    val, data = (str(section_of(probe, "protocol").get(key) or "") for key in ("val", "data"))
    return f"{val} ({data})" if val.startswith("a fifth of") else val


def _bars(probe: Mapping[str, Any]) -> list[tuple[str, list[Bar]]]:
    """Accuracies of each protocol as bars: trained, untrained, raw pixels."""
    few, knn = section_of(probe, "few_labels"), section_of(probe, "knn")
    count, k = few.get("per_class", 10), knn.get("k", 20)
    rows = {
        "Linear, all labels": section_of(probe, "linear"),
        f"kNN (k = {k}), all labels": knn,
        f"Linear, {count} labels a class": few,
        f"kNN, {count} labels a class": section_of(few, "knn"),
    }
    for share in (shares := section_of(probe, "fractions")):
        scores_of_share = section_of(shares, share)
        rows |= {
            f"Linear, {percent(share)}": scores_of_share,
            f"kNN, {percent(share)}": section_of(scores_of_share, "knn"),
        }
    labels = {"top1": "trained", "untrained": "untrained", "pixels": "raw pixels"}
    return [
        (
            name,
            [Bar(labels[key], key, float(scores[key])) for key in labels if isinstance(scores.get(key), int | float)],
        )
        for name, scores in rows.items()
        if scores
    ]


__all__ = ["summary", "write_report"]
