"""`remask verify`: which files of a run, or of an export, are still those that were written."""

import json
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from remask.commands.paths import paths_or_texts
from remask.commands.printing import Say
from remask.errors import UserError
from remask.files.escaping import printable
from remask.files.manifest import damage
from remask.files.text import read_json, read_toml
from remask.runs.opening import open_run, open_task, results_of
from remask.targets.tokens import read_codebook
from remask.training.checkpoint import state_of
from remask.training.run_folder import RunFolder, is_task_run, is_trained, missing, why_no_run

INTACT, DAMAGED, UNKNOWN, MISSING = "intact", "damaged", "unknown", "missing"


class State(NamedTuple):
    """A file or folder of a run, by its name in it; `state` is intact, damaged, unknown or missing, and `why`."""

    name: str
    state: str
    why: str = ""


@paths_or_texts
def verify(path: Path, *, say: Say | None = None) -> list[State]:
    """The state of every file of a run, or of an export's folder.

    say   receives a line for each
    Unknown is what an earlier version wrote, without digests. Raises UserError, at the end, if a file is damaged, or
    missing though the run is finished; and for what is neither a run nor an export.
    """
    if (path / "recipe.toml").is_file() and not (path / "model.json").is_file():
        states = [*_of_run(path)]
    elif any((path / name).is_file() for name in ("backbone.safetensors", "manifest.json")):
        states = [_of_folder(path, ".")]
    else:
        raise UserError(f"{path} is no run: {why_no_run(path)}")
    for state in states if say else ():
        line = f"{state.state:<8}  {printable(state.name)}{f'  ({printable(state.why)})' if state.why else ''}"
        say(line)  # type: ignore[misc]  # there is one where there are states to say
    bad = [state for state in states if state.state in (DAMAGED, MISSING)]
    if bad:
        raise UserError(
            f"{path}: {len(bad)} of {len(states)} are damaged or missing, first {bad[0].name}"
            f"{f' ({bad[0].why})' if bad[0].why else ''}"
        )
    return states


def _of_run(path: Path) -> Iterator[State]:
    run = RunFolder(path)
    changed = _changed(run)
    yield changed.get("recipe.toml") or _checked(path, "recipe.toml", read_toml)
    for folder in sorted((path / "checkpoints").glob("*")):
        name = f"checkpoints/{folder.name}"
        if folder.name.startswith("."):
            yield State(name, UNKNOWN, "left by a save that was cut off; the next save removes it")
        else:
            yield _of_checkpoint(folder, name)
    if (path / "export").is_dir():
        yield _of_folder(path / "export", "export")
    readers: list[tuple[str, Callable[[Path], object]]] = [
        ("*.json", _object), ("eval/*.json", read_json), ("metrics.jsonl", _lines), ("data.npz", _archive),
        ("codebook.safetensors", read_codebook), ("pictures/*.png", _image),
        *((name, _text) for name in ("bad_images.txt", "beyond_range.txt", "recovered.txt", "report.html")),
    ]  # fmt: skip
    for pattern, read in readers:
        for file in sorted(path.glob(pattern)):
            name = str(file.relative_to(path))
            yield changed.get(name) or _checked(path, name, read)
    if is_trained(run):
        yield from (State(name, MISSING, "remask resume writes it") for name in missing(run, _results(path)))


def _changed(run: RunFolder) -> dict[str, State]:
    """What the last checkpoint says of files beside it, where they are not as it says."""
    last = run.path / "checkpoints" / "last"
    try:
        digests = {} if damage(last) else state_of(last).get("files")
        if not isinstance(digests, dict):  # of an earlier version
            return {}
        return {
            name: State(name, DAMAGED, "it is not what it was when the last checkpoint was written: damaged or edited")
            for name in ("recipe.toml", "metrics.jsonl")
            if name in digests and run.changed({name: digests[name]})
        }
    except UserError:  # said of the checkpoint
        return {}


def _results(path: Path) -> list[str]:
    """What the run has when it is finished; [] if its recipe cannot be read, which is said elsewhere."""
    try:
        return (
            [f"eval/{open_task(path)[1].task}.json", "report.html"]
            if is_task_run(path)
            else results_of(open_run(path)[1])
        )
    except UserError:
        return []


def _of_checkpoint(folder: Path, name: str) -> State:
    state = _of_folder(folder, name)
    if state.state == UNKNOWN:
        files = ("model.safetensors", "optimizer.pt", "state.json")
        absent = [file for file in files if not (folder / file).is_file()]
        if absent:
            return State(name, DAMAGED, f"{absent[0]} is missing")
    try:
        step = state_of(folder).get("step")
    except UserError as error:
        return State(name, DAMAGED, state.why or str(error))
    return state._replace(why="; ".join(filter(None, (f"step {step}", state.why))))


def _of_folder(folder: Path, name: str) -> State:
    """A folder with a manifest."""
    faults = damage(folder)
    if faults is None:
        return State(name, UNKNOWN, "written without digests by an earlier version")
    return State(name, DAMAGED, "; ".join(faults)) if faults else State(name, INTACT)


def _checked(run: Path, name: str, read: Callable[[Path], object]) -> State:
    """A file without a digest of its own: whether it can be read."""
    try:
        read(run / name)
    except (UserError, OSError, ValueError, SyntaxError, zipfile.BadZipFile, tomllib.TOMLDecodeError) as error:
        return State(name, DAMAGED, (str(error).splitlines() or [type(error).__name__])[0])
    return State(name, INTACT)


def _object(file: Path) -> None:
    if not isinstance(read_json(file), dict):
        raise ValueError("it holds no object")


def _lines(file: Path) -> None:
    """Every line but the last, which a killed run may have cut off."""
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if line.endswith("\n"):
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                raise ValueError(f"line {number} is no JSON") from None


def _archive(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        if (broken := archive.testzip()) is not None:
            raise ValueError(f"{broken} in it is damaged")


def _image(file: Path) -> None:
    with Image.open(file) as image:
        image.load()


def _text(file: Path) -> None:
    file.read_text(encoding="utf-8")


__all__ = ["State", "verify"]
