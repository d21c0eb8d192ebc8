"""The recipe of `remask refine`: a run's data and network with the method refiner, its numbers scaled to the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.recipe.load import load_recipe, parse_settings
from remask.recipe.schema import Recipe
from remask.runs.opening import open_run
from remask.training.run_folder import find

SHARE = 0.25
"""Tokens that the encoder reads in refining, over those it read in pre-training (MIM-Refiner: 100 whole crops of an
image after 1600 epochs at a quarter of its tokens)."""


def refine_recipe(
    run: Path, overrides: Mapping[str, Any], settings: Sequence[str] = (), images: int | None = None
) -> Recipe:
    """The recipe that refines a run, with the flags' keys over those that are chosen here.

    images   of its data, by which queue and moving average are sized
    Raises UserError for a folder that is no run of pre-training or has no checkpoint, and for invalid keys.
    """
    folder, before = open_run(run)
    find(folder)
    flags = {**overrides, **parse_settings(settings)}
    chosen = _chosen(before, run)
    batch = int(flags.get("optim.batch_size", chosen["optim.batch_size"]))
    epochs = flags.get("optim.epochs", chosen["optim.epochs"])
    if isinstance(epochs, int):
        chosen["optim.warmup_epochs"] = round(epochs / 20, 3)
        if images:
            chosen |= _sized(images, images // batch * epochs)
    return load_recipe(run / "recipe.toml", {**chosen, **flags}, environment={})


def _chosen(before: Recipe, run: Path) -> dict[str, Any]:
    """What does not depend on the number of images."""
    optim = before.optim
    epochs = round(SHARE * optim.epochs * before.ete_per_epoch * (1 - before.masking.ratio))
    batch = max(128, optim.batch_size)
    return {
        "name": f"{before.name}-refined", "title": f"The second stage of {before.name}", "paper": "", "table": "",
        "expected": "", "command": f"remask refine {run}", "cost": "",
        "notes": ["Chosen by remask refine from the run that it starts from."],
        "data.crops": 2, "backbone.weights": f"run:{run.resolve()}", "method.name": "refiner",
        "masking.pattern": "none", "masking.ratio": 0.0,
        "dm": "off", "jd": "off", "uniformity": "off", "distill": "off", "progress": "off",
        "optim.epochs": max(10, epochs), "optim.batch_size": batch + batch % 2, "optim.base_lr": 4e-3,
        "optim.max_steps": "off", "optim.drop_epoch": "off", "optim.clip": "off", "optim.lr": "off",
    }  # fmt: skip


def _sized(images: int, steps: int) -> dict[str, Any]:
    """A queue of at most half of the images, and an average over the last tenth of the training."""
    queue = max(32, min(65536, 2 ** (max(images // 2, 2).bit_length() - 1)))
    decay = min(0.9999, max(0.99, 1 - 10 / max(steps, 1)))
    return {"refine.queue": queue, "average.decay": [round(decay, 6)] * 2}


__all__ = ["refine_recipe"]
