"""Optimisation: parameter groups, the learning-rate rule (DMJD Eq. 4), the schedule, LARS for linear probes."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def learning_rate(base_lr: float, batch_size: int, gain: float = 1.0) -> float:
    """Peak learning rate for `batch_size` unique images; `gain` is the realised m_pred / m_corr, 1 in plain MAE.

    MAE's linear rule times the gain. K disjoint views predict more distinct tokens of an image, which makes the gain
    larger than 1; predicting a share γ < m_corr of one view makes it smaller (CrossMAE 2401.14391: γ / p).
    """
    return base_lr * batch_size * gain / 256  # DMJD Eq. (4)


def cosine(epoch: float, peak: float, warmup: float, epochs: float, floor: float = 0.0) -> float:
    """Linear warm-up from 0 over `warmup` epochs, then half a cosine down to `floor`; `epoch` may be fractional."""
    if epoch < warmup:
        return peak * epoch / warmup
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(epochs - warmup, 1e-12)))


def step_down(epoch: float, peak: float, warmup: float, drops: Sequence[float]) -> float:
    """Linear warm-up from 0, then the peak, divided by 10 at each epoch of `drops` (SimMIM, ViTDet)."""
    if epoch < warmup:
        return peak * epoch / warmup
    return peak / 10 ** sum(epoch >= drop for drop in drops)


def polynomial(epoch: float, peak: float, warmup: float, epochs: float, power: float, floor: float = 0.0) -> float:
    """Linear warm-up from 0, then (remaining share of epochs)^power down to `floor`; UperNet uses power 1."""
    if epoch < warmup:
        return peak * epoch / warmup
    remaining = max(0.0, 1 - (epoch - warmup) / max(epochs - warmup, 1e-12))
    return floor + (peak - floor) * remaining**power


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate, clipping, micro-batches, logging and saving of a training.

    lr   peak learning rate     clip   maximum gradient norm     accumulate   initial number of micro-batches
    """

    epochs: int
    steps_per_epoch: int
    lr: float
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    clip: float | None = None
    accumulate: int = 1
    max_steps: int | None = None
    log_every: int = 10
    save_minutes: float = 10.0
    keep_every_epochs: int | None = None
    drops: tuple[float, ...] = ()
    """Epochs at which the rate is divided by 10; it is constant between them. Empty: cosine decay."""
    until_epoch: int | None = None
    """Epoch at which another trainer takes over; None: this one runs to the end."""
    power: float | None = None
    """Polynomial decay of this power instead of the cosine."""
    shift: int = 0
    """Steps taken minus epochs done × steps_per_epoch; not 0 if steps_per_epoch changed during the run."""
    max_skipped: int = 3
    """Steps in a row, skipped because they are not finite, that stop the run; 0 and 1: the first."""

    @property
    def steps(self) -> int:
        return min(self.epochs * self.steps_per_epoch + self.shift, self.max_steps or 10**12)

    @property
    def last_step(self) -> int:
        """Number of steps after which this trainer stops."""
        return min(self.steps, (self.until_epoch or self.epochs) * self.steps_per_epoch + self.shift)

    def place(self, step: int) -> tuple[int, int]:
        """(Complete epochs before a step, steps before it in its epoch)."""
        return divmod(step - self.shift, self.steps_per_epoch)

    def epoch_at(self, step: int) -> float:
        """Epochs done after `step` steps, a fraction within an epoch."""
        return (step - self.shift) / self.steps_per_epoch

    def progress_at(self, step: int) -> float:
        """Share of the training that is done after `step` steps."""
        return self.epoch_at(step) / self.epochs

    def marks(self) -> dict[str, int]:
        """Entries of a checkpoint's state that `going_on` reads: {"steps_per_epoch", "shift"}."""
        return {"steps_per_epoch": self.steps_per_epoch, "shift": self.shift}

    def epochs_unlike(self, state: Mapping[str, Any]) -> float | None:
        """Epochs done at a checkpoint if its steps_per_epoch differed from this schedule's; else None."""
        return None if epoch_length(state) in (None, self.steps_per_epoch) else float(state["epoch"])

    def going_on(self, state: Mapping[str, Any]) -> "Schedule":
        """A copy that continues from a checkpoint's state, whose steps_per_epoch may have differed.

        Epoch and rate continue without a jump, except for rounding up to the next step of the new epochs.
        """
        step, shift, steps_before = state["step"], state.get("shift", 0), epoch_length(state)
        if steps_before in (None, self.steps_per_epoch):
            return replace(self, shift=shift)
        steps_done = -(
            -(step - shift) * self.steps_per_epoch // steps_before
        )  # rounded up: no step of an epoch is repeated
        return replace(self, shift=step - steps_done)

    def lr_at(self, step: int, begin: float = 0.0) -> float:
        """The rate at a step, of parameters whose warm-up begins at epoch `begin`; 0 before it."""
        epoch, epochs = self.epoch_at(step) - begin, self.epochs - begin
        if epoch < 0:
            return 0.0
        if self.drops:
            return step_down(epoch, self.lr, self.warmup_epochs, self.drops)
        if self.power is not None:
            return polynomial(epoch, self.lr, self.warmup_epochs, epochs, self.power, self.min_lr)
        return cosine(epoch, self.lr, self.warmup_epochs, epochs, self.min_lr)


def epoch_length(state: Mapping[str, Any]) -> int | None:
    """Steps per epoch when a checkpoint's state was written; None if unknown (state of step 0, earlier versions)."""
    if "steps_per_epoch" in state:
        return int(state["steps_per_epoch"])
    return round(state["step"] / state["epoch"]) if state["epoch"] else None  # written by earlier versions


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


class Averaged(nn.Module):
    """A model and the exponential moving average of its weights, updated after each step once `follow` is called.

    forward calls the model, not the average. The state dict holds both.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.average.requires_grad_(False)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the average after every step of the optimizer, but those that its `found_inf` skips."""

        def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            found_inf = getattr(optimizer, "found_inf", None)
            # the average waits for the device in any case, to know whether it is its first update
            if found_inf is None or not bool(found_inf):
                self.average.update_parameters(self.model)

        optimizer.register_step_post_hook(after)

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)


def set_lr(optimizer: torch.optim.Optimizer, lr: float | Callable[[float], float]) -> None:
    """Set the rate of every group to `lr` × its "lr_scale" (1 if absent).

    lr   of all, or a function of the epoch from which a group is trained: its "from_epoch", 0 if absent
    """
    for group in optimizer.param_groups:
        rate = lr(group.get("from_epoch", 0.0)) if callable(lr) else lr
        group["lr"] = rate * group.get("lr_scale", 1.0)


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


def clipped(model: nn.Module, clip: float | None) -> Tensor:
    """The norm of all gradients before clipping; clips them to the norm `clip` if there is one."""
    if clip:
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


__all__ = [
    "Averaged", "Lars", "Schedule", "adamw", "clipped", "cosine", "epoch_length", "learning_rate", "parameter_groups",
    "polynomial", "set_lr", "step_down",
]  # fmt: skip
