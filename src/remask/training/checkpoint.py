"""Checkpoints of a run: written atomically, read without executing code."""

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
from remask.files.tensors import refuse_non_finite
from remask.training.run_folder import RunFolder, find
from remask.training.sharding import full_state, shard_like, shard_state


def save(
    run: RunFolder, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write checkpoints/NAME atomically: weights (safetensors), optimizer (tensors only), state (JSON).

    Collective: shards are gathered to full tensors, and only the process with `run.writes` writes.
    """
    weights, moments = (full_state(owner.state_dict(), run.writes) for owner in (model, optimizer))
    if not run.writes:
        return
    folder = run.path / "checkpoints" / name
    tmp, old = folder.with_name(f".{name}.part"), folder.with_name(f".{name}.old")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp / "model.safetensors")
    torch.save(moments, tmp / "optimizer.pt")
    (tmp / "state.json").write_text(json.dumps(state))
    if (
        folder.exists()
    ):  # else a run was killed between the renames, and `old` is the only checkpoint: keep it until the end
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    tmp.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def position(run: RunFolder, name: str = "last") -> dict[str, Any]:
    """The saved state of a checkpoint: {"step", "epoch", "ledger", ...}; see `Trainer.state`."""
    return _state(find(run, name))


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Load a checkpoint into a model (strictly) and an optimizer; returns its saved state, see `position`.

    Raises UserError for files that are damaged or do not fit.
    """
    load_weights(folder / "model.safetensors", model)
    if optimizer:
        state = _load_tensors(folder / "optimizer.pt")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for i, moments in state["state"].items():
            state["state"][i] = {name: shard_like(value, parameters[i]) for name, value in moments.items()}
        optimizer.load_state_dict(state)
    return _state(folder)


def _state(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint's state.json. Raises UserError if it is damaged."""
    try:
        return dict(json.loads((folder / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'} is damaged ({error}): take another checkpoint of the run") from error


def _load_tensors(path: Path) -> dict[str, Any]:
    """Content of a torch file of tensors and plain values. Raises UserError for objects of other classes."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        why = (str(error).splitlines() or ["it is empty"])[0]
        raise UserError(f"{path} cannot be read: {why}; the run cannot be resumed from this checkpoint") from error


def load_weights(path: Path, model: nn.Module, prefix: str = "") -> None:
    """Strictly load a safetensors file, or its keys that begin with `prefix`, into a model, sharded or not.

    Raises UserError, which names the first keys, if keys or shapes do not fit, or if values are not finite.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}; take another checkpoint of the run") from error
    own, renamed = model.state_dict(), getattr(model, "former_names", {})
    stored = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    stored = {renamed.get(key, key): value for key, value in stored.items()}
    if faults := _faults(stored, own):
        raise UserError(
            f"{path} does not fit the model: {'; '.join(faults[:3])}{f'; {len(faults) - 3} more' * (len(faults) > 3)}"
        )
    refuse_non_finite(stored, path)
    model.load_state_dict(shard_state(stored, own))


def _faults(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    faults = [f"{key} is missing" for key in expected if key not in stored]
    faults += [f"{key} is unknown" for key in stored if key not in expected]
    misshapen = [key for key in expected if key in stored and stored[key].shape != expected[key].shape]
    return faults + [f"{key} is {tuple(stored[key].shape)}, not {tuple(expected[key].shape)}" for key in misshapen]


__all__ = ["load_weights", "position", "restore", "save"]
