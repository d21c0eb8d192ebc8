"""Initial weights of the methods that replace tokens: SimMIM 2111.09886, MaskFeat 2112.09133, BEiT 2106.08254."""

import math
from functools import partial
from typing import Literal

import torch
from torch import nn

from remask.errors import UserError, setting
from remask.method import Method
from remask.methods.mae import initialise as as_mae

STD = 0.02


def truncated(module: nn.Module, bound: float = 2.0) -> None:
    """Linear layers and the patch convolution: normal of std .02, cut off at ±bound; zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=STD, a=-bound, b=bound)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


Start = Literal["published", "xavier"]
"""Initial weights: the papers', or MAE's, for networks so narrow that .02 lets next to nothing through."""


def initialise(
    method: Method, bound: float = 2.0, *, heads: bool = True, rescale: bool = False, start: Start = "published"
) -> None:
    """Initialise a method in place; its targets, which may hold trained networks, are not touched.

    bound     where the normal of std .02 is cut off; BEiT's and SimMIM's ViT cut at one deviation
    heads     False leaves the heads as PyTorch made them (SimMIM)
    rescale   divide the two matrices that write to the residual stream by √(2·block), blocks counted from 1
    start     "xavier": MAE's weights in network and heads; the other arguments are then ignored
    A Swin keeps the weights that timm gave it, which are the published ones.
    """
    if start == "xavier":
        for module in (method.backbone, *(branch.head for branch in method.branches)):
            module.apply(as_mae)  # type: ignore[attr-defined]
        method.restart_average()
        return
    network = method.backbone.network
    modules = [branch.head for branch in method.branches] if heads else []
    blocks = list(getattr(network, "blocks", []))
    if blocks:
        modules.append(network)  # type: ignore[arg-type]
        tokens = [p for name, p in network.named_parameters() if name in ("cls_token", "reg_token", "pos_embed")]
        for token in (p for p in [*tokens, *method.sees.parameters()] if p.requires_grad):
            nn.init.trunc_normal_(token, std=STD, a=-bound, b=bound)
    for module in modules:
        if isinstance(module, nn.Module):
            module.apply(partial(truncated, bound=bound))
    for number, block in enumerate(blocks if rescale else [], 1):
        if not (hasattr(block, "attn") and hasattr(block, "mlp")):
            xavier = setting("method.initial to xavier", "start to xavier")
            raise UserError(
                f"the blocks of {type(network).__name__} are {type(block).__name__}s, without an attn and an mlp, "
                f"whose first weights this method states; set {xavier}, or choose another backbone"
            )
        with torch.no_grad():
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))
    method.restart_average()


__all__ = ["STD", "Start", "initialise", "truncated"]
