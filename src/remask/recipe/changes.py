"""The keys of a run's recipe that `remask resume --set` may change, and those it advises where numbers overflow."""

from collections.abc import Mapping, Sequence
from typing import Any

from remask.errors import UserError
from remask.recipe.load import parse_settings
from remask.recipe.used import complaint

LEARNING = ("optim.base_lr", "optim.lr", "optim.min_lr", "optim.clip", "optim.precision")
"""Keys with which the numbers are others from there on; pictures, masks and draws stay the same."""

RUNNING = (
    "optim.max_skipped", "runtime.workers", "runtime.threads", "runtime.patience", "runtime.log_every",
    "runtime.save_every_minutes", "runtime.keep_every_epochs", "runtime.tensorboard",
)  # fmt: skip
"""Keys with which the run stays what it was, bit for bit but for the order of sums over other numbers of threads."""


def changes(texts: Sequence[str]) -> dict[str, Any]:
    """The texts of `--set` for a run that is resumed. Raises UserError for a key that decides what the run is."""
    settings = parse_settings(texts)
    if wrong := [key for key in settings if key not in (*LEARNING, *RUNNING)]:
        raise UserError(
            f"{wrong[0]} cannot change in a run, which would be another one: set {', '.join(LEARNING)}, "
            f"{', '.join(RUNNING)}, or start a new run"
        )
    return settings


def refuse_silent(recipe: Any, settings: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that has no effect in the recipe it has changed."""
    if found := complaint(recipe, settings):
        raise UserError(found[1])


def calmer(optim: Any) -> str:
    """Half of the rate of an [optim] section, and clipping to 1 or half of what it was, as options of a command."""
    key, rate = ("optim.lr", optim.lr) if optim.lr else ("optim.base_lr", optim.base_lr)
    clip = optim.clip / 2 if optim.clip and optim.clip <= 1 else 1.0
    return f"--set {key}={rate / 2:.3g} --set optim.clip={clip:.3g}"


__all__ = ["LEARNING", "RUNNING", "calmer", "changes", "refuse_silent"]
