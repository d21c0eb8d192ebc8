"""A downstream run on one page: what it reaches class by class, its pictures, its curves, its cost and its recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.files.escaping import printable
from remask.files.records import read_json_lines
from remask.report.evaluations import HEADS, evaluations
from remask.report.figures import curves
from remask.report.reading import (
    Fact,
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

WORDS = {"finetune": "Fine-tuned", "segment": "Segmentation", "detect": "Detection and masks"}
HEADLINES = {"finetune": "top1", "segment": "mIoU", "detect": "AP"}
NAMES = {
    "top1": "top-1 accuracy, %", "top5": "top-5 accuracy, %", "loss": "cross-entropy, nats", "mIoU": "mean IoU, %",
    "mAcc": "mean accuracy of classes, %", "aAcc": "accuracy of pixels, %", "AP": "AP of boxes, %",
    "AP50": "AP50 of boxes, %", "images": "test pictures",
    "bad_images": "test pictures that could not be used",
}  # fmt: skip
"""Numbers of eval/TASK.json that stand at the top, in this order."""
COUNTS = ("images", "bad_images")
KINDS = {"bbox": "boxes", "segm": "masks"}
AREAS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Row(NamedTuple):
    """Cells of a table, and the length of its bar in percent."""

    cells: list[str]
    share: float = 0.0


class Table(NamedTuple):
    """A table of the page; `bars` draws the first number of every row."""

    title: str
    heads: list[str]
    rows: list[Row]
    bars: bool = True


def write_task_report(run: Path) -> Path:
    """Write RUN/report.html of a fine-tuning, segmentation or detection and return its path.

    Raises UserError where RUN is no folder.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no run folder: give the folder that --out named")
    text = read_text(run / "recipe.toml")
    recipe, metrics = read_toml(text), read_json_lines(run / "metrics.jsonl")
    task = str(recipe.get("task", "finetune"))
    result = read_json(run / "eval" / f"{task}.json")
    content = {
        **shared(run, text),
        "title": str(recipe.get("title") or "") or printable(run.name),
        "task": task,
        "summary": summary(task, recipe, result),
        "results": _results(result),
        "tables": tables(task, result),
        "heads": HEADS,
        "evaluations": evaluations(run),
        "protocol": pretty(result.get("protocol", {})),
        "figures": _figures(task, recipe, metrics, result),
    }
    return write_page(run, "task.html.j2", content)


def summary(task: str, recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """One sentence: task, network, pictures, epochs; what is not known is left out."""
    model, data, optim = (recipe.get(key) or {} for key in ("model", "data", "optim"))
    words = [WORDS.get(task, task)]
    if source := model.get("source"):
        kind, _, name = str(source).partition(":")
        named = f"{kind}:{Path(name).name}" if "/" in name else source
        words.append(f"from {printable(named)}" + (", untrained" if model.get("untrained") else ""))
    if data.get("source"):
        words.append(f"on {printable(data['source'])}")
    if optim.get("epochs"):
        words.append(f"for {optim['epochs']} epochs")
    if images := result.get("protocol", {}).get("images"):
        words.append(f"of {number(images)} pictures")
    return " ".join(words) + "."


def tables(task: str, result: Mapping[str, Any]) -> list[Table]:
    """Accuracy class by class; for detection also by size."""
    if task == "segment" and "IoU" in result:
        rows = [(name, [iou, result["Acc"].get(name)]) for name, iou in result["IoU"].items()]
        return [Table("Class by class, %", ["class", "IoU", "accuracy", ""], _rows(rows))]
    if task == "finetune" and "per_class" in result:
        found = result["per_class"]
        lines = [
            Row([str(one["class"]), f"{one['top1']:.1f}", str(one["images"]), one["mistaken_for"] or "–"], one["top1"])
            for one in sorted(found, key=lambda one: one["top1"])
        ]
        title = "Class by class, the worst first: accuracy in %, and what it is taken for most often"
        return [Table(title, ["class", "top-1", "pictures", "taken for", ""], lines)]
    return _of_boxes(result) if task == "detect" else []


def _of_boxes(result: Mapping[str, Any]) -> list[Table]:
    """Average precision by size of the instances, and class by class."""
    kinds = [kind for kind in KINDS if isinstance(result.get(kind), Mapping)]
    if not kinds:
        return []
    sizes = [Row([KINDS[kind], *(_percent(result[kind].get(name)) for name in AREAS)]) for kind in kinds]
    found = [
        Table("Average precision, % (s, m, l: instances below 32², below 96², larger)", ["", *AREAS], sizes, False)
    ]
    names = result[kinds[0]].get("per_class") or {}
    titles = result.get("categories") or {}  # by id; older runs have names for keys
    rows = [
        (str(titles.get(key, key)), [_times(result[kind].get("per_class", {}).get(key)) for kind in kinds])
        for key in names
    ]
    if rows:
        heads = ["class", *(f"AP of {KINDS[kind]}" for kind in kinds), ""]
        found.append(Table("Class by class, %", heads, _rows(rows)))
    return found


def _rows(rows: Sequence[tuple[str, Sequence[float | None]]]) -> list[Row]:
    return [
        Row([name, *("–" if value is None else f"{value:.1f}" for value in values)], values[0] or 0.0)
        for name, values in rows
    ]


def _times(share: float | None) -> float | None:
    """Percent of a share of 1; None where there is no instance, which older runs say as COCO does, by -1."""
    return None if share is None or share < 0 else 100 * share


def _percent(share: float | None) -> str:
    value = _times(share)
    return "–" if value is None else f"{value:.1f}"


def _results(result: Mapping[str, Any]) -> list[Fact]:
    """The numbers at the top."""
    found = [Fact(name, _value(key, result[key])) for key, name in NAMES.items() if _worth(key, result.get(key, ""))]
    masks = result.get("segm")
    if isinstance(masks, Mapping):
        found.insert(2, Fact("AP of masks, %", _percent(masks.get("AP"))))
    return found


def _value(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return number(value) if key in COUNTS else f"{value:.2f}"


def _worth(key: str, value: Any) -> bool:
    """Whether it stands at the top: numbers, an AP where there is nothing to find, bad pictures where there are any."""
    if value is None:
        return key.startswith("AP")
    return isinstance(value, int | float) and (key != "bad_images" or value > 0)


def _figures(
    task: str, recipe: Mapping[str, Any], metrics: list[dict[str, Any]], result: Mapping[str, Any]
) -> list[Figure]:
    """The headline on test pictures, losses and the rate over epochs."""
    headline, found = HEADLINES.get(task, "top1"), []
    x, y = series(metrics, f"val/{headline}")
    same = result.get("protocol", {}).get("val") in ((recipe.get("data") or {}).get("val"), "a fifth of the source")
    if same and isinstance(result.get(headline), int | float) and metrics:
        x, y = [*x, metrics[-1].get("epoch", 0)], [*y, result[headline]]  # the last test comes after training
    if x:
        title = f"{NAMES[headline]} on test pictures".replace(", % on", " on") + ", %"
        found.append(Figure(title, curves(title, {headline: (x, y)}, "epoch", markers=True)))
    keys = [key for key in (metrics[-1] if metrics else {}) if key.startswith("loss/")]
    keys = ["loss/total"] if len(keys) == 2 else sorted(keys, key=lambda key: key != "loss/total")
    losses = {key.removeprefix("loss/"): series(metrics, key) for key in keys}
    for title, lines, zero in (("Loss", losses, False), ("Learning rate", {"lr": series(metrics, "lr")}, True),
                               ("Images per second", {"images": series(metrics, "images_per_s")}, True)):  # fmt: skip
        if lines := {label: curve for label, curve in lines.items() if curve[0]}:
            found.append(Figure(title, curves(title, lines, "epoch", zero=zero)))
    return found


__all__ = ["summary", "tables", "write_task_report"]
