"""Where and how numbers are computed: device, precision, compilation, threads, seeds. No other file knows of them.

How several processes do it together is in `processes` and `parallel`, which nothing but this file, the trainer's loop
and the checkpoints ask.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from remask.errors import UserError
from remask.training.devices import cores, no_device
from remask.training.distributed import ALONE, World
from remask.training.sharding import Parallel, ShardingPlan, spread


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `requested`: a step can end; a second one interrupts."""

    def __init__(self) -> None:
        self.requested = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@dataclass(frozen=True)
class Runtime:
    """A device, the precision of autocast on it (float32 = none), whether the step is compiled; who else is at work.

    graphs   compiled passes are recorded as CUDA graphs, and replayed in a single launch
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    world: World = ALONE
    parallel: Parallel = "ddp"
    graphs: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @property
    def gpus(self) -> int:
        """GPUs at work, over all machines."""
        return self.world.size if self.device.type == "cuda" else 0

    def prepare(self, model: nn.Module, plan: ShardingPlan | None = None) -> nn.Module:
        """Move a model, choose its attention kernel, compile its forward where asked; returns what to call for losses.

        plan   what many processes need to know of it. Weights may be cut into pieces: an optimizer is made afterwards
        """
        model.to(self.device)
        # bf16 attention on a CPU: plain matrix products are 4× faster backward than the fused kernel
        fused = not (self.device.type == "cpu" and self.dtype == torch.bfloat16)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused  # type: ignore[assignment]
        if not self.world.alone:
            return spread(model, plan or ShardingPlan(), self.world, self.parallel, self.compiled)
        if self.compiled:
            model.forward = torch.compile(model.forward, mode="reduce-overhead" if self.graphs else None)
        return model

    def keep_gradients(self, model: nn.Module) -> None:
        """Between the parts of a batch: what a graph has written is its own, and lost when it is replayed."""
        if self.graphs:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()

    def peak_memory_mb(self) -> float:
        """Most memory held so far: allocated on a GPU, resident on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return peak_resident_mb()

    def describe(self) -> str:
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        several = "" if self.world.alone else f"{self.world.size} processes ({self.parallel}), the first on "
        return (
            f"{several}{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}"
            f"{', compiled' if self.compiled else ''}{' into CUDA graphs' if self.graphs else ''}"
        )


def peak_resident_mb() -> float:
    """Most MB of memory that this process has held. Linux hands getrusage's number on to children: not read there."""
    import resource

    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resolve(
    device: str,
    precision: str,
    compile: bool | str = "auto",
    threads: int | None = None,
    world: World | None = None,
    parallel: Parallel = "ddp",
) -> Runtime:
    """Turn "auto" into what this machine has. Raises UserError for a device, or CUDA graphs, that are not there.

    world   the processes that work together; None for work that only one can do
    """
    if world is None and not World.here().alone:
        raise UserError("only pretrain and resume run in several processes: start this without torchrun")
    world = world or ALONE
    if threads:
        torch.set_num_threads(threads)
    found = _device(device) if world.alone else _device_of(device, world)
    if found.type == "cpu":
        keep_freed_memory()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(precision) or _fast_dtype(found)
    graphs, gpu = compile == "graphs", found.type == "cuda"
    if graphs and (not gpu or not world.alone):
        where = "several processes" if gpu else found.type
        raise UserError(f"CUDA graphs are for one process on a GPU, not for {where}: set runtime.compile auto")
    return Runtime(found, dtype, gpu if compile == "auto" else bool(compile), world, parallel, graphs)


def auto_workers(runtime: Runtime) -> int:
    """Loader processes: as many cores as can be spared on a GPU machine; on a CPU the cores have other work."""
    return min(max(cores() // runtime.world.locals - 1, 0), 12) if runtime.device.type == "cuda" else 0


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of returning it to the kernel after every operation.

    A step allocates the same sizes again and again; the page faults of fresh memory cost element-wise operations on a
    CPU up to five times the operation itself. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**26)):  # mmap and trim thresholds, top pad
            libc.mallopt(option, value)


def _device(name: str) -> torch.device:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in there if there[kind]))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise no_device(name) from None
    if not there.get(device.type, False):
        raise UserError(
            f"device {name} is not there: torch sees {' and '.join(k for k in there if there[k])}{_hidden()}; "
            "use --device auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA device(s), numbered from 0"
            f"{_hidden()}"
        )
    return device


def _hidden() -> str:
    """The variable that hides GPUs, where it is set: a forgotten one looks like a GPU that is not there."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if value is None else f" (CUDA_VISIBLE_DEVICES is {value!r})"


def _device_of(name: str, world: World) -> torch.device:
    """The device of one process of many: cuda:LOCAL_RANK, or the processor."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = _device(name)
    if device.type == "mps" or device.index is not None:
        raise UserError(f"device {name} is one, and there are {world.size} processes: choose auto, cuda or cpu")
    if device.type == "cpu":
        return device
    if world.locals > torch.cuda.device_count():
        raise UserError(
            f"{world.locals} processes were started here, and torch sees {torch.cuda.device_count()} CUDA device(s): "
            f"set --nproc-per-node {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(world.local)
    return torch.device("cuda", world.local)


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    probe: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


__all__ = ["Runtime", "StopRequest", "auto_workers", "resolve"]
