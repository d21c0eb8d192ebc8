"""A loss or gradient that is not finite must not reach the weights, and no step may wait for the device to see it."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from remask.errors import UserError


class FiniteGuard:
    """Lets an optimizer leave weights and moments as they are from the first step on that is not finite.

    The flag stays on the device, where the fused optimizers read it (`found_inf`, which gradient scaling introduced).
    `first` asks for it where the host waits for the device anyway, when a line is logged.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def check(self, step: int, losses: Mapping[str, Tensor], norm: Tensor, optimizer: Optimizer, alone: bool) -> None:
        """Look at the total loss and the norm of all gradients of a step, before `optimizer.step`.

        alone   False among many processes: their gradients are one and the same, their losses are not, and all have to
                leave the step out together
        Raises UserError at once for optimizers that read no flag: not fused, or of weights in pieces (FSDP).
        """
        checked = norm + losses["total"] if alone else norm
        bad = ~torch.isfinite(checked.detach())
        if self._first is None:
            self._first = torch.full((), torch.inf, device=bad.device)
        self._first = torch.where(bad, self._first.clamp(max=float(step)), self._first)
        pieces = isinstance(optimizer.param_groups[0]["params"][0], DTensor)
        if pieces or not optimizer.defaults.get("fused"):
            if bool(bad):
                raise UserError(f"the gradient is {float(norm)} at step {step}: {CURE}")
        else:
            optimizer.found_inf = torch.isfinite(self._first).float()  # type: ignore[attr-defined]

    def first(self) -> int | None:
        """The first step that was not finite and every step since was left out; None while all are finite. Waits."""
        first = float("inf") if self._first is None else float(self._first)
        return None if first == float("inf") else int(first)


CURE = "lower optim.base_lr, set optim.clip or use fp32"

__all__ = ["CURE", "FiniteGuard"]
