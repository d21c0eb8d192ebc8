"""Results of probes as tables, for a terminal and for Markdown."""

from collections.abc import Mapping
from typing import Any


def layer_table(result: Mapping[str, Any]) -> str:
    """A table of every layer's accuracy, and a line about the best one on held-out training images."""
    names = list(result["layers"])
    titles = " | ".join(f"linear, {name} | kNN, {name}".replace("top1", "trained") for name in names)
    lines = [f"| layer | {titles} |", "|--:" * (1 + 2 * len(names)) + "|"]
    for rows in zip(*result["layers"].values(), strict=True):
        cells = [f"{row['linear']:.1f} | {row['knn']:.1f}" for row in rows]
        lines.append(f"| {'end' if rows[0]['layer'] == -1 else rows[0]['layer']} | {' | '.join(cells)} |")
    best = result["best"]["top1"]["linear"]
    return "\n".join(
        [*lines, "", f"best on held-out training pictures: layer {best['layer']}, {best['test']:.1f} on test"]
    )


def two_rows(title: str, result: Mapping[str, Any]) -> str:
    """A table of trained and untrained accuracy."""
    lines = ["| accuracy, % | trained | untrained |", "|---|--:|--:|"]
    return "\n".join([*lines, f"| {title} | {result['top1']:.1f} | {result['untrained']:.1f} |"])


def probe_table(result: Mapping[str, Any]) -> str:
    """A table of the fast probe's accuracies."""
    few = result["few_labels"]
    rows = {
        "kNN": result["knn"],
        "linear": result["linear"],
        f"kNN, {few['per_class']} labels a class": few["knn"],
        f"linear, {few['per_class']} labels a class": few,
    }
    for share, values in result.get("fractions", {}).items():
        rows |= {f"kNN, {100 * float(share):g} % of the labels": values["knn"]}
        rows |= {f"linear, {100 * float(share):g} % of the labels": values}
    lines = ["| accuracy, % | trained | untrained | raw pixels |", "|---|--:|--:|--:|"]
    lines += [f"| {name} | {r['top1']:.1f} | {r['untrained']:.1f} | {r['pixels']:.1f} |" for name, r in rows.items()]
    return "\n".join(lines)


__all__ = ["layer_table", "probe_table", "two_rows"]
