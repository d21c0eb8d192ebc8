"""The recipe of `remask refine`: a run's data and network with the method refiner, its numbers scaled to the run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.recipe.load import load_recipe, parse_settings, variables
from remask.recipe.schema import Recipe
from remask.recipe.sections import DROPPING
from remask.runs.opening import open_run
from remask.training.run_folder import find

SHARE = 0.25
"""Tokens that the encoder reads in refining, over those it read in pre-training (MIM-Refiner: 100 whole crops of an
image after 1600 epochs at a quarter of its tokens)."""
RATE = 2 / 3
"""Base rate in refining over that of pre-training (MIM-Refiner after MAE: 1e-4 after 1.5e-4)."""


def refine_recipe(
    run: Path, overrides: Mapping[str, Any], settings: Sequence[str] = (), images: int | None = None
) -> Recipe:
    """The recipe that refines a run, with the flags' keys over those that are chosen here.

    images   of its data, by which queue and moving average are sized
    Raises UserError for a folder that is no run of pre-training or has no checkpoint, and for invalid keys.
    """
    folder, before = open_run(run)
    find(folder)
    flags = {**variables(os.environ), **overrides, **parse_settings(settings)}
    if "backbone.weights" in flags:
        raise UserError(f"backbone.weights: remask refine starts from {run}; give other weights to remask pretrain")
    chosen = _chosen(before, run)
    batch, epochs = (flags.get(key, chosen[key]) for key in ("optim.batch_size", "optim.epochs"))
    if isinstance(epochs, int) and isinstance(batch, int) and batch > 0 and epochs > 0:  # else the schema complains
        steps = epochs * max(1, (images or 0) // batch)
        chosen["optim.warmup_epochs"] = round(epochs / 20, 3) if steps >= 20 or not images else 0.0
        if images:
            chosen |= _sized(images, steps)
            if "optim.batch_size" not in flags and batch > 2 * images:
                chosen |= {"optim.batch_size": 2 * images, "refine.neighbours": min(20, 2 * images)}
    return load_recipe(run / "recipe.toml", {**chosen, **flags}, environment={})


def _chosen(before: Recipe, run: Path) -> dict[str, Any]:
    """What does not depend on the number of images."""
    optim = before.optim
    peak = optim.base_lr or (optim.lr or 0.0) * 256 / optim.batch_size
    views, encoded = before.dm.views if before.dm else 1, 1.0
    if before.method.name in DROPPING:
        encoded -= before.masking.ratio
    epochs = round(SHARE * optim.epochs * views * encoded)
    batch = max(128, optim.batch_size)
    return {
        "name": f"{before.name}-refined", "title": f"The second stage of {before.name}", "paper": "", "table": "",
        "expected": "", "command": f"remask refine {run}", "cost": "",
        "notes": ["Chosen by remask refine from the run that it starts from."],
        "data.crops": 2, "data.crop": "random", "data.crop_scale": [0.25, 1.0],
        "backbone.weights": f"run:{run.resolve()}", "method.name": "refiner",
        "refine.pool": "mean",  # as probes read features
        "masking.pattern": "none", "masking.ratio": 0.0,
        "dm": "off", "jd": "off", "uniformity": "off", "distill": "off", "progress": "off",
        "optim.epochs": max(10, epochs), "optim.batch_size": batch + batch % 2, "optim.base_lr": round(RATE * peak, 9),
        "optim.max_steps": "off", "optim.drop_epoch": "off", "optim.clip": "off", "optim.lr": "off",
    }  # fmt: skip


def _sized(images: int, steps: int) -> dict[str, Any]:
    """A queue of at most half of the images, and an average over the last tenth of the training."""
    queue = max(32, min(65536, 2 ** (max(images // 2, 2).bit_length() - 1)))
    decay = min(0.9999, max(0.99, 1 - 10 / max(steps, 1)))
    return {"refine.queue": queue, "average.decay": [round(decay, 6)] * 2}


__all__ = ["refine_recipe"]
