"""The cost ledger of a run: images, hours, FLOPs. ETE (effective training epochs, DMJD) counts views: K × epochs."""

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from remask.training.distributed import ALONE, World


@dataclass
class Ledger:
    """Counts images, views, hours and waiting over all sessions of a run; saved with every checkpoint.

    dataset  images of one epoch     views_per_image  masked views     devices  GPUs in use, 0 on a CPU
    tokens_per_image   that the backbone reads, in all views
    ete_per_epoch      the views, unless an epoch costs as much as another number of them
    hours, cpu_hours, wait_hours   wall time, CPU time and wait for data of this process
    others_cpu_hours               CPU time of the other ranks, as of the last `meet`
    epochs_before, images_before   epochs done and images used before the data changed to another number of images
    """

    dataset: int
    views_per_image: int
    devices: int
    gflops_forward_per_image: float
    tokens_per_image: int = 0
    ete_per_epoch: int | None = None
    images: int = 0
    hours: float = 0.0
    cpu_hours: float = 0.0
    wait_hours: float = 0.0
    others_cpu_hours: float = 0.0
    epochs_before: float = 0.0
    images_before: int = 0
    _wall: float = field(default_factory=time.perf_counter, repr=False)
    _cpu: float = field(default_factory=lambda: _cpu_seconds(), repr=False)

    def add(self, images: int, waited: float) -> None:
        """Add a step: its unique images, over all processes, and the seconds this process waited for them."""
        self.images += images
        self.wait_hours += waited / 3600
        self._book()

    def pause(self) -> None:
        """Stop the clock until `resume`: time between them (e.g. probing) does not count as training."""
        self._book()

    def resume(self) -> None:
        self._wall, self._cpu = time.perf_counter(), _cpu_seconds()

    def _book(self) -> None:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        self.hours += (wall - self._wall) / 3600
        self.cpu_hours += (cpu - self._cpu) / 3600
        self._wall, self._cpu = wall, cpu

    def meet(self, world: World) -> None:
        """Update others_cpu_hours. Collective."""
        self.others_cpu_hours = world.sums({"cpu": self.cpu_hours})["cpu"] - self.cpu_hours

    def cost(self, peak_memory_mb: float) -> dict[str, Any]:
        """The content of cost.json, its keys as below; peak_memory_mb in MiB, data_wait_share of the wall time."""
        return {
            "images": self.images,
            "views": self.images * self.views_per_image,
            "tokens": self.images * self.tokens_per_image,
            "ete": round(self._ete(), 4),
            "gpu_hours": round(self.hours * self.devices, 6),
            "cpu_hours": round(self.cpu_hours + self.others_cpu_hours, 6),
            "wall_hours": round(self.hours, 6),
            "gflops_forward_per_image": self.gflops_forward_per_image,
            "peak_memory_mb": round(peak_memory_mb, 1),
            "data_wait_share": round(self.wait_hours / self.hours, 4) if self.hours else 0.0,
        }

    def _ete(self) -> float:
        epochs = self.epochs_before + (self.images - self.images_before) / max(self.dataset, 1)
        return epochs * (self.ete_per_epoch or self.views_per_image)

    def state(self) -> dict[str, float]:
        cpu_hours = self.cpu_hours + self.others_cpu_hours
        state = {"images": self.images, "hours": self.hours, "cpu_hours": cpu_hours, "wait_hours": self.wait_hours}
        before = {"epochs_before": self.epochs_before, "images_before": self.images_before}
        return state | (before if self.images_before else {})

    def load(self, state: dict[str, Any], main: bool = True, done: float | None = None) -> None:
        """Restore a saved `state`. Its CPU hours, summed over processes, count for the main process from now on.

        done   epochs done, set if the number of images per epoch differs from now on: ETE then counts them separately
        """
        for key, value in state.items():
            setattr(self, key, value)
        self.cpu_hours, self.others_cpu_hours = (self.cpu_hours, 0.0) if main else (0.0, self.cpu_hours)
        if done is not None:
            self.epochs_before, self.images_before = done, self.images


class Window:
    """Means over the steps since the last log line. Losses stay on the device until the window closes.

    With several processes each one adds its share of a loss; the sum over them is the loss of the global batch.
    skipped   steps among them that were skipped, whose losses were added as 0: means are over the others
    """

    def __init__(self) -> None:
        self.losses: dict[str, Tensor | float] = {}
        self.steps, self.images, self.waited, self.began = 0, 0, 0.0, time.perf_counter()
        self.skipped = list[int]()

    def add(self, losses: Mapping[str, Tensor], waited: float, images: int) -> None:
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss.double()
        self.steps, self.images, self.waited = self.steps + 1, self.images + images, self.waited + waited

    def close(self, world: World = ALONE) -> tuple[dict[str, float], float, float]:
        """(mean losses, images per second, share of the time spent waiting for data); then resets the window.

        No losses if all steps were skipped.
        Collective; the share is that of the process that waited longest.
        """
        sums = self._sums(world)
        seconds = time.perf_counter() - self.began
        taken = self.steps - len(self.skipped)
        mean = {name: total / taken for name, total in sums.items()} if taken > 0 else {}
        result = mean, self.images / seconds, min(world.highest(self.waited) / seconds, 1.0)
        self.__init__()  # type: ignore[misc]
        return result

    def state(self, world: World = ALONE) -> dict[str, Any]:
        state = {"losses": self._sums(world), "steps": self.steps}
        return state | ({"skipped": self.skipped} if self.skipped else {})

    def load(self, state: Mapping[str, Any], main: bool = True) -> None:
        self.losses, self.steps = (
            {name: loss if main else 0.0 for name, loss in state["losses"].items()},
            state["steps"],
        )
        self.skipped = [int(step) for step in state.get("skipped", [])]

    def _sums(self, world: World) -> dict[str, float]:
        return world.sums({name: float(loss) for name, loss in self.losses.items()})


def _cpu_seconds() -> float:
    """User and system time of this process and of its finished children."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def forward_gflops(forward: Callable[[], object]) -> float:
    """GFLOP of a call by PyTorch's flop counter (a multiply-add is 2); matrix products and attention, not norms."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()
    return round(counter.get_total_flops() / 1e9, 4)


__all__ = ["Ledger", "Window", "forward_gflops"]
