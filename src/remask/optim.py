"""Optimisation: parameter groups, the learning-rate rule (DMJD Eq. 4), the schedule, LARS for linear probes."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def learning_rate(base_lr: float, batch_size: int, gain: float = 1.0) -> float:
    """Peak learning rate for `batch_size` unique images; `gain` is the realised m_pred / m_corr, 1 without DM.

    MAE's linear rule times the gain: what grows with K views is the number of predicted tokens, not of images.
    """
    return base_lr * batch_size * gain / 256  # DMJD Eq. (4)


def cosine(epoch: float, peak: float, warmup: float, epochs: float, floor: float = 0.0) -> float:
    """Linear warm-up from 0 over `warmup` epochs, then half a cosine down to `floor`; `epoch` may be fractional."""
    if epoch < warmup:
        return peak * epoch / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(epochs - warmup, 1e-12)))


def step_down(epoch: float, peak: float, warmup: float, drop: float) -> float:
    """Linear warm-up from 0, the peak until epoch `drop`, a tenth of it from there on (SimMIM's 800 epochs)."""
    if epoch < warmup:
        return peak * epoch / warmup
    return peak if epoch < drop else peak / 10


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    *,
    no_decay: Sequence[str] = (),
    depth_of: Callable[[str], int] | None = None,
    depth: int = 0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """AdamW groups {"params", "names", "weight_decay", "lr_scale"} of the trainable parameters.

    Vectors, biases and the names in `no_decay` are not decayed; 3-D tokens are (as MAE pre-trains its class and mask
    tokens). With `depth_of`, lr_scale = layer_decay ** (depth + 1 - depth_of(name)), BEiT's layer-wise decay.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name in no_decay
        scale = layer_decay ** (depth + 1 - depth_of(name)) if depth_of else 1.0
        decay = 0.0 if plain else weight_decay
        group = groups.setdefault((scale, decay), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW in its fused form (3× the for-loop on CPU; the same numbers)."""
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al., 1708.03888), as MAE's linear probe uses it.

    Matrices: g ← g + wd·p, then g ← trust·|p|/|g|·g (factor 1 where either norm is 0). Vectors: plain momentum SGD.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, momentum: float = 0.9, trust: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                update = self._scaled(p, group) if p.ndim > 1 else p.grad
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * momentum)
        return loss

    @staticmethod
    def _scaled(p: nn.Parameter, group: dict[str, Any]) -> Tensor:
        grad: Tensor = p.grad + group["weight_decay"] * p
        size, slope = p.norm(), grad.norm()
        ratio = torch.where((size > 0) & (slope > 0), group["trust"] * size / slope, torch.ones_like(size))
        return grad * ratio


__all__ = ["Lars", "adamw", "cosine", "learning_rate", "parameter_groups", "set_lr", "step_down"]
