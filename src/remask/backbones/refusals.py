"""Why a network cannot be masked here, in words: one place for timm's names and for modules of others."""

from typing import Any

import timm
import torch
from timm.models.beit import Beit
from torch import nn

from remask.errors import UserError

PLAIN = ("vision_transformer", "deit")
"""Modules of timm whose `vit_…` and `deit…` are plain vision transformers."""

CURE = (
    "give one of timm's plain vision transformers (vit_*, deit*), or take method fastmim, which hides pixels before "
    "any network"
)


def is_plain(name: str) -> bool:
    """Whether timm defines this network in a module of plain vision transformers; True for unknown names."""
    return not timm.is_model(name) or timm.models.model_entrypoint(name).__module__.rpartition(".")[2] in PLAIN


def refuse_unless(network: object, kind: type[nn.Module], own: tuple[str, ...] = ()) -> None:
    """Raise UserError unless a network is an instance of timm's class `kind`, and inherits its methods `own` unchanged.

    A wrapper would run another network without its changes, and no one would notice.
    """
    changed = [name for name in own if getattr(type(network), name, None) is not getattr(kind, name)]
    if not isinstance(network, kind) or changed:
        name = type(network).__name__
        raise UserError(f"{name} cannot be masked token by token as a {kind.__name__} can: {why(network)}; {CURE}")


def refuse_tokens(name: str, method: str) -> None:
    """Raise UserError: a method that drops or replaces tokens was given a network, by name, that can do neither."""
    raise UserError(
        f"method.name {method} drops or replaces masked tokens, and {name} can do neither; choose method fastmim, "
        f"which hides pixels, or a ViT as backbone.name ({name}: {why_named(name)})"
    )


def why(network: object) -> str:
    """The reason why a network's tokens cannot be dropped or replaced from outside."""
    blocks: Any = getattr(network, "blocks", None)
    stem: Any = getattr(network, "patch_embed", None)
    reasons = {
        "it turns queries and keys by rotary positions": getattr(network, "rope", None) is not None,
        "its last blocks are class attention": hasattr(network, "blocks_token_only"),
        "it has a distillation token": hasattr(network, "dist_token"),
        "it has relative positions, which need the whole grid": (
            isinstance(network, Beit) or "RelPos" in type(network).__name__ or type(network).__name__.startswith("Swin")
        ),
        "its stem is another network (a hybrid)": hasattr(stem, "backbone"),
        "it has no patch_embed and no blocks": stem is None and blocks is None,
        "it has no patch_embed": stem is None,
        "it has no sequence of blocks": blocks is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), f"it is a {type(network).__name__}")


def why_named(name: str) -> str:
    """`why` for a network by its name in timm, built on the meta device; other names have stages of their own."""
    if not timm.is_model(name):
        return "it has stages of its own"
    try:
        with torch.device("meta"):
            return why(timm.create_model(name, pretrained=False))
    except Exception as error:  # timm may raise anything
        return f"timm cannot build it: {(str(error).splitlines() or [type(error).__name__])[0]}"


__all__ = ["is_plain", "refuse_tokens", "refuse_unless", "why", "why_named"]
