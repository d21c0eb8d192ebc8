"""RUN/report.html: what a run did, on one page that opens offline in a browser. What is missing is said, in a line."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.report.figures import bars, lines

COST = {
    "images": "images seen, unique per step",
    "views": "masked views seen",
    "ete": "effective training epochs, K × epochs",
    "gpu_hours": "GPU-hours",
    "cpu_hours": "CPU-hours",
    "wall_hours": "wall-clock hours",
    "gflops_forward_per_image": "forward GFLOP per image, all views",
    "peak_memory_mb": "peak memory, MiB",
    "data_wait_share": "share of the time spent waiting for data",
}
KINDS = {"trained": "top1", "untrained": "untrained", "raw pixels": "pixels"}


def write_report(run: Path, recipe_text: str, equation: str) -> Path:
    """Write the page from what the run folder holds and return its path.

    recipe_text   the resolved recipe, shown whole      equation   as `remask.report.equation` prints it
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("remask", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(facts(run, recipe_text, equation))
    path = run / "report.html"
    part = path.with_suffix(".part")
    part.write_text(page, encoding="utf-8")
    part.replace(path)
    return path


def facts(run: Path, recipe_text: str, equation: str) -> dict[str, Any]:
    """What the template shows; a part that the run folder lacks is None or empty."""
    metrics = [json.loads(line) for line in _text(run / "metrics.jsonl").splitlines()]
    cost, probe = _json(run / "cost.json"), _json(run / "eval" / "probe.json")
    return {
        "name": run.name,
        "run": str(run),
        "equation": equation,
        "recipe": recipe_text,
        "status": _json(run / "status.json"),
        "environment": _json(run / "env.json"),
        "last": metrics[-1] if metrics else None,
        "curves": curves(metrics),
        "pictures": {path.stem: _inline(path) for path in sorted((run / "pictures").glob("*.png"))},
        "probe": probe_rows(probe) if probe else None,
        "probe_chart": bars(probe_rows(probe), "accuracy, %") if probe else None,
        "protocol": json.dumps(probe["protocol"], indent=2) if probe else None,
        "cost": {label: _number(cost[key]) for key, label in COST.items() if key in cost},
        "bad": _text(run / "bad_images.txt").splitlines(),
    }


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Title -> SVG: losses, learning rate, speed, waiting, and kNN on the way."""
    if not metrics:
        return {}

    def series(*keys: str) -> dict[str, tuple[list[float], list[float]]]:
        rows = {key: [(m["epoch"], m[key]) for m in metrics if key in m] for key in keys}
        return {key.split("/")[-1]: ([e for e, _ in row], [v for _, v in row]) for key, row in rows.items() if row}

    losses = [key for key in metrics[0] if key.startswith("loss/")]
    charts = {
        "Loss": lines(series(*losses), "epoch", "loss"),
        "kNN on the way": lines(series("probe/knn"), "epoch", "accuracy, %") if series("probe/knn") else "",
        "Learning rate": lines(series("lr"), "epoch", "learning rate"),
        "Throughput": lines(series("images_per_s", "views_per_s"), "epoch", "per second"),
        "Waiting for data": lines(series("data_wait"), "epoch", "share of the time"),
    }
    return {title: svg for title, svg in charts.items() if svg}


def probe_rows(probe: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Protocol -> {trained, untrained, raw pixels}, in percent."""
    few = probe["few_labels"]
    labels = f"{few['per_class']} labels a class"
    parts = {"kNN": probe["knn"], "linear": probe["linear"], f"kNN,\n{labels}": few["knn"], f"linear,\n{labels}": few}
    return {name: {kind: part[key] for kind, key in KINDS.items()} for name, part in parts.items()}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(path: Path) -> dict[str, Any]:
    return json.loads(text) if (text := _text(path)) else {}


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


__all__ = ["curves", "facts", "probe_rows", "write_report"]
