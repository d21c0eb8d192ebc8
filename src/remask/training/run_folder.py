"""The run folder: its small files, and errors for folders that are no run or exist already. Free of torch."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.escaping import encodable, is_text, printable, quoted
from remask.files.paths import write_error
from remask.files.records import atomic_write, read_json_lines

FORMAT = 2
"""Version of the run folder's format, in env.json (absent: 1). recipe/formats.py has the defaults of each version."""


class RunFolder:
    """Paths and small files of `runs/NAME/`. JSON files are replaced atomically; metrics are appended.

    writes   whether this process writes; False in all processes but the main one
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @classmethod
    def create(cls, path: Path, recipe: str, env: Mapping[str, Any]) -> "RunFolder":
        """Make a new run folder. Raises UserError if `path` is not free or cannot be made."""
        refuse_existing(path)
        run = cls(path)
        try:
            for folder in ("checkpoints", "pictures", "eval"):
                (path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_be_made(path, error) from error
        (path / "recipe.toml").write_text(recipe, encoding="utf-8")
        run.write("env.json", {"format": FORMAT, **env})
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run. Raises UserError if `path` is no run, or a later version wrote it."""
        if not (path / "recipe.toml").is_file():
            raise UserError(f"{path} is no run: {why_no_run(path)}")
        run = cls(path)
        if run.format > FORMAT:
            raise UserError(
                f"{path} is a run of format {run.format}, and this remask knows {FORMAT}: use the remask that wrote it"
            )
        return run

    @property
    def format(self) -> int:
        """Version of the folder's format; old ones have other defaults."""
        return int(self.read("env.json").get("format", 1))

    def write(self, name: str, content: Mapping[str, Any] | list[Any]) -> None:
        """Write a JSON file, atomically; lists, which may be long, on one line."""
        if not self.writes:
            return
        path = self.path / name
        text = json.dumps(encodable(content), indent=None if isinstance(content, list) else 2)
        with atomic_write(path) as tmp:
            tmp.write_text(text + "\n", encoding="utf-8")

    def read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        if not self.writes:
            return
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without the incomplete one that a killed run may have left."""
        return read_json_lines(self.path / "metrics.jsonl")

    def rewind(self, step: int) -> None:
        """Delete metrics of steps after `step`: a killed run may have logged beyond its last checkpoint."""
        path = self.path / "metrics.jsonl"
        if path.is_file() and self.writes:
            remaining = [line for line in self.metrics() if line["step"] <= step]
            with atomic_write(path) as tmp:
                tmp.write_text("".join(json.dumps(line) + "\n" for line in remaining))


def why_no_run(path: Path) -> str:
    """Why a path is no run, and what to give instead, for an error message."""
    runs = [run.parent for run in path.glob("*/recipe.toml")] if path.is_dir() else []
    if (path / "backbone.safetensors").is_file():
        near = f": give its run, {path.parent}" if (path.parent / "recipe.toml").is_file() else ""
        return f"it is an export{near or ', which probe, embed and finetune take'}"
    if path.is_file():
        return "it is a file; give the folder that --out named"
    if not path.exists():
        known = [run.parent for where in {path.parent, Path("runs")} for run in where.glob("*/recipe.toml")]
        close = difflib.get_close_matches(path.name, [run.name for run in known], 1, 0.5)
        near = next((str(run) for run in known if [run.name] == close), "")
        return f"it does not exist; {f'did you mean {near}?' if near else 'give the folder that --out named'}"
    inside = f", and runs lie inside it: {', '.join(map(str, sorted(runs)[:3]))}" if runs else ""
    return f"it holds no recipe.toml{inside or '; give the folder that --out named'}"


def refuse_bytes(path: Path) -> None:
    """Raise UserError for a path that is not UTF-8, which readers of weights cannot open."""
    if not is_text(str(path)):
        raise UserError(f"{printable(path)} holds bytes that are no UTF-8: choose another --out for weights")


def refuse_existing(path: Path) -> None:
    """Raise UserError unless `path` is free: absent, an empty folder, or a run that failed before its first step."""
    refuse_bytes(path)
    status = RunFolder(path).read("status.json") if (path / "recipe.toml").is_file() else {}
    if (status.get("state"), status.get("step")) == ("failed", 0):
        return
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        resume = f"continue it with: remask resume {quoted(path)}; or " if (path / "recipe.toml").is_file() else ""
        raise UserError(f"{path} already exists and is not empty: {resume}choose another --out")


def find(run: RunFolder, name: str = "last") -> Path:
    """The folder of a checkpoint, also if a run was killed between the two renames of `save`.

    Raises UserError, which lists the others, if there is none of this name.
    """
    folder = run.path / "checkpoints" / name
    for candidate in (folder, folder.with_name(f".{name}.old")):
        if (candidate / "state.json").is_file():
            return candidate
    others = sorted(path.name for path in folder.parent.glob("[!.]*"))
    why = (
        f"it holds {', '.join(others)}" if others else "the run ended before its first; start again with another --out"
    )
    raise UserError(f"{run.path} holds no checkpoint {name!r}: {why}")


def check_new_run(path: Path | None) -> None:
    """Raise UserError if a new run cannot be made: the path is not free, or not writable. None passes."""
    if path is None:
        return
    refuse_existing(path)
    if error := write_error(path):
        raise cannot_be_made(path, error)


def cannot_be_made(path: Path, error: OSError) -> UserError:
    """The error for a folder that the operating system does not create."""
    return UserError(f"{path} cannot be made: {error.strerror}; choose another --out")


def is_task_run(path: Path) -> bool:
    """Whether a folder is a run of a downstream task, which has a task.json, not of pre-training."""
    return (path / "task.json").is_file()


__all__ = [
    "FORMAT",
    "RunFolder",
    "check_new_run",
    "find",
    "is_task_run",
    "refuse_bytes",
    "refuse_existing",
    "why_no_run",
]
