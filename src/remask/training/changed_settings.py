"""RUN/settings.json: the keys of the recipe that were changed when a run was resumed, and at which step. Free of torch.

recipe.toml stays what the run began with; whoever opens the run reads the changes over it.
"""

import time
from collections.abc import Mapping
from typing import Any

from remask.errors import UserError
from remask.recipe.write import literal
from remask.training.run_folder import SETTINGS, RunFolder


def changed_settings(run: RunFolder) -> dict[str, Any]:
    """The changed keys by their dotted names, with their last values. Raises UserError for a damaged file."""
    return {key: value for entry in _history(run) for key, value in entry["set"].items()}


def record_settings(run: RunFolder, settings: Mapping[str, Any], position: Mapping[str, Any]) -> list[str]:
    """Write what is new among `settings`, from a checkpoint's position {"step", "epoch"} on; returns a line if any."""
    history, known = _history(run), changed_settings(run)
    new = {key: value for key, value in settings.items() if key not in known or known[key] != value}
    if not new:
        return []
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    entry = {"step": position["step"], "epoch": position["epoch"], "time": now, "set": new}
    run.write(SETTINGS, {"history": [*history, entry]})
    return [f"from step {position['step']} on: {', '.join(f'{key} = {literal(new[key])}' for key in new)}"]


def _history(run: RunFolder) -> list[dict[str, Any]]:
    history = run.read(SETTINGS).get("history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise _damaged(run)
    if not all(isinstance(entry.get("set"), dict) for entry in history):
        raise _damaged(run)
    return history


def _damaged(run: RunFolder) -> UserError:
    return UserError(f"{run.path / SETTINGS} is damaged (it holds no changes of keys): put it back from a copy")


__all__ = ["changed_settings", "record_settings"]
