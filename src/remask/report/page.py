"""A run on one page: RUN/report.html is self-contained, opens offline, and says what is missing instead of failing."""

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
    """One accuracy of the probe, in percent."""

    who: str
    kind: str
    value: float


def write_report(run: Path, recipe_text: str = "", equation: str = "") -> Path:
    """Write RUN/report.html from what the run folder holds and return its path.

    recipe_text  the resolved recipe as TOML; RUN/recipe.toml by default     equation  lines to print above the curves
    Raises UserError where RUN is no folder.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no run folder: give the folder that --out named")
    return write_page(run, "template.html.j2", _content(run, recipe_text or read_text(run / "recipe.toml"), equation))


def _content(run: Path, recipe_text: str, equation: str) -> dict[str, Any]:
    """Everything the template shows."""
    metrics, cost, probe = (
        read_json_lines(run / "metrics.jsonl"),
        read_json(run / "cost.json"),
        read_json(run / "eval" / "probe.json"),
    )
    recipe, everything = read_toml(recipe_text), shared(run, recipe_text)
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
"""Pictures that a probe draws, which stand beside its numbers, by their files' names."""

NAMES = {
    "mae": "MAE", "simmim": "SimMIM", "maskfeat": "MaskFeat", "beit": "BEiT", "convmae": "ConvMAE",
    "fastmim": "FastMIM", "dmae": "DMAE", "moma": "MOMA",
}  # fmt: skip
"""Methods as their papers write them."""


def summary(recipe: Mapping[str, Any], cost: Mapping[str, Any], metrics: list[dict[str, Any]]) -> str:
    """One sentence: method, backbone, data, cost; what is not known is left out."""
    section = {key: recipe.get(key) or {} for key in ("method", "backbone", "data", "optim", "dm", "jd")}
    name = NAMES.get(called := str(section["method"].get("name", "")), called)
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
    """Loss, learning rate, throughput and waiting over epochs; of what was logged."""
    losses = [key for key in (metrics[-1] if metrics else {}) if key.startswith("loss/")]
    losses.sort(key=lambda key: key != "loss/total")
    if len(losses) == 2:  # a single branch is the total
        losses = ["loss/total"]
    wanted: list[tuple[str, dict[str, str], float, bool]] = [
        ("Loss", {key: key.removeprefix("loss/") for key in losses}, 1, False),
        ("Learning rate", {"lr": "lr"}, 1, True),
        ("Images and views per second", {"images_per_s": "images", "views_per_s": "views"}, 1, True),
        ("Waiting for data, % of the time", {"data_wait": "data wait"}, 100, True),
    ]
    found = []
    for title, keys, factor, zero in wanted:
        lines = {label: series(metrics, key, factor) for key, label in keys.items()}
        lines = {label: curve for label, curve in lines.items() if curve[0]}
        if lines:
            found.append(Figure(title, curves(title, lines, "epoch", zero=zero)))
    return found


def _knn(metrics: list[dict[str, Any]]) -> Figure | None:
    curve = series(metrics, "probe/knn")
    title = "kNN accuracy on the way, %"
    return Figure(title, curves(title, {"kNN": curve}, "epoch", markers=True)) if curve[0] else None


def probed_on(probe: Mapping[str, Any]) -> str:
    """What eval/probe.json was tested on; "" where it does not say."""
    val, data = (str(section_of(probe, "protocol").get(key) or "") for key in ("val", "data"))
    return f"{val} ({data})" if val.startswith("a fifth of") else val


def _bars(probe: Mapping[str, Any]) -> list[tuple[str, list[Bar]]]:
    """Each protocol's accuracies: trained, untrained, raw pixels."""
    few, knn = section_of(probe, "few_labels"), section_of(probe, "knn")
    count, k = few.get("per_class", 10), knn.get("k", 20)
    rows = {
        "Linear, all labels": section_of(probe, "linear"),
        f"kNN (k = {k}), all labels": knn,
        f"Linear, {count} labels a class": few,
        f"kNN, {count} labels a class": section_of(few, "knn"),
    }
    for share in (shares := section_of(probe, "fractions")):
        found = section_of(shares, share)
        rows |= {f"Linear, {percent(share)}": found, f"kNN, {percent(share)}": section_of(found, "knn")}
    who = {"top1": "trained", "untrained": "untrained", "pixels": "raw pixels"}
    return [
        (name, [Bar(who[key], key, float(scores[key])) for key in who if isinstance(scores.get(key), int | float)])
        for name, scores in rows.items()
        if scores
    ]


__all__ = ["summary", "write_report"]
