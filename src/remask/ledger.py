"""The cost ledger: what a run has consumed. ETE (effective training epochs, DMJD) counts views: K × epochs."""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Ledger:
    """Counts images, views, hours and waiting over all sessions of a run; saved with every checkpoint.

    dataset  images of one epoch     views  masked views per image     devices  GPUs at work, 0 on a CPU
    """

    dataset: int
    views_per_image: int
    devices: int
    gflops_forward_per_image: float
    images: int = 0
    hours: float = 0.0
    cpu_hours: float = 0.0
    wait_hours: float = 0.0
    _wall: float = field(default_factory=time.perf_counter, repr=False)
    _cpu: float = field(default_factory=lambda: _cpu_seconds(), repr=False)

    def add(self, images: int, waited: float) -> None:
        """Book a step: unique images seen and seconds waited for them."""
        self.images += images
        self.wait_hours += waited / 3600
        self._book()

    def pause(self) -> None:
        """What happens until `resume` (probing on the way) is not booked as training."""
        self._book()

    def resume(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def _book(self) -> None:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        self.hours += (wall - self._wall) / 3600
        self.cpu_hours += (cpu - self._cpu) / 3600
        self._wall, self._cpu = wall, cpu

    def cost(self, peak_memory_mb: float) -> dict[str, Any]:
        """The content of cost.json."""
        return {
            "images": self.images,
            "views": self.images * self.views_per_image,
            "ete": round(self.images * self.views_per_image / max(self.dataset, 1), 4),
            "gpu_hours": round(self.hours * self.devices, 6),
            "cpu_hours": round(self.cpu_hours, 6),
            "wall_hours": round(self.hours, 6),
            "gflops_forward_per_image": self.gflops_forward_per_image,
            "peak_memory_mb": round(peak_memory_mb, 1),
            "data_wait_share": round(self.wait_hours / self.hours, 4) if self.hours else 0.0,
        }

    def state(self) -> dict[str, float]:
        return {
            key: value for key, value in asdict(self).items() if key in ("images", "hours", "cpu_hours", "wait_hours")
        }

    def load(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)


def _cpu_seconds() -> float:
    """User and system time of this process and of its finished children."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def forward_gflops(forward: Callable[[], object]) -> float:
    """GFLOP of a call by PyTorch's flop counter (a multiply-add is 2); matrix products and attention, not norms."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return round(counter.get_total_flops() / 1e9, 4)


__all__ = ["Ledger", "forward_gflops"]
