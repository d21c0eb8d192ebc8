"""What was measured, as a table, as JSON and as a picture: docs/results/performance.{md,json,png}.

A row is a dict: name, ratio, unit, bar (negative: an upper limit), maybe spread (lowest and highest round); or, in
place of the ratio, `unmeasured`: why it could not be measured here.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
HEAD = "| what | measured | spread | bar | |\n|---|--:|--:|--:|---|"
ABOUT = """# Speed and memory

Ratios, each measured side by side in one run: rounds alternate between the two, times are process CPU seconds on one
thread, the number is the median over rounds and the spread the lowest and highest round. Above 1 ours is faster, but
where a bar says ≤. "The textbook" is the plain composition of the same method, with the same weights and masks
(`benchmarks/reference.py`): a test holds its loss and gradients to ours. FLOPs and bytes are exact.

Steps stand in processes of their own. "As each runs": the others have the for-loop AdamW that PyTorch gives them on a
CPU and give freed memory back to the kernel, as glibc does; ours has the fused AdamW and keeps freed memory. "Memory
alike" (part alike): all keep it; "memory and AdamW alike": all have the fused AdamW too.

```bash
make bench
```

measures all parts but alike; `python -m benchmarks step alike` those named, and what is below keeps its own date. On a
GPU: `make bench-gpu`.

![Ratios with their spread and bars](performance.png)
"""


def verdict(row: Row) -> str:
    """met, MISSED or not measured."""
    if "unmeasured" in row:
        return f"not measured: {row['unmeasured']}"
    measured, bar = float(row["ratio"]), float(row["bar"])
    return "met" if (measured <= -bar if bar < 0 else measured >= bar) else "MISSED"


def line(row: Row) -> str:
    """A row of the table."""
    bar = f"≤ {-row['bar']:.4g}" if row["bar"] < 0 else f"≥ {row['bar']:.4g}"
    if "unmeasured" in row:
        return f"| {row['name']} | – | – | {bar} | {verdict(row)} |"
    low, high = row.get("spread") or (row["ratio"], row["ratio"])
    spread = f"{low:.2f} to {high:.2f}" if low != high else "–"
    return f"| {row['name']} | {row['ratio']:.2f} {row['unit']} | {spread} | {bar} | {verdict(row)} |"


def write(folder: Path, found: Mapping[str, dict[str, Any]], name: str = "performance", about: str = ABOUT) -> None:
    """All three files; parts that were not measured now are kept as they were."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / f"{name}.json"
    parts = json.loads(stored.read_text(encoding="utf-8"))["parts"] if stored.is_file() else {}
    parts = {**parts, **found}
    _replace(stored, json.dumps({"parts": parts}, indent=1, ensure_ascii=False) + "\n")
    _replace(folder / f"{name}.md", page(parts, about))
    if "performance.png" in about:
        draw(folder / f"{name}.png", [row for record in parts.values() for row in record["rows"]])


def page(parts: Mapping[str, dict[str, Any]], about: str = ABOUT) -> str:
    """The document."""
    verdicts = [verdict(row) for record in parts.values() for row in record["rows"]]
    count = {key: sum(v.startswith(key) for v in verdicts) for key in ("met", "MISSED", "not measured")}
    text = [about, f"{count['met']} bars met, {count['MISSED']} missed, {count['not measured']} not measured.\n"]
    for part, record in parts.items():
        machine = record["machine"]
        versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items() if key in ("torch", "timm"))
        text += [
            f"## {part}\n",
            f"`{record['command']}`, {record['measured']}, {record['seconds']:.0f} s; {machine['cpu']}, "
            f"Python {machine['python']}, {versions}.\n",
        ]
        text += [f"**Failed**: {record['failed']}\n"] if record["failed"] else []
        text += [HEAD, *(line(row) for row in record["rows"]), ""]
    return "\n".join(text)


def draw(file: Path, rows: list[Row]) -> None:
    """Medians with their spread, and the bar of each, for what is a ratio; green where it is met."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ratios = [row for row in rows if row.get("unit", "").startswith("x") and "unmeasured" not in row][::-1]
    if not ratios:
        return
    figure, axes = pyplot.subplots(figsize=(11, 0.8 + 0.27 * len(ratios)), layout="constrained")
    for y, row in enumerate(ratios):
        colour = "#1b7837" if verdict(row) == "met" else "#b2182b"
        low, high = row.get("spread") or (row["ratio"], row["ratio"])
        axes.plot([low, high], [y, y], color=colour, linewidth=4, alpha=0.35, solid_capstyle="round")
        axes.plot(row["ratio"], y, "o", color=colour, markersize=6)
        axes.plot(abs(row["bar"]), y, "<" if row["bar"] < 0 else ">", color="black", markersize=5)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(ratios)), [_short(row["name"]) for row in ratios], fontsize=8)
    axes.set_ylim(-0.7, len(ratios) - 0.3)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_title("dot: median, line: spread over rounds; ▸ at least, ◂ at most", fontsize=9)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _short(name: str) -> str:
    return name if len(name) <= 96 else name[:93] + "…"


def _replace(file: Path, text: str) -> None:
    """Whole or not at all."""
    draft = file.with_suffix(file.suffix + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)
