"""Activation checkpointing of any backbone: blocks are recomputed in the backward pass instead of being stored."""

from torch.nn.modules.batchnorm import _BatchNorm

from remask.backbones import Backbone
from remask.errors import UserError


def set_checkpointing(backbone: Backbone, enable: bool = True, key: str = "model.checkpointing") -> None:
    """Store only the activations between blocks, recompute the rest in the backward pass: less memory, a third slower.

    The gradients stay the same, random draws included. `key` is the setting that errors name. Raises UserError for a
    network that cannot do it, and for one with BatchNorm, whose running means would count every batch twice.
    """
    network, name = backbone.network, type(backbone.network).__name__
    if enable and any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise UserError(
            f"{name} has no gradient checkpointing: its BatchNorms would count a batch twice; set {key} to false"
        )
    try:
        network.set_grad_checkpointing(enable)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise UserError(f"{name} has no gradient checkpointing; set {key} to false") from error


__all__ = ["set_checkpointing"]
