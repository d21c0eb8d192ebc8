"""Keeps non-finite losses and gradients from the weights, without a device synchronisation in every step."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from remask.errors import UserError


class FiniteGuard:
    """Makes an optimizer skip all updates from the first non-finite step on.

    The flag stays on the device, where the fused optimizers read it (`found_inf`, which gradient scaling introduced).
    `first` reads it on the host when a line is logged, which waits for the device anyway.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def check(self, step: int, losses: Mapping[str, Tensor], norm: Tensor, optimizer: Optimizer, alone: bool) -> None:
        """Check the total loss and the norm of all gradients of a step, before `optimizer.step`.

        alone   False with several processes: they share gradients but not losses, and must skip the same steps, so
                only the norm is checked
        Raises UserError at once if the optimizer does not read the flag: not fused, or with sharded weights (FSDP).
        """
        checked = norm + losses["total"] if alone else norm
        bad = ~torch.isfinite(checked.detach())
        if self._first is None:
            self._first = torch.full((), torch.inf, device=bad.device)
        self._first = torch.where(bad, self._first.clamp(max=float(step)), self._first)
        sharded = isinstance(optimizer.param_groups[0]["params"][0], DTensor)
        if sharded or not optimizer.defaults.get("fused"):
            if bool(bad):
                raise UserError(f"the gradient is {float(norm)} at step {step}: {CURE}")
        else:
            optimizer.found_inf = torch.isfinite(self._first).float()  # type: ignore[attr-defined]

    def first(self) -> int | None:
        """The first non-finite step, from which on updates were skipped; None if all were finite. Synchronises."""
        first = float("inf") if self._first is None else float(self._first)
        return None if first == float("inf") else int(first)


CURE = "lower optim.base_lr, set optim.clip or use fp32"

__all__ = ["CURE", "FiniteGuard"]
