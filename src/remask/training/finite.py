"""Keeps numbers that are not finite from weights and checkpoints, without a device synchronisation in a step."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer


class Skipped(NamedTuple):
    """A step whose update was left out: its number, total loss (this process's share) and norm of all gradients."""

    step: int
    loss: float
    norm: float


class FiniteGuard:
    """Says on the device which updates to leave out: those of steps whose loss or gradient is not finite.

    limit   skipped steps in a row from which on every update is left out, until the host sees it; at least 1
    alone   False with several processes: they share gradients but not losses, and must skip the same steps, so the
            norm alone decides; `poisoned` lets it tell of a loss
    steps   all that were skipped, as of the last `read`
    in_row  how many of them end at the last step read
    """

    def __init__(self, limit: int = 1, alone: bool = True, steps: Iterable[int] = (), last: int = 0) -> None:
        self.limit, self.alone, self.steps = max(limit, 1), alone, sorted(map(int, steps))
        self.in_row = 0
        while self.in_row < self.limit - 1 and last - self.in_row in self.steps:
            self.in_row += 1
        self._count: Tensor | None = None  # `in_row`, on the device
        self._unread = list[tuple[int, Tensor]]()

    def check(self, step: int, total: Tensor, norm: Tensor) -> Tensor:
        """Whether to leave out the update of a step, bool []; from its total loss and the norm of all gradients."""
        total = total.detach().float()
        values = torch.stack([total, norm.detach().to(total)])
        bad = ~torch.isfinite(values.sum() if self.alone else values[1])
        if self._count is None:
            self._count = torch.full((), float(self.in_row), device=bad.device)
        skipped = bad | (self._count >= self.limit)
        self._count = (self._count + 1) * skipped
        self._unread.append((step, values))
        return skipped

    @property
    def halted(self) -> bool:
        """Whether `limit` steps in a row were skipped, as of the last `read`."""
        return self.in_row >= self.limit

    def read(self) -> list[Skipped]:
        """The steps skipped since the last time, not those after the guard halted. Synchronises."""
        unread, self._unread, found = self._unread, [], list[Skipped]()
        values = torch.stack([value for _, value in unread]).double().cpu() if unread else torch.empty(0, 2)
        bad = ~torch.isfinite(values.sum(1).float() if self.alone else values[:, 1])
        for (step, _), (loss, norm), is_bad in zip(unread, values.tolist(), bad.tolist(), strict=True):
            if self.halted:
                break
            self.in_row = self.in_row + 1 if is_bad else 0
            found += [Skipped(step, loss, norm)] * is_bad
        self.steps += [skipped.step for skipped in found]
        return found


def poisoned(total: Tensor, weight: float) -> Tensor:
    """The gradient with which the backward pass of a loss begins: `weight`, and NaN for a loss that is not finite.

    Its gradients are then NaN in all processes, which share them.
    """
    return torch.where(torch.isfinite(total.detach()), weight, torch.nan).to(total.dtype)


def update(optimizer: Optimizer, skipped: Tensor) -> None:
    """`optimizer.step()`, unless the step is `skipped`: weights, moments and counters then stay.

    Fused optimizers read the flag on the device (`found_inf`, which gradient scaling introduced). Others, and those of
    sharded weights (FSDP), do not: the host reads it, and waits for the device.
    """
    sharded = isinstance(optimizer.param_groups[0]["params"][0], DTensor)
    if optimizer.defaults.get("fused") and not sharded:
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not bool(skipped):
        optimizer.step()


class RunningMeans:
    """What BatchNorm layers in training mode count in a forward pass, as it was before; for a step that is skipped."""

    def __init__(self, model: nn.Module) -> None:
        layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
        self.before = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]

    def restore(self, skipped: Tensor) -> None:
        for buffer, before in self.before:
            buffer.copy_(torch.where(skipped, before, buffer))


def non_finite(model: nn.Module, optimizer: Optimizer) -> str | None:
    """The name of a weight, buffer or moment that is not finite, in this process's shards; None if all are.

    One pass over all that a checkpoint would hold. Synchronises once.
    """
    named = [*_named(model, optimizer)]
    groups: dict[Any, list[Tensor]] = {}
    for _, tensor in named:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    # the Euclidean norm is the fastest to compute; where its squares overflow, the exact test below decides
    norms = [torch.stack(torch._foreach_norm(group)).float().sum().cpu() for group in groups.values()]
    if all(torch.isfinite(torch.stack(norms)).tolist()) if norms else True:
        return None
    return next((name for name, tensor in named if not bool(torch.isfinite(tensor).all())), None)


def _named(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The numbers of a checkpoint that may be infinite, by name."""
    weights = model.state_dict()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments: Mapping[Any, Mapping[str, Any]] = optimizer.state
    everything = {
        **{f"the weights {name}": value for name, value in weights.items()},
        **{
            f"the moments of {names.get(id(parameter), 'a weight')} ({kind})": value
            for parameter, state in moments.items()
            for kind, value in state.items()
        },
    }
    for name, value in everything.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            data = value.detach()
            yield name, data.to_local() if isinstance(data, DTensor) else data


CURE = "lower optim.base_lr, set optim.clip or use fp32"

__all__ = ["CURE", "FiniteGuard", "RunningMeans", "Skipped", "non_finite", "poisoned", "update"]
