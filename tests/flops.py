"""FLOPs as exact numbers, for tests of what may be computed and what may not."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops_of(forward: Callable[[], object]) -> int:
    """Of matrix products and attention in a call without gradients."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return counter.get_total_flops()
