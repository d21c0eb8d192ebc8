"""FastMIM-P (2212.06593): image sizes that increase during pre-training. One trainer per size hands over to the next.

The batch, and with it the learning rate, stays the same in unique images at every size. A size ends with an epoch,
where a checkpoint is written. The handover is a function of that checkpoint alone, so a run killed on either side of a
switch continues bit by bit.
# official: the released code changes the crop and the batch but no table, and stops at the first larger image.
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from remask.backbones.tables import resize_state
from remask.method import Method
from remask.recipe import Recipe
from remask.training.sharding import full_state, shard_like, shard_state
from remask.training.trainer import Trainer
from remask.types import Size

NETWORK = "backbone.network."


class Phase(NamedTuple):
    """A recipe at one image size, and the number of epochs done when it ends."""

    recipe: Recipe
    end: int


def phases(recipe: Recipe) -> list[Phase]:
    """The phases of a recipe in order, one per image size."""
    if not recipe.progress:
        return [Phase(recipe, recipe.optim.epochs)]
    ends = accumulate(recipe.progress.epochs or recipe.progress.even(recipe.optim.epochs))
    return [Phase(at_size(recipe, size), end) for size, end in zip(recipe.progress.sizes, ends, strict=True)]


def phase_of(recipe: Recipe, epoch: float) -> int:
    """Index of the phase that wrote a checkpoint after `epoch` epochs; a phase still writes the one at its end."""
    return next(i for i, phase in enumerate(phases(recipe)) if epoch <= phase.end)


def at_size(recipe: Recipe, size: Size) -> Recipe:
    """The recipe for images of `size` pixels (h, w) only."""
    data = recipe.data.model_copy(update={"image_size": size})
    return recipe.model_copy(update={"data": data, "progress": None})


def grow(state: Mapping[str, Tensor], method: Method, before: Size, after: Size) -> dict[str, Tensor]:
    """A state dict from images of `before` pixels (h, w), converted for `method`, which is built for `after`.

    The network's position tables are resized; fixed buffers (the decoder's positions) are those of `method`.
    """
    inside = {name.removeprefix(NETWORK): value for name, value in state.items() if name.startswith(NETWORK)}
    resized = resize_state(inside, method.backbone.network, before, after, method.backbone.patch)
    resized_state = {**state, **{NETWORK + name: value for name, value in resized.items()}}
    own = method.state_dict()
    fixed = {name for name, _ in method.named_buffers() if not name.startswith(NETWORK) and before != after}
    return {name: own[name] if name in fixed else value for name, value in resized_state.items()}


def hand_over(old: Trainer, new: Trainer, before: Size, after: Size) -> None:
    """Copy weights, the optimizer's moments and the position in the schedule to the trainer of the next size.

    Collective: shards are gathered, resized and sharded again.
    """
    method: Method = new.model  # type: ignore[assignment]
    method.load_state_dict(
        shard_state(grow(full_state(old.model.state_dict()), method, before, after), method.state_dict())
    )
    moments, parameters = _moments(old), _by_name(new)
    for kind in ("exp_avg", "exp_avg_sq"):
        resized_state = grow({name: state[kind] for name, state in moments.items()}, method, before, after)
        for name, value in resized_state.items():
            moments[name][kind] = value.clamp(min=0) if kind == "exp_avg_sq" else value  # bicubic resizing overshoots
    for name, state in moments.items():
        new.optimizer.state[parameters[name]] = {
            key: torch.clone(shard_like(value, parameters[name])) for key, value in state.items()
        }
    new.place(old.state())


def _by_name(trainer: Trainer) -> dict[str, torch.nn.Parameter]:
    groups = trainer.optimizer.param_groups
    return {name: p for group in groups for name, p in zip(group["names"], group["params"], strict=True)}


def _moments(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """AdamW's full state by parameter name."""
    state = trainer.optimizer.state
    return {name: full_state(dict(state[p])) for name, p in _by_name(trainer).items() if p in state}


__all__ = ["Phase", "at_size", "grow", "hand_over", "phase_of", "phases"]
