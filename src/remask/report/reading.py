"""Reads the files of a run folder for reports, and writes a report as one self-contained HTML file."""

import base64
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.files.escaping import in_utf8, printable, quoted, unmarked
from remask.files.records import atomic_write
from remask.files.text import read_text as text_of
from remask.report.figures import Curve

LISTED = 200
"""Maximum number of skipped steps that a page lists."""


class Figure(NamedTuple):
    """An <svg> element and its title."""

    title: str
    svg: str


class Fact(NamedTuple):
    """A number for a table, as text."""

    name: str
    value: str


def write_page(run: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Write RUN/report.html from a template in this package and its variables; returns the path."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str:
        return (files("remask.report") / name).read_text(encoding="utf-8")

    page = Environment(
        loader=FunctionLoader(load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    path = run / "report.html"
    text = in_utf8(page.get_template(template).render(style=load("style.css"), **content))
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")
    return path


def shared(run: Path, recipe_text: str, results: Sequence[str]) -> dict[str, Any]:
    """Variables of every template: folder, state, pictures, cost, recipe, machine, unusable images, changed data.

    results   files of a finished run beside its report
    """
    figures = sorted((run / "pictures").glob("*.png"))
    return {
        "run": printable(run.name),
        "path": quoted(run),
        "status": status_of(run, results),
        "pictures": [(printable(path.stem).replace("-", " ").replace("_", " "), embedded(path)) for path in figures],
        "cost": facts(read_json(run / "cost.json")),
        "recipe": recipe_text,
        "environment": pretty(read_json(run / "env.json")),
        "settings": settings(read_json(run / "settings.json")),
        "skipped": skipped(read_json(run / "status.json")),
        "recovered": read_text(run / "recovered.txt").splitlines(),
        "bad": read_text(run / "bad_images.txt").splitlines(),
        "changed": changes(read_json(run / "data.json")),
    }


def status_of(run: Path, results: Sequence[str]) -> dict[str, Any]:
    """Content of status.json; a run that is trained is finished when this page is written and the other results are."""
    status = read_json(run / "status.json")
    if status.get("state") == "trained":
        names = [name.partition("/")[0] for name in results if not (run / name).is_file()]
        status |= {"state": "trained", "stage": f"training done, {', '.join(names)} missing"}
        return status if names else {**status, "state": "finished", "stage": ""}
    return status


def changes(data: Mapping[str, Any]) -> list[str]:
    """A line for each time that the run continued with changed data, from data.json."""
    return [
        f"After step {item.get('step')} (epoch {number(item.get('epoch'))}) the data was another, which was accepted: "
        f"{'; '.join(map(str, item.get('changes', [])))}."
        for item in data.get("history", [])
    ]


def settings(content: Mapping[str, Any]) -> list[str]:
    """A line for each time that the run continued with other settings, from settings.json."""
    return [
        f"From step {item.get('step')} (epoch {number(item.get('epoch'))}) on: "
        f"{', '.join(f'{key} = {value}' for key, value in (item.get('set') or {}).items())}."
        for item in content.get("history") or []
    ]


def skipped(status: Mapping[str, Any]) -> str:
    """A line that lists the skipped steps of status.json; "" if there are none."""
    steps = status.get("skipped")
    if not isinstance(steps, list) or not steps:
        return ""
    listed = ", ".join(map(str, steps[:LISTED])) + (", …" if len(steps) > LISTED else "")
    return f"Steps skipped, as loss or gradient was not finite: {len(steps)} ({listed})."


def losses(metrics: list[dict[str, Any]]) -> list[str]:
    """Keys of the logged losses, the total first, and alone where it has a single branch, which then is the same."""
    last: Mapping[str, Any] = next((line for line in reversed(metrics) if "loss/total" in line), {})
    keys = sorted((key for key in last if key.startswith("loss/")), key=lambda key: key != "loss/total")
    return keys[:1] if len(keys) == 2 else keys


def series(metrics: list[dict[str, Any]], key: str, factor: float = 1) -> Curve:
    """A metric over epochs, times a factor; lines without it are skipped."""
    points = [(line.get("epoch", line.get("step")), line.get(key)) for line in metrics]
    numeric = [(x, y * factor) for x, y in points if isinstance(x, int | float) and isinstance(y, int | float)]
    return [x for x, _ in numeric], [y for _, y in numeric]


def facts(cost: Mapping[str, Any]) -> list[Fact]:
    """The numbers of cost.json with their names, for the table of costs."""
    names = {
        "ete": "ETE, views × epochs", "images": "images", "views": "views", "tokens": "tokens read",
        "gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours", "gflops_forward_per_image": "GFLOP forward, per image",
        "peak_memory_mb": "MB of memory at the peak", "data_wait_share": "of the time waiting for data",
    }  # fmt: skip
    known = [(key, name, cost[key]) for key, name in names.items() if isinstance(cost.get(key), int | float)]
    return [Fact(name, f"{100 * v:.1f} %" if key == "data_wait_share" else number(v)) for key, name, v in known]


def number(value: Any) -> str:
    """A number as text with thousands separators and three significant digits; "?" for other values."""
    if not isinstance(value, int | float):
        return "?"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} if the file is missing or damaged."""
    try:
        content = json.loads(read_text(path) or "{}")
    except json.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def read_toml(text: str) -> dict[str, Any]:
    """The content of a TOML text; {} if it is damaged."""
    try:
        content: dict[str, Any] = unmarked(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return {}
    return content


def read_text(path: Path) -> str:
    """A file's text; "" if there is no file."""
    if not path.is_file():
        return ""
    try:
        return text_of(path)
    except UserError:  # damaged bytes are replaced
        return path.read_text(encoding="utf-8", errors="replace")


def pretty(content: Mapping[str, Any]) -> str:
    """Indented JSON; "" for an empty mapping."""
    return json.dumps(content, indent=2, ensure_ascii=False) if content else ""


def embedded(path: Path) -> str:
    """A PNG file as a data: URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


__all__ = [
    "Fact", "Figure", "changes", "embedded", "facts", "losses", "number", "pretty", "read_json", "read_text",
    "read_toml", "series", "shared", "status_of", "write_page",
]  # fmt: skip
