"""Report of a downstream run: results per class, pictures, curves, cost and recipe."""

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

WORDS = {"finetune": "Fine-tuned", "segment": "Segmentation", "detect": "Detection and masks"}
HEADLINES = {"finetune": "top1", "segment": "mIoU", "detect": "AP"}
NAMES = {
    "top1": "top-1 accuracy, %", "top5": "top-5 accuracy, %", "loss": "cross-entropy, nats", "mIoU": "mean IoU, %",
    "mAcc": "mean accuracy of classes, %", "aAcc": "accuracy of pixels, %", "AP": "AP of boxes, %",
    "AP50": "AP50 of boxes, %", "images": "test pictures",
    "bad_images": "test pictures that could not be used",
}  # fmt: skip
"""Keys of eval/TASK.json that the top of the page lists, in this order, and their names."""
COUNTS = ("images", "bad_images")
KINDS = {"bbox": "boxes", "segm": "masks"}
AREAS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Row(NamedTuple):
    """Cells of a table's row, and the length of its bar in percent."""

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

    Raises UserError if RUN is no folder.
    """
    if not run.is_dir():
        raise UserError(f"{run} is no run folder: give the folder that --out named")
    text = read_text(run / "recipe.toml")
    recipe, metrics = read_toml(text), read_json_lines(run / "metrics.jsonl")
    task = str(recipe.get("task", "finetune"))
    result = read_json(run / "eval" / f"{task}.json")
    content = {
        **shared(run, text, [f"eval/{task}.json"]),
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
    """A sentence with task, network, data, epochs and number of images, without unknown ones."""
    model, data, optim = (recipe.get(key) or {} for key in ("model", "data", "optim"))
    words = [WORDS.get(task, task)]
    if source := model.get("source"):
        kind, _, name = str(source).partition(":")
        network = f"{kind}:{Path(name).name}" if "/" in name else source
        words.append(f"from {printable(network)}" + (", untrained" if model.get("untrained") else ""))
    if data.get("source"):
        words.append(f"on {printable(data['source'])}")
    if optim.get("epochs"):
        words.append(f"for {optim['epochs']} epochs")
    if images := result.get("protocol", {}).get("images"):
        words.append(f"of {number(images)} pictures")
    return " ".join(words) + "."


def tables(task: str, result: Mapping[str, Any]) -> list[Table]:
    """Tables of results per class; for detection also per size."""
    if task == "segment" and "IoU" in result:
        rows = [(name, [iou, result["Acc"].get(name)]) for name, iou in result["IoU"].items()]
        return [Table("Class by class, %", ["class", "IoU", "accuracy", ""], _rows(rows))]
    if task == "finetune" and "per_class" in result:
        per_class = result["per_class"]
        lines = [
            Row(
                [str(entry["class"]), f"{entry['top1']:.1f}", str(entry["images"]), entry["mistaken_for"] or "–"],
                entry["top1"],
            )
            for entry in sorted(per_class, key=lambda entry: entry["top1"])
        ]
        title = "Class by class, the worst first: accuracy in %, and what it is taken for most often"
        return [Table(title, ["class", "top-1", "pictures", "taken for", ""], lines)]
    return _of_boxes(result) if task == "detect" else []


def _of_boxes(result: Mapping[str, Any]) -> list[Table]:
    """Tables of average precision per size of the instances, and per class."""
    kinds = [kind for kind in KINDS if isinstance(result.get(kind), Mapping)]
    if not kinds:
        return []
    sizes = [Row([KINDS[kind], *(_percent(result[kind].get(name)) for name in AREAS)]) for kind in kinds]
    result_tables = [
        Table("Average precision, % (s, m, l: instances below 32², below 96², larger)", ["", *AREAS], sizes, False)
    ]
    names = result[kinds[0]].get("per_class") or {}
    titles = result.get("categories") or {}  # by id; older runs have names for keys
    rows = [
        (str(titles.get(key, key)), [_in_percent(result[kind].get("per_class", {}).get(key)) for kind in kinds])
        for key in names
    ]
    if rows:
        heads = ["class", *(f"AP of {KINDS[kind]}" for kind in kinds), ""]
        result_tables.append(Table("Class by class, %", heads, _rows(rows)))
    return result_tables


def _rows(rows: Sequence[tuple[str, Sequence[float | None]]]) -> list[Row]:
    return [
        Row([name, *("–" if value is None else f"{value:.1f}" for value in values)], values[0] or 0.0)
        for name, values in rows
    ]


def _in_percent(share: float | None) -> float | None:
    """The share in percent; None for no instance, which older runs write as COCO's -1."""
    return None if share is None or share < 0 else 100 * share


def _percent(share: float | None) -> str:
    value = _in_percent(share)
    return "–" if value is None else f"{value:.1f}"


def _results(result: Mapping[str, Any]) -> list[Fact]:
    """The numbers at the top of the page."""
    facts = [
        Fact(name, _value(key, result[key])) for key, name in NAMES.items() if _is_listed(key, result.get(key, ""))
    ]
    masks = result.get("segm")
    if isinstance(masks, Mapping):
        facts.insert(2, Fact("AP of masks, %", _percent(masks.get("AP"))))
    return facts


def _value(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return number(value) if key in COUNTS else f"{value:.2f}"


def _is_listed(key: str, value: Any) -> bool:
    """Whether the top of the page lists a value: numbers, an AP of None, unusable images if there are any."""
    if value is None:
        return key.startswith("AP")
    return isinstance(value, int | float) and (key != "bad_images" or value > 0)


def _figures(
    task: str, recipe: Mapping[str, Any], metrics: list[dict[str, Any]], result: Mapping[str, Any]
) -> list[Figure]:
    """Curves of the headline on test images, losses, gradient norm, learning rate and throughput over epochs."""
    headline, figures = HEADLINES.get(task, "top1"), []
    x, y = series(metrics, f"val/{headline}")
    same_data = result.get("protocol", {}).get("val") in (
        (recipe.get("data") or {}).get("val"),
        "a fifth of the source",
    )
    if same_data and isinstance(result.get(headline), int | float) and metrics:
        x, y = [*x, metrics[-1].get("epoch", 0)], [*y, result[headline]]  # the final test comes after training
    if x:
        title = f"{NAMES[headline]} on test pictures".replace(", % on", " on") + ", %"
        figures.append(Figure(title, curves(title, {headline: (x, y)}, "epoch", markers=True)))
    loss = {key.removeprefix("loss/"): series(metrics, key) for key in losses(metrics)}
    norm = {"norm": series(metrics, "grad_norm")}
    for title, lines, zero in (("Loss", loss, False), ("Norm of the gradients", norm, True),
                               ("Learning rate", {"lr": series(metrics, "lr")}, True),
                               ("Images per second", {"images": series(metrics, "images_per_s")}, True)):  # fmt: skip
        if lines := {label: curve for label, curve in lines.items() if curve[0]}:
            figures.append(Figure(title, curves(title, lines, "epoch", zero=zero)))
    return figures


__all__ = ["summary", "tables", "write_task_report"]
