"""The page of a study, made from the files of its cells alone: Markdown, HTML, and accuracy against cost."""

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from remask.evaluation.figures.lettering import as_written, legend
from remask.files.records import atomic_write
from remask.study.cells import Cell, Place, cells, is_current, read_result
from remask.study.plan import CONTROLS, Claim, Study
from remask.study.statistics import LEVEL, mean_and_deviation, paired

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;border-bottom:1px solid #8884;"
    "text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    "code{font-size:.85em;overflow-wrap:anywhere}@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}}"
)

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Contents of the cells' files by row and seed."""


class Table(NamedTuple):
    """Cells of text, the first column a name."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(study: Study, place: Place) -> tuple[Path, Path]:
    """Write report.md, report.html and cost.png beside the results; returns the first two."""
    results, missing, stale = gather(study, place)
    folder = place.results(study)
    tables, remarks = tables_of(study, results), remarks_of(results, missing, stale)
    commands = [f"{label(study, name)}: {next(iter(found.values()))['command']}" for name, found in results.items()]
    figure = cost_figure(study, results)
    pages = {
        "report.md": markdown(study, tables, remarks, commands, bool(figure)),
        "report.html": page(study, tables, remarks, commands, bool(figure)),
    }
    for name, text in pages.items():
        with atomic_write(folder / name) as tmp:
            tmp.write_text(text, encoding="utf-8")
    if figure:
        with atomic_write(folder / "cost.png") as tmp:
            tmp.write_bytes(figure)
    return folder / "report.md", folder / "report.html"


def gather(study: Study, place: Place) -> tuple[Results, list[Cell], list[Cell]]:
    """What the files of the study's cells hold, the cells that have none, and those whose file is of other settings."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    missing, stale = list[Cell](), list[Cell]()
    for cell in cells(study, place):
        if (result := read_result(cell)) is None:
            missing.append(cell)
        elif not is_current(cell, result):
            stale.append(cell)
        else:
            found.setdefault(cell.name, {})[cell.seed] = result
    return {name: found[name] for name in study.rows if name in found}, missing, stale


def label(study: Study, name: str) -> str:
    """A row's name in the tables."""
    return study.rows[name].label or name


def measured(results: Results, name: str, measure: str, kind: str = "trained") -> dict[int, float]:
    """Percent by seed, of the seeds that have it."""
    values = {seed: one["measures"].get(measure, {}).get(kind) for seed, one in results[name].items()}
    return {seed: float(value) for seed, value in values.items() if value is not None}


def measures_of(results: Results) -> list[str]:
    """All that was measured, in the order of the files: linear before kNN, all labels before few."""
    found = dict.fromkeys(key for row in results.values() for one in row.values() for key in one["measures"])
    order = ("linear", "kNN")
    bases = {key: key.partition(",")[0] for key in found}
    return sorted(found, key=lambda key: ("," in key, order.index(bases[key]) if bases[key] in order else len(order)))


def tables_of(study: Study, results: Results) -> list[Table]:
    """Each measure with what it is compared with, differences of rows, and what rows cost."""
    tables = []
    for measure in measures_of(results):
        kinds = [kind for kind in CONTROLS if any(measured(results, name, measure, kind) for name in results)]
        rows = []
        for name in results:
            if values := measured(results, name, measure):
                others = [measured(results, name, measure, kind) for kind in kinds]
                texts = [mean_and_deviation([*some.values()]) if some else "–" for some in (values, *others)]
                rows.append([label(study, name), *texts, str(len(values))])
        tables.append(Table(f"{measure}, %", ["", "trained", *map(CONTROLS.__getitem__, kinds), "seeds"], rows))
    return [*tables, *_differences(study, results), *_claims(study, results), _costs(study, results)] if results else []


def _differences(study: Study, results: Results) -> list[Table]:
    """Paired by seed, a column for each measure."""
    names, rows = measures_of(results), []
    for first, second in ((first, second) for first, second in study.compare if {first, second} <= results.keys()):
        pairs = [paired(measured(results, first, one), measured(results, second, one)) for one in names]
        seeds = max((len(pair.seeds) for pair in pairs if pair), default=0)
        texts = [str(pair) if pair else "–" for pair in pairs]
        rows.append([f"{label(study, first)} − {label(study, second)}", *texts, str(seeds)])
    title = f"differences in points, paired by seed, [{100 * LEVEL:.0f} % interval of the mean]"
    return [Table(title, ["", *names, "seeds"], rows)] if rows else []


def _claims(study: Study, results: Results) -> list[Table]:
    """Each claim of the study with the difference that decides it."""
    rows = [[claim.text, *_verdict(claim, study, results)] for claim in study.claims]
    return [Table("claims", ["", "measure", "difference", "more than", "verdict"], rows)] if rows else []


def _verdict(claim: Claim, study: Study, results: Results) -> list[str]:
    """Measure, difference with its interval, bound, and one of: seen (the whole interval lies above the bound),
    opposite (below it), not seen (it holds the bound), open (one seed, or not yet all of them)."""
    row, kind = (claim.first, claim.second) if claim.second in CONTROLS else (claim.second, "trained")
    first, second = (
        measured(results, name, claim.measure, of) if name in results else {}
        for name, of in ((claim.first, "trained"), (row, kind))
    )
    found = paired(first, second, claim.level)
    planned = set.intersection(*(set(study.rows[name].seeds or study.seeds) for name in (claim.first, row)))
    decided = "open"
    if found and found.interval and planned == set(found.seeds):
        low, high = found.interval
        decided = "seen" if low > claim.by else "opposite" if high < claim.by else "not seen"
    difference = f"{found} at {100 * claim.level:g} %" if found else "–"
    return [claim.measure, difference, f"{claim.by:+g}", decided]


def _costs(study: Study, results: Results) -> Table:
    rows, keys = [], ("images", "ete")
    for name, found in results.items():
        costs = [one["cost"] for one in found.values()]
        minutes = mean_and_deviation([60 * (cost["cpu_hours"] + cost["gpu_hours"]) for cost in costs])
        rows.append([label(study, name), minutes, *(f"{fmean(cost[key] for cost in costs):,.0f}" for key in keys)])
    return Table("cost of a run", ["", "core- or GPU-minutes", "images", "ETE"], rows)


def remarks_of(results: Results, missing: Sequence[Cell], stale: Sequence[Cell]) -> list[str]:
    """Which machines ran the cells, with which versions, what is still missing, and what was left out."""
    ran = [one for found in results.values() for one in found.values()]
    machines = sorted({_machine(one["machine"]) for one in ran})
    versions = sorted({f"torch {one['versions'].get('torch')}, remask {one['versions'].get('remask')}" for one in ran})
    lines = [f"Run on {'; '.join(machines)} with {'; '.join(versions)}."] if ran else []
    if missing:
        lines.append(
            f"Not there yet, of {len(ran) + len(missing) + len(stale)}: {', '.join(cell.run for cell in missing)}."
        )
    if stale:
        lines.append(f"Left out, since the study has changed: {', '.join(cell.run for cell in stale)}.")
    return lines


def _machine(facts: Mapping[str, Any]) -> str:
    gpus = facts.get("gpus") or []
    return gpus[0] if gpus else f"{facts.get('cpu')} ({facts.get('instructions')})"


def markdown(
    study: Study, tables: Sequence[Table], remarks: Sequence[str], commands: Sequence[str], figure: bool
) -> str:
    """The page as Markdown."""
    lines = [f"# {study.title}", "", *([study.question.strip(), ""] if study.question else [])]
    for table in tables:
        lines += [f"**{table.title}**", "", _line(table.heads), f"|---|{'--:|' * (len(table.heads) - 1)}"]
        lines += [*map(_line, table.rows), ""]
    lines += ["![Accuracy against cost](cost.png)", ""] if figure else []
    lines += [f"{remark}\n" for remark in remarks]
    lines += ["```", *commands, "```"] if commands else []
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def page(study: Study, tables: Sequence[Table], remarks: Sequence[str], commands: Sequence[str], figure: bool) -> str:
    """The page as HTML that needs nothing but the picture beside it."""
    title = html.escape(study.title)
    lines = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"]
    lines.append(
        f"<h1>{title}</h1>" + "".join(f"<p>{html.escape(text)}</p>" for text in study.question.split("\n\n") if text)
    )
    for table in tables:
        head = "".join(f"<th>{html.escape(text)}" for text in table.heads)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}" for text in row) for row in table.rows)
        lines.append(f"<h2>{html.escape(table.title)}</h2><table><tr>{head}{body}</table>")
    lines += ["<img src=cost.png alt='accuracy against cost'>"] if figure else []
    lines += [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    lines += ["<h2>commands</h2>"] if commands else []
    lines += [*(f"<p><code>{html.escape(command)}</code></p>" for command in commands)]
    return "\n".join(lines) + "\n"


def cost_figure(study: Study, results: Results) -> bytes | None:
    """A PNG: for the first two measures, a point for each run over the minutes that it took; None without results."""
    names = measures_of(results)[:2]
    if not names:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(names), 3.6), layout="constrained", dpi=144)
    for number, measure in enumerate(names):
        axes = figure.add_subplot(1, len(names), number + 1)
        for name in results:
            values = measured(results, name, measure)
            costs = [results[name][seed]["cost"] for seed in values]
            minutes = [60 * (cost["cpu_hours"] + cost["gpu_hours"]) for cost in costs]
            axes.plot(minutes, [*values.values()], "o", alpha=0.8)
        untrained = [value for name in results for value in measured(results, name, measure, "untrained").values()]
        if untrained:
            axes.axhline(fmean(untrained), color="0.6", linewidth=1, linestyle="--")
        axes.set_xlim(left=0)
        axes.set(xlabel="minutes of a run", ylabel=f"{measure}, %")
        axes.spines[["top", "right"]].set_visible(False)
        rows = [*(label(study, name) for name in results), *(["untrained"] if untrained else [])]
        legend(axes, axes.lines, rows, frameon=False, fontsize=8)
    as_written(figure)
    written = io.BytesIO()
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


__all__ = ["gather", "markdown", "page", "tables_of", "write_report"]
