"""A cell of a study, one row with one seed: the commands that make it, and the file that is left of it."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.files.escaping import printable, quoted
from remask.files.records import atomic_write, read_json_lines
from remask.recipe.downstream import TASKS
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.recipe.schema import Recipe
from remask.recipe.variants import choose
from remask.recipe.write import literal
from remask.study.plan import ROW, Row, Study, needs, order
from remask.training.run_folder import RunFolder

POINTS = 60
"""Of the curve of losses that a result keeps."""
DEFAULTS = {"pretrain": "dmjd-vit-tiny", "finetune": "small", "segment": "small", "detect": "small"}
"""Recipes of rows that name none: those of the commands."""
HEADLINES = {"finetune": "top1", "segment": "mIoU", "detect": "AP"}
"""What a task is judged by, in percent."""
FILES = {"fast": "probe", "mae": "linprobe", "attentive": "attentive"}
"""The file in RUN/eval of each protocol of a probe."""


class Place(NamedTuple):
    """Where a study stands: its file, and the folder of its runs. Results lie beside the file."""

    file: Path
    runs: Path

    def results(self, study: Study) -> Path:
        return self.file.parent / "results" / study.name


class Size(NamedTuple):
    """How long a row trains: whole epochs of the first `limit` images, or of all."""

    epochs: int
    limit: int | None = None


class Cell(NamedTuple):
    """One run of a study."""

    study: Study
    place: Place
    name: str
    seed: int

    @property
    def row(self) -> Row:
        return self.study.rows[self.name]

    @property
    def run(self) -> str:
        return f"{self.name}-seed{self.seed}"

    @property
    def file(self) -> Path:
        """The result, which is there once the cell is done."""
        return self.place.results(self.study) / f"{self.run}.json"


def cells(study: Study, place: Place, names: tuple[str, ...] = ()) -> Iterator[Cell]:
    """All cells, or those of some rows and of the rows these need, seed by seed; rows that others need come first."""
    wanted = set(names or study.rows)
    rows = order(study)
    for name in reversed(rows):
        wanted |= set(needs(study.rows[name])) if name in wanted else set()
    rows = [name for name in rows if name in wanted]
    seeds = dict.fromkeys(seed for name in rows for seed in study.rows[name].seeds or study.seeds)
    for seed in seeds:
        for name in rows:
            if seed in (study.rows[name].seeds or study.seeds):
                yield Cell(study, place, name, seed)


def recipe_of(cell: Cell) -> Recipe:
    """The recipe of a row that pre-trains, without its budget. Raises UserError for any mistake in it."""
    row, study = cell.row, cell.study
    given = {"data.source": row.data or study.data, "backbone.weights": _weights(row, {}), **study.set, **row.set}
    known = {key: value for key, value in given.items() if value is not None}
    return choose(_recipe_name(cell), known, method=row.method, teachers=row.teachers)


def _recipe_name(cell: Cell) -> str:
    """A recipe by its name, or the path of a file, which is written relative to the study."""
    name = cell.row.recipe or DEFAULTS[cell.row.verb]
    return os.path.relpath(cell.place.file.parent / name) if name.endswith(".toml") else name


def _filled(text: str, runs: Mapping[str, Path]) -> str:
    """A source with the folder of a run in place of `row:NAME`."""
    for name, folder in runs.items():
        for before in (f"run:{ROW}{name}", f"{ROW}{name}"):
            if text.partition(",")[0] == before:
                return text.replace(before, before.removesuffix(f"{ROW}{name}") + str(folder), 1)
    return text


def _weights(row: Row, runs: Mapping[str, Path]) -> str | None:
    """backbone.weights of a row that pre-trains further: the run of another row, or a network."""
    start = row.start or ""
    return _filled(f"run:{start}" if start.startswith(ROW) else start, runs) or None


def train_arguments(cell: Cell, size: Size, runs: Mapping[str, Path]) -> list[str]:
    """The command after `remask` that trains the cell, without its folder. `runs`: the folders of the rows it needs."""
    row, study = cell.row, cell.study
    words: list[str] = [row.verb]
    if row.verb == "pretrain":
        words += ["--recipe", _recipe_name(cell), *(["--method", row.method] if row.method else [])]
        for teacher in row.teachers:
            words += ["--teacher", _filled(teacher, runs)]
        words += ["--set", f"backbone.weights={weights}"] if (weights := _weights(row, runs)) else []
    else:
        words += [_filled(row.start or "", runs), "--recipe", _recipe_name(cell)]
        words += ["--untrained"] if row.untrained else []
    named = {"--data": row.data or study.data, "--val": row.val, "--masks": row.masks, "--val-masks": row.val_masks}
    words += [word for flag, value in named.items() if value for word in (flag, value)]
    words += ["--epochs", str(size.epochs), *(["--limit", str(size.limit)] if size.limit else [])]
    for key, value in {**(study.set if row.verb == "pretrain" else {}), **row.set}.items():
        words += ["--set", f"{key}={literal(value)}"]
    return [*words, "--seed", str(cell.seed)]


def probe_arguments(study: Study) -> list[str]:
    """The flags of `remask probe` after the run; none where the study has no probe."""
    if not (probe := study.probe):
        return []
    words = ["--data", probe.data, "--val", probe.val, "--protocol", probe.protocol]
    words += ["--limit", str(probe.limit)] if probe.limit else []
    words += ["--image-size", probe.image_size] if probe.image_size else []
    return words + (["--shots", str(probe.shots)] if probe.protocol == "fast" else [])


def settings_of(cell: Cell, size: Size, needed: Mapping[str, str]) -> dict[str, Any]:
    """All that decides the result of a cell. `runtime` and what a recipe says of itself do not.

    needed   digests of the settings of the rows it needs
    """
    words = train_arguments(cell, size, {name: Path(f"{ROW}{name}") for name in needed})
    words[words.index("--recipe") + 1] = cell.row.recipe or DEFAULTS[cell.row.verb]  # from whatever folder it is run
    if cell.row.verb == "pretrain":
        recipe = recipe_of(cell).model_dump(mode="json")
    else:
        task = cell.row.verb
        recipe = load(TASKS[task], FOLDER / task, _recipe_name(cell), cell.row.set, environment={}).model_dump(
            mode="json"
        )
    recipe["optim"].pop("max_skipped")  # it says when a run stops, not what it computes
    ignored = ("name", "title", "paper", "table", "expected", "command", "cost", "notes", "runtime", "distill")
    return {
        "train": words,
        "budget": (cell.row.budget or cell.study.budget).model_dump(exclude_none=True),
        "probe": probe_arguments(cell.study) if cell.row.verb == "pretrain" else [],
        "recipe": {key: value for key, value in recipe.items() if key not in ignored},
        "needs": dict(needed),
    }


def is_current(cell: Cell, result: Mapping[str, Any]) -> bool:
    """Whether a result is of what the study's file says now, as far as no data has to be opened to tell."""
    current = settings_of(cell, Size(1), dict.fromkeys(needs(cell.row), ""))
    return all(result["settings"][key] == current[key] for key in ("budget", "probe", "recipe"))


def digest(settings: Mapping[str, Any]) -> str:
    """Of settings: results of other settings are not those of the cell."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_result(cell: Cell) -> dict[str, Any] | None:
    """What is left of a cell; None where it was never done. Raises UserError for a damaged file."""
    if not cell.file.is_file():
        return None
    try:
        return dict(json.loads(cell.file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{printable(cell.file)} cannot be read ({error}): delete it, and the cell is run again"
        ) from None


def write_result(cell: Cell, settings: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Gather a finished run into the cell's file, which is small and of which the report is made."""
    folder = RunFolder(run)
    environment = folder.read_or_empty("env.json")
    content = {
        "study": cell.study.name,
        "row": cell.name,
        "seed": cell.seed,
        "digest": digest(settings),
        "settings": settings,
        "command": " ".join(map(quoted, ["remask", *settings["train"], "--out", f"runs/{cell.run}"])),
        "measures": measures(cell, run),
        "cost": folder.read_or_empty("cost.json"),
        "curve": _curve(run),
        "machine": {key: environment.get(key) for key in ("cpu", "instructions", "cores", "gpus", "python")},
        "versions": environment.get("versions", {}),
    }
    with atomic_write(cell.file) as tmp:
        tmp.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return content


def measures(cell: Cell, run: Path) -> dict[str, dict[str, float]]:
    """Percent by what is measured, then by network: trained, untrained, pixels (raw pixels)."""
    if cell.row.verb != "pretrain":
        key = HEADLINES[cell.row.verb]
        value = RunFolder(run).read(f"eval/{cell.row.verb}.json")[key]
        return {} if value is None else {key: {"trained": float(value)}}  # AP is none where there is nothing to find
    if not cell.study.probe:
        return {}
    protocol = cell.study.probe.protocol
    result = RunFolder(run).read(f"eval/{FILES[protocol]}.json")
    if protocol != "fast":
        return {f"{protocol} probe": _networks(result)}
    few = result["few_labels"]
    named = {"linear": result["linear"], "kNN": result["knn"]}
    named |= {f"linear, {few['per_class']} labels": few, f"kNN, {few['per_class']} labels": few["knn"]}
    return {name: _networks(values) for name, values in named.items()}


def _networks(values: Mapping[str, Any]) -> dict[str, float]:
    kinds = {"top1": "trained", "untrained": "untrained", "pixels": "pixels"}
    return {kind: float(values[key]) for key, kind in kinds.items() if key in values}


def _curve(run: Path) -> list[list[float]]:
    """[step, loss] at up to POINTS moments; the last is the end."""
    lines = [line for line in read_json_lines(run / "metrics.jsonl") if isinstance(line.get("loss/total"), float)]
    chosen = [lines[i * (len(lines) - 1) // (POINTS - 1)] for i in range(POINTS)] if len(lines) > POINTS else lines
    return [[line["step"], round(line["loss/total"], 5)] for line in chosen]


__all__ = [
    "Cell", "Place", "Size", "cells", "digest", "is_current", "measures", "probe_arguments", "read_result", "recipe_of",
    "settings_of", "train_arguments", "write_result",
]  # fmt: skip
