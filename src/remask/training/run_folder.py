"""The run folder: its small files, and errors for folders that are no run or exist already. Free of torch."""

import difflib
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files import records
from remask.files.escaping import encodable, is_text, printable, quoted
from remask.files.locking import lock_run, was_locked
from remask.files.paths import write_error
from remask.files.records import atomic_write, leftovers, make_folder, read_json_lines, sync_file, sync_folder
from remask.files.system_errors import why_not_made
from remask.files.text import read_json

FORMAT = 2
"""Version of the run folder's format, in env.json (absent: 1). recipe/formats.py has the defaults of each version."""

REPORT = "report.html"
SETTINGS = "settings.json"
"""Keys of the recipe that were changed when the run was resumed; see changed_settings.py."""
BEGUN = frozenset((
    "checkpoints", "pictures", "eval", "env.json", "data.json", "data.npz", "task.json", "codebook.safetensors",
    ".lock",
))  # fmt: skip
"""What a new run's folder holds before its recipe, which is written last."""


class RunFolder:
    """Paths and small files of `runs/NAME/`. JSON files are replaced atomically; metrics are appended.

    writes      whether this process writes; False in all processes but the main one
    recovered   a line about a damaged checkpoint in whose place another was taken
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.recovered: str | None = None
        self._hashed, self._hashed_bytes = hashlib.sha256(), 0

    @classmethod
    def create(cls, path: Path, recipe: str, env: Mapping[str, Any]) -> "RunFolder":
        """Make a new run folder, which this process then writes alone. Raises UserError if it cannot be made."""
        run = cls.reserve(path)
        run.begin(recipe, env)
        return run

    @classmethod
    def reserve(cls, path: Path) -> "RunFolder":
        """Make the folder of a new run and lock it. It is no run until `begin`: what that needs is written between.

        Raises UserError if `path` is not free or cannot be made, or another process writes it.
        """
        refuse_existing(path)
        try:
            make_folder(path)
            lock_run(path)
            shutil.rmtree(path / "checkpoints", ignore_errors=True)  # of a run that failed at step 0
            (path / SETTINGS).unlink(missing_ok=True)
            for folder in ("checkpoints", "pictures", "eval"):
                make_folder(path / folder)
        except OSError as error:
            raise cannot_be_made(path, error) from error
        return cls(path)

    def begin(self, recipe: str, env: Mapping[str, Any]) -> None:
        """Make the folder a run, which can be resumed from now on, if only from step 0."""
        self.write("env.json", {"format": FORMAT, **env})
        with atomic_write(self.path / "recipe.toml") as tmp:
            tmp.write_text(recipe, encoding="utf-8")
        command = f"remask resume {quoted(self.path)}"
        self.write("status.json", {"state": "running", "step": 0, "resume_command": command})

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
        version = self.read("env.json").get("format", 1)
        if not isinstance(version, int):
            raise UserError(f"{self.path / 'env.json'} is damaged: its format is {version!r}, not a number")
        return version

    def write(self, name: str, content: Mapping[str, Any] | list[Any], *, sync: bool = True) -> None:
        """Write a JSON file, atomically; lists, which may be long, on one line. sync: see `atomic_write`."""
        if not self.writes:
            return
        path = self.path / name
        text = json.dumps(encodable(content), indent=None if isinstance(content, list) else 2)
        with atomic_write(path, sync=sync) as tmp:
            tmp.write_text(text + "\n", encoding="utf-8")

    def read(self, name: str) -> dict[str, Any]:
        """Content of a JSON file, {} if there is none. Raises UserError if it is damaged."""
        path = self.path / name
        try:
            content = read_json(path) if path.is_file() else {}
        except (OSError, ValueError, UserError) as error:
            raise UserError(f"{path} is damaged ({error}): put it back from a copy") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged (it holds no object): put it back from a copy")
        return content

    def read_or_empty(self, name: str) -> dict[str, Any]:
        """Content of a JSON file that a run can do without; {} if it is missing or damaged."""
        try:
            return self.read(name)
        except UserError:
            return {}

    def finish(self) -> None:
        """Note that the run and all its results are there; what killed saves had left beside checkpoints goes."""
        for folder in {self.path / "checkpoints" / "last", *(self.path / "checkpoints").glob("[!.]*")}:
            records.remove_leftovers(folder)
        status = self.read_or_empty("status.json")
        kept = {key: value for key, value in status.items() if key not in ("stage", "error")}
        self.write("status.json", {**kept, "state": "finished"})

    def note_recovery(self) -> None:
        """Append what `recovered` says to recovered.txt, for the report."""
        if self.recovered:
            self._append("recovered.txt", f"{time.strftime('%Y-%m-%d %H:%M')} {printable(self.recovered)}")

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self._append("metrics.jsonl", json.dumps(line))

    def _append(self, name: str, line: str) -> None:
        if self.writes:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def sync_log(self) -> None:
        """Return when the lines of metrics.jsonl are on the disk; a checkpoint relies on those before it."""
        if (log := self.path / "metrics.jsonl").is_file():
            sync_file(log)
            sync_folder(self.path)

    def digests(self) -> dict[str, dict[str, Any]]:
        """Bytes and SHA-256 of what a checkpoint relies on beside its own files: recipe, and metrics so far.

        Of metrics.jsonl, to which lines are appended, what is new is read alone. Empty in processes that do not write.
        """
        if not self.writes or not (self.path / "recipe.toml").is_file():
            return {}
        found = {"recipe.toml": _digest((self.path / "recipe.toml").read_bytes())}
        if (log := self.path / "metrics.jsonl").is_file():
            with open(log, "rb") as file:
                file.seek(self._hashed_bytes)
                new = file.read()
            self._hashed.update(new)
            self._hashed_bytes += len(new)
            found[log.name] = {"bytes": self._hashed_bytes, "sha256": self._hashed.hexdigest()}
        return found

    def changed(self, digests: object) -> list[str]:
        """Lines about those of the files of `digests` that are other ones now: damaged, or edited."""
        lines = []
        for name, about in digests.items() if isinstance(digests, dict) else ():
            content = file.read_bytes() if (file := self.path / str(name)).is_file() else b""
            end = about.get("bytes") if name == "metrics.jsonl" and isinstance(about, dict) else None
            if _digest(content[: end if isinstance(end, int) else None]) != about:
                lines.append(f"{file} is not what it was when the checkpoint was written: it is damaged, or was edited")
        return lines

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without the incomplete one that a killed run may have left."""
        return read_json_lines(self.path / "metrics.jsonl")

    def rewind(self, step: int) -> None:
        """Delete metrics of steps after `step`: a killed run may have logged beyond its last checkpoint."""
        path = self.path / "metrics.jsonl"
        if path.is_file() and self.writes:
            steps = ((line, line.get("step")) for line in self.metrics())
            remaining = [line for line, at in steps if isinstance(at, int) and at <= step]
            with atomic_write(path) as tmp:
                tmp.write_text("".join(json.dumps(line) + "\n" for line in remaining))
            self._hashed, self._hashed_bytes = hashlib.sha256(), 0


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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
    """Raise UserError unless `path` is free: absent, empty, or a run that was killed or failed before it began."""
    refuse_bytes(path)
    is_run = (path / "recipe.toml").is_file()
    status = RunFolder(path).read_or_empty("status.json") if is_run else {}
    if (status.get("state"), status.get("step")) == ("failed", 0) or (not is_run and _half_made(path)):
        return
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        resume = f"continue it with: remask resume {quoted(path)}; or " if is_run else ""
        raise UserError(f"{path} already exists and is not empty: {resume}choose another --out")


def _half_made(path: Path) -> bool:
    """Whether a folder is what a process left that was killed while it made a run there, and nothing else."""
    if not was_locked(path):
        return False
    ours = BEGUN | {left.name for name in (*BEGUN, "recipe.toml", "status.json") for left in leftovers(path / name)}
    return {entry.name for entry in path.iterdir()} <= ours and not any((path / "checkpoints").glob("*"))


def checkpoints(run: RunFolder, name: str) -> list[Path]:
    """Folders that hold the checkpoint `name`: itself, or what a save that was killed had put aside."""
    folder = run.path / "checkpoints" / name
    aside = [left for left in leftovers(folder) if left.suffix == ".old"]
    return [candidate for candidate in (folder, *aside) if (candidate / "state.json").is_file()]


def find(run: RunFolder, name: str = "last") -> Path:
    """The folder of a checkpoint, also if a run was killed while it replaced it. Its files may be damaged.

    Raises UserError, which lists the others, if there is none of this name.
    """
    if found := checkpoints(run, name):
        return found[0]
    others = sorted(path.name for path in (run.path / "checkpoints").glob("[!.]*"))
    why = f"it holds {', '.join(others)}" if others else f"it ended before its first: remask resume {quoted(run.path)}"
    raise UserError(f"{run.path} holds no checkpoint {name!r}: {why}")


def check_checkpoint(run: RunFolder, name: str = "last") -> None:
    """Raise UserError if there is no such checkpoint; where "last" is missing, a kept one can stand for it."""
    if name != "last" or not any((run.path / "checkpoints").glob("epoch-*")):
        find(run, name)


def is_trained(run: RunFolder) -> bool:
    """Whether all steps are done, by status.json; results may be missing."""
    return run.read_or_empty("status.json").get("state") in ("trained", "finished")


def missing(run: RunFolder, results: Sequence[str]) -> list[str]:
    """Those of a finished run's files that are not there."""
    return [name for name in results if not (run.path / name).is_file()]


def check_new_run(path: Path | None) -> None:
    """Raise UserError if a new run cannot be made: the path is not free, or not writable. None passes."""
    if path is None:
        return
    refuse_existing(path)
    if error := write_error(path):
        raise cannot_be_made(path, error)


def cannot_be_made(path: Path, error: OSError) -> UserError:
    """The error for a folder that the operating system does not create."""
    return UserError(f"{path} cannot be made: {why_not_made(error)}")


def is_task_run(path: Path) -> bool:
    """Whether a folder is a run of a downstream task, which has a task.json, not of pre-training."""
    return (path / "task.json").is_file()


__all__ = [
    "FORMAT", "REPORT", "SETTINGS", "RunFolder", "check_checkpoint", "check_new_run", "checkpoints", "find",
    "is_task_run", "is_trained", "missing", "refuse_bytes", "refuse_existing", "why_no_run",
]  # fmt: skip
