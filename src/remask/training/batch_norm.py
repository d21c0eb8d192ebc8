"""Batch norm whose statistics are those of the whole batch, over all processes, on GPUs and on CPUs.

torch's and timm's synchronised layers have kernels for GPUs alone; on a CPU the same is computed by plain operations.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from remask.training.gathering import total


def synchronised(model: nn.Module) -> nn.Module:
    """The model, every batch norm in it exchanged for one over all processes; parameters and buffers stay."""
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    if not layers:
        return model
    if next(model.parameters()).device.type != "cpu":
        from timm.layers import convert_sync_batchnorm  # torch's own would lose the activation in timm's layers

        return convert_sync_batchnorm(model)
    for layer in layers:
        layer.__class__ = _activated() if hasattr(layer, "act") else GlobalBatchNorm
    return model


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over all processes, for inputs [B, C, ...] with any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        x, axes = input.float(), [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        sums = total(torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = x - mean.view(shape)
        variance = total(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count.detach() / (count.detach() - 1))
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


@cache
def _activated() -> type[Any]:
    """timm's layer, in which an activation follows the norm."""
    from timm.layers import BatchNormAct2d

    class GlobalBatchNormAct(BatchNormAct2d):  # type: ignore[misc]  # timm has no types
        """Norm, dropout, activation."""

        _remember = GlobalBatchNorm._remember

        def forward(self, x: Tensor) -> Any:
            return self.act(self.drop(GlobalBatchNorm.forward(self, x)))

    return GlobalBatchNormAct


__all__ = ["GlobalBatchNorm", "synchronised"]
