"""Checkpoints of a run: written durably, with the digest of every file, and read without executing code."""

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remask.errors import UserError, first_line
from remask.files.manifest import damage, write_manifest
from remask.files.records import atomic_folder
from remask.files.system_errors import refuse_shortage
from remask.files.tensors import DAMAGED, refuse_non_finite
from remask.files.text import read_json
from remask.training import shards
from remask.training.distributed import World
from remask.training.run_folder import RunFolder, checkpoints, find
from remask.training.sharding import full_state, shard_like, shard_state

_SAID = set[str]()
"""Lines about damaged checkpoints that this process has printed."""


class Content(NamedTuple):
    """What a checkpoint holds: weights and the optimizer's state, all on the CPU and full, and state.json as text."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Any]
    state: str


def gather(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], main: bool = True
) -> Content | None:
    """The content of a checkpoint, which shares memory with the model; None unless `main`. Collective."""
    weights, moments = (full_state(owner.state_dict(), main) for owner in (model, optimizer))
    return Content(weights, moments, json.dumps(state)) if main else None


def write(run: RunFolder, name: str, content: Content) -> None:
    """Write checkpoints/NAME: weights (safetensors), optimizer (tensors only), state (JSON), and their manifest.

    It replaces an older one when all of it is on the disk, and the lines of metrics.jsonl before it are.
    """
    run.sync_log()
    with atomic_folder(run.path / "checkpoints" / name) as tmp:
        save_file({key: value.contiguous() for key, value in content.weights.items()}, tmp / "model.safetensors")
        torch.save(content.moments, tmp / "optimizer.pt")
        (tmp / "state.json").write_text(content.state)
        write_manifest(tmp)


def write_sharded(
    run: RunFolder, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any],
    world: World,
) -> None:  # fmt: skip
    """Write checkpoints/NAME with the pieces of all processes, each its own. Collective.

    As in `write`: a new folder, which replaces the old one when all of it is on the disk.
    """
    with contextlib.ExitStack() as until_replaced:

        def begin() -> Path:
            run.sync_log()
            return until_replaced.enter_context(atomic_folder(run.path / "checkpoints" / name))

        def complete() -> None:
            torch.save(shards.plain_values(optimizer), tmp / "optimizer.pt")
            (tmp / "state.json").write_text(json.dumps(state))
            shards.check_complete(tmp, model, optimizer)
            write_manifest(tmp)
            until_replaced.close()

        tmp = world.first(begin)
        shards.write_shards(tmp, model, optimizer)
        world.first(complete)


def save(
    run: RunFolder, name: str, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write checkpoints/NAME; on return it is on the disk.

    Collective: shards are gathered to full tensors, and only the process with `run.writes` writes.
    """
    if content := gather(model, optimizer, state, run.writes):
        write(run, name, content)


def intact(run: RunFolder, name: str = "last", *, exact: bool = False) -> Path:
    """The folder of a checkpoint whose files are those that were written; earlier versions' have no manifest and pass.

    exact   of this name alone; else the newest kept one replaces a damaged "last", with a line on stderr, which
            `run.recovered` keeps
    Raises UserError, which names the file, for a damaged checkpoint, if no other may replace it or none is intact.
    """
    if exact or name != "last":
        folder = find(run, name)
        if fault := _fault(folder):
            raise UserError(f"{folder}: {fault}; {_others(run, folder)}")
        return folder
    candidates, wrong = checkpoints(run, name), list[str]()
    for candidate in candidates:
        if not (fault := _fault(candidate)):
            return candidate
        wrong.append(fault)
    found = newest_kept(run)
    if found is None and not candidates:
        return find(run, name)  # which says what there is
    where, why = run.path / "checkpoints" / name, wrong[0] if wrong else "it is missing"
    if found is None:
        raise UserError(
            f"{where}: {why}; no other checkpoint of {run.path} is intact: put one back from a copy, or begin a new run"
        )
    run.recovered = f"{where}: {why}; {found.name} (step {state_of(found).get('step')}) is used instead"
    if run.recovered not in _SAID:
        _SAID.add(run.recovered)
        print(f"remask: {run.recovered}", file=sys.stderr)
    return found


def starting_point(run: RunFolder, name: str | None = None) -> Path | None:
    """The checkpoint that a run is resumed from; None for one that ended before its first, which begins at step 0.

    name   exactly this one; None: the last, or the newest that is intact
    A recipe.toml or metrics.jsonl that is no longer what the checkpoint was written beside is said, on stderr and by
    `run.recovered`.
    """
    if name is None and not checkpoints(run, "last") and not any((run.path / "checkpoints").glob("[!.]*")):
        return None
    found = intact(run) if name is None else intact(run, name, exact=True)
    if changed := run.changed(state_of(found).get("files")):
        run.recovered = "; ".join(filter(None, (run.recovered, *changed)))
        for line in changed if run.writes else ():
            print(f"remask: {line}", file=sys.stderr)
    return found


def newest_kept(run: RunFolder) -> Path | None:
    """The kept checkpoint of the highest step that is intact; None if there is none."""
    kept = [path for path in (run.path / "checkpoints").glob("[!.]*") if path.name != "last" and not _fault(path)]
    return max(kept, key=lambda path: int(state_of(path).get("step", 0)), default=None)


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, as far as its manifest, or reading its state, shows; None if nothing."""
    if faults := damage(folder):
        return "; ".join(faults)
    try:
        state_of(folder)
    except UserError as error:
        return str(error)
    needed = ("optimizer.pt",) if shards.is_sharded(folder) else ("model.safetensors", "optimizer.pt")
    missing = [name for name in needed if not (folder / name).is_file()]
    return f"{missing[0]} is missing" if missing else None


def _others(run: RunFolder, folder: Path) -> str:
    names = [path.name for path in sorted(folder.parent.glob("[!.]*")) if path != folder and not _fault(path)]
    return f"{', '.join(names)} can be taken instead" if names else f"no other of {run.path} is intact"


def position(run: RunFolder, name: str = "last") -> dict[str, Any]:
    """The saved state of a checkpoint: {"step", "epoch", "ledger", ...}; see `Trainer.state`."""
    return state_of(intact(run, name))


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Load a checkpoint into a model (strictly) and an optimizer; returns its saved state, see `position`.

    Raises UserError for files that are damaged or do not fit.
    """
    load_weights(folder / "model.safetensors", model)
    if optimizer:
        state = _load_tensors(folder / "optimizer.pt")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        try:
            pieces = shards.read_moments(folder, parameters) if shards.is_sharded(folder) else {}
            for i, moments in state["state"].items():
                full = {name: shard_like(value, parameters[i]) for name, value in moments.items()}
                state["state"][i] = full | pieces.get(i, {})
            optimizer.load_state_dict(state)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            why = first_line(error)
            raise UserError(f"{folder / 'optimizer.pt'} does not fit: {why}; take another checkpoint") from error
    return state_of(folder)


def state_of(folder: Path) -> dict[str, Any]:
    """Content of a checkpoint's state.json. Raises UserError if it is damaged."""
    path = folder / "state.json"
    try:
        state = read_json(path)
        if not isinstance(state, dict):
            raise ValueError("it holds no object")
        for key, kinds in (("step", int), ("epoch", int | float)):
            if not isinstance(number := state.get(key, 0), kinds) or not 0 <= number < 1 << 63:
                raise ValueError(f"its {key} is {number!r:.40}")
        return state
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): take another checkpoint of the run") from error


def _load_tensors(path: Path) -> dict[str, Any]:
    """Content of a torch file of tensors and plain values. Raises UserError for objects of other classes."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, *DAMAGED) as error:
        refuse_shortage(error, path)
        why = (str(error).splitlines() or ["it is empty"])[0].partition("weights_only")[0].strip() or "it is damaged"
        raise UserError(f"{path} cannot be read: {why}; the run cannot be resumed from this checkpoint") from error


def load_weights(path: Path, model: nn.Module, prefix: str = "") -> None:
    """Strictly load a safetensors file, or its keys that begin with `prefix`, into a model, sharded or not.

    path   of a checkpoint's model.safetensors; where that is stored in pieces, they are read instead
    Raises UserError, which names the first keys, if keys or shapes do not fit, or if values are not finite.
    """
    in_pieces = not path.is_file() and shards.is_sharded(path.parent)
    found = shards.listed_weights(path.parent) if in_pieces else _load_full(path)
    own, renamed = model.state_dict(), getattr(model, "former_names", {})
    inner = {key: key.removeprefix(prefix) for key in found if key.startswith(prefix)}
    names = {key: renamed.get(name, name) for key, name in inner.items()}
    stored = {name: found[key] for key, name in names.items()}
    if faults := _faults(stored, own):
        raise UserError(
            f"{path} does not fit the model: {'; '.join(faults[:3])}{f'; {len(faults) - 3} more' * (len(faults) > 3)}"
        )
    if in_pieces:
        read = shards.read_weights(path.parent, {key: own[name] for key, name in names.items()})
        stored = {name: read[key] for key, name in names.items()}
    refuse_non_finite({name: shards.local(value) for name, value in stored.items()}, path)
    model.load_state_dict(shard_state(stored, own))


def _load_full(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        refuse_shortage(error, path)
        why = first_line(error)
        raise UserError(f"{path} cannot be read as safetensors: {why}; take another checkpoint of the run") from error


def _faults(stored: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    faults = [f"{key} is missing" for key in expected if key not in stored]
    faults += [f"{key} is unknown" for key in stored if key not in expected]
    misshapen = [key for key in expected if key in stored and stored[key].shape != expected[key].shape]
    return faults + [f"{key} is {tuple(stored[key].shape)}, not {tuple(expected[key].shape)}" for key in misshapen]


__all__ = [
    "Content", "gather", "intact", "load_weights", "newest_kept", "position", "restore", "save", "starting_point",
    "state_of", "write", "write_sharded",
]  # fmt: skip
