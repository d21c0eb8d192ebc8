"""A run on one page: RUN/report.html is self-contained, opens offline, and says what is missing instead of failing."""

import base64
import json
import os
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from remask.report.figures import Curve, curves
from remask.types import UserError


class Figure(NamedTuple):
    """An <svg> element and what it shows."""

    title: str
    svg: str


class Bar(NamedTuple):
    """One accuracy of the probe, in percent."""

    who: str
    kind: str
    value: float


class Fact(NamedTuple):
    """One number of the cost ledger."""

    name: str
    value: str


def write_report(run: Path, recipe_text: str = "", equation: str = "") -> Path:
    """Write RUN/report.html from what the run folder holds and return its path.

    recipe_text  the resolved recipe as TOML; RUN/recipe.toml by default     equation  lines to print above the curves
    Raises UserError where RUN is no folder.
    """
    from jinja2 import Environment, StrictUndefined

    if not run.is_dir():
        raise UserError(f"{run} is no run folder: give the folder that --out named")
    text = (files("remask.report") / "template.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = page.from_string(text).render(_content(run, recipe_text or _text(run / "recipe.toml"), equation))
    path = run / "report.html"
    part = path.with_suffix(".part")
    part.write_text(html, encoding="utf-8")
    os.replace(part, path)
    return path


def _content(run: Path, recipe_text: str, equation: str) -> dict[str, Any]:
    """Everything the template shows."""
    metrics, cost, probe = _metrics(run / "metrics.jsonl"), _json(run / "cost.json"), _json(run / "eval" / "probe.json")
    recipe = _toml(recipe_text)
    pictures = sorted((run / "pictures").glob("*.png"))
    bad = _text(run / "bad_images.txt").splitlines()
    return {
        "run": run.name,
        "path": str(run),
        "title": str(recipe.get("title") or "") or run.name,
        "summary": summary(recipe, cost, metrics),
        "status": _json(run / "status.json"),
        "equation": equation,
        "figures": _figures(metrics),
        "knn": _knn(metrics),
        "probe": _bars(probe),
        "protocol": _pretty(probe.get("protocol", {})),
        "pictures": [(path.stem.replace("-", " ").replace("_", " "), _embedded(path)) for path in pictures],
        "cost": _facts(cost),
        "recipe": recipe_text,
        "environment": _pretty(_json(run / "env.json")),
        "bad": bad,
    }


NAMES = {"mae": "MAE", "simmim": "SimMIM", "maskfeat": "MaskFeat", "beit": "BEiT", "convmae": "ConvMAE"}
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
        words.append(f"trained on {section['data']['source']}")
    if metrics and "epoch" in metrics[-1]:
        words.append(f"for {metrics[-1]['epoch']:g} of {section['optim'].get('epochs', '?')} epochs")
    if cost:
        hours = "gpu_hours" if cost.get("gpu_hours") else "cpu_hours"
        words.append(
            f"({_number(cost.get('ete'))} ETE): {_number(cost.get('views'))} views of {_number(cost.get('images'))} "
            f"images in {_number(cost.get(hours))} {hours[:3].upper()}-hours"
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
        series = {label: _series(metrics, key, factor) for key, label in keys.items()}
        series = {label: curve for label, curve in series.items() if curve[0]}
        if series:
            found.append(Figure(title, curves(title, series, "epoch", zero=zero)))
    return found


def _knn(metrics: list[dict[str, Any]]) -> Figure | None:
    curve = _series(metrics, "probe/knn")
    title = "kNN accuracy on the way, %"
    return Figure(title, curves(title, {"kNN": curve}, "epoch", markers=True)) if curve[0] else None


def _series(metrics: list[dict[str, Any]], key: str, factor: float = 1) -> Curve:
    points = [(line.get("epoch", line.get("step")), line.get(key)) for line in metrics]
    kept = [(x, y * factor) for x, y in points if isinstance(x, int | float) and isinstance(y, int | float)]
    return [x for x, _ in kept], [y for _, y in kept]


def _bars(probe: Mapping[str, Any]) -> list[tuple[str, list[Bar]]]:
    """Each protocol's accuracies: trained, untrained, raw pixels."""
    few = probe.get("few_labels", {})
    count, k = few.get("per_class", 10), probe.get("knn", {}).get("k", 20)
    rows = {
        "Linear, all labels": probe.get("linear", {}),
        f"kNN (k = {k}), all labels": probe.get("knn", {}),
        f"Linear, {count} labels a class": few,
        f"kNN, {count} labels a class": few.get("knn", {}),
    }
    who = {"top1": "trained", "untrained": "untrained", "pixels": "raw pixels"}
    return [
        (name, [Bar(who[key], key, float(scores[key])) for key in who if isinstance(scores.get(key), int | float)])
        for name, scores in rows.items()
        if scores
    ]


def _facts(cost: Mapping[str, Any]) -> list[Fact]:
    names = {
        "ete": "ETE, views × epochs", "images": "images", "views": "views", "gpu_hours": "GPU-hours",
        "cpu_hours": "CPU-hours", "gflops_forward_per_image": "GFLOP forward, per image",
        "peak_memory_mb": "MB of memory at the peak", "data_wait_share": "of the time waiting for data",
    }  # fmt: skip
    facts = [(key, name, cost[key]) for key, name in names.items() if isinstance(cost.get(key), int | float)]
    return [Fact(name, f"{100 * v:.1f} %" if key == "data_wait_share" else _number(v)) for key, name, v in facts]


def _number(value: Any) -> str:
    """Thousands apart, three or four digits that matter."""
    if not isinstance(value, int | float):
        return "?"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a killed run left half-written is passed over."""
    found = []
    for line in _text(path).splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [line for line in found if isinstance(line, dict)]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path) or "{}")
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _pretty(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) if content else ""


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


__all__ = ["summary", "write_report"]
