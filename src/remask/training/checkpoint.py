"""The run folder and its checkpoints: written whole or not at all, read without executing anything."""

import difflib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remask.errors import UserError
from remask.files.escaping import encodable, is_text, printable, quoted
from remask.files.records import atomic_write, read_json_lines
from remask.files.tensors import refuse_non_finite
from remask.training.sharding import cut_like, like, whole

FORMAT = 2
"""Of run folders, in env.json: 1 is what says none. recipe/formats.py has the rules that each was started with."""


class RunFolder:
    """Paths and small files of `runs/NAME/`. JSON files are replaced atomically; metrics are appended.

    writes   False in all processes of a run but one: nothing is written then
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    @classmethod
    def create(cls, path: Path, recipe: str, env: Mapping[str, Any]) -> "RunFolder":
        """A new run. Raises UserError where something is already there."""
        refuse_existing(path)
        run = cls(path)
        try:
            for folder in ("checkpoints", "pictures", "eval"):
                (path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be made: {error.strerror}; choose another --out") from error
        (path / "recipe.toml").write_text(recipe, encoding="utf-8")
        run.write("env.json", {"format": FORMAT, **env})
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run. Raises UserError where there is none."""
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
        """Of the folder, by which the rules of an old run are known."""
        return int(self.read("env.json").get("format", 1))

    def write(self, name: str, content: Mapping[str, Any] | list[Any]) -> None:
        """Replace a JSON file. A list has no line breaks: it may be long."""
        if not self.writes:
            return
        path = self.path / name
        text = json.dumps(encodable(content), indent=None if isinstance(content, list) else 2)
        with atomic_write(path) as part:
            part.write_text(text + "\n", encoding="utf-8")

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
        """The lines of metrics.jsonl; the half line that a killed run may have left is not one."""
        return read_json_lines(self.path / "metrics.jsonl")

    def rewind(self, step: int) -> None:
        """Forget metrics of steps after `step`: a killed run may have logged beyond its last checkpoint."""
        path = self.path / "metrics.jsonl"
        if path.is_file() and self.writes:
            kept = [line for line in self.metrics() if line["step"] <= step]
            with atomic_write(path) as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in kept))


def why_no_run(path: Path) -> str:
    """Why a path is no run, and what to give in its place."""
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
    """Raise UserError for a folder of weights whose path is no UTF-8: the readers of weights do not open it."""
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


def save(
    run: RunFolder, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write checkpoints/NAME: weights (safetensors), optimizer (tensors only), state (JSON). Complete or absent.

    Tensors are written whole, whatever pieces the processes of a run hold: all of them call this, and one writes.
    """
    weights, moments = (whole(part.state_dict(), run.writes) for part in (model, optimizer))
    if not run.writes:
        return
    folder = run.path / "checkpoints" / name
    part, old = folder.with_name(f".{name}.part"), folder.with_name(f".{name}.old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, part / "model.safetensors")
    torch.save(moments, part / "optimizer.pt")
    (part / "state.json").write_text(json.dumps(state))
    if folder.exists():  # else `old`, left by a run killed between the renames, is all there is: keep it until the end
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find(run: RunFolder, name: str = "last") -> Path:
    """The folder of a checkpoint, also when a run was killed between the two renames of `save`."""
    folder = run.path / "checkpoints" / name
    for candidate in (folder, folder.with_name(f".{name}.old")):
        if (candidate / "state.json").is_file():
            return candidate
    others = sorted(path.name for path in folder.parent.glob("[!.]*"))
    why = (
        f"it holds {', '.join(others)}" if others else "the run ended before its first; start again with another --out"
    )
    raise UserError(f"{run.path} holds no checkpoint {name!r}: {why}")


def position(run: RunFolder, name: str = "last") -> dict[str, Any]:
    """Where a run stood when it wrote a checkpoint: "step", "epoch" and the cost so far."""
    return _state(find(run, name))


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Load a checkpoint into a model (strictly) and an optimizer; returns the saved state."""
    load_weights(folder / "model.safetensors", model)
    if optimizer:
        state = _load_tensors(folder / "optimizer.pt")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for i, moments in state["state"].items():
            state["state"][i] = {name: like(value, parameters[i]) for name, value in moments.items()}
        optimizer.load_state_dict(state)
    return _state(folder)


def _state(folder: Path) -> dict[str, Any]:
    """What state.json of a checkpoint says. Raises UserError where it is damaged."""
    try:
        return dict(json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'} is damaged ({error}): take another checkpoint of the run") from error


def _load_tensors(path: Path) -> dict[str, Any]:
    """A torch file of tensors and plain values; anything else in it is refused, not executed."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        why = (str(error).splitlines() or ["it is empty"])[0]
        raise UserError(f"{path} cannot be read: {why}; the run cannot be resumed from this checkpoint") from error


def load_weights(path: Path, model: nn.Module) -> None:
    """Strictly load a safetensors file. UserError names the first keys or shapes that do not fit, or are not finite."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}; take another checkpoint of the run") from error
    own, renamed = model.state_dict(), getattr(model, "former_names", {})
    stored = {renamed.get(key, key): value for key, value in stored.items()}
    if faults := _faults(stored, own):
        raise UserError(
            f"{path} does not fit the model: {'; '.join(faults[:3])}{f'; {len(faults) - 3} more' * (len(faults) > 3)}"
        )
    refuse_non_finite(stored, path)
    model.load_state_dict(cut_like(stored, own))


def _faults(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    faults = [f"{key} is missing" for key in wanted if key not in stored]
    faults += [f"{key} is unknown" for key in stored if key not in wanted]
    shared = [key for key in wanted if key in stored and stored[key].shape != wanted[key].shape]
    return faults + [f"{key} is {tuple(stored[key].shape)}, not {tuple(wanted[key].shape)}" for key in shared]


__all__ = [
    "FORMAT",
    "RunFolder",
    "find",
    "load_weights",
    "position",
    "refuse_bytes",
    "refuse_existing",
    "restore",
    "save",
    "why_no_run",
]
