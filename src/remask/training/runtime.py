"""The runtime of a training: device, precision, compilation, CUDA graphs, threads, processes.

Only this file, the trainer and the checkpoints use `distributed` (exchange of values) and `sharding` (DDP, FSDP).
"""

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from remask.errors import UserError
from remask.training.devices import cores, no_device
from remask.training.distributed import ALONE, World
from remask.training.sharding import Parallel, ShardingPlan, spread


@dataclass(frozen=True)
class Runtime:
    """The device, precision and compilation of a training, and its processes.

    dtype    of autocast; float32 turns it off
    graphs   record compiled passes as CUDA graphs, replayed in a single launch
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
        """Number of GPUs in use, over all machines; 0 on a CPU."""
        return self.world.size if self.device.type == "cuda" else 0

    def prepare(self, model: nn.Module, plan: ShardingPlan | None = None) -> nn.Module:
        """Move a model to the device, choose its attention kernel, compile and wrap it; returns the module to call.

        plan   for several processes. FSDP shards the weights: make the optimizer afterwards
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
        """Copy gradients between micro-batches: a CUDA graph overwrites its output buffers when it is replayed."""
        if self.graphs:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()

    def peak_memory_mb(self) -> float:
        """Peak memory so far in MiB: allocated by torch on a GPU, resident on a CPU."""
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
    """Peak resident memory of this process in MiB. Children inherit getrusage's number on Linux: not read there."""
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
    """The runtime, with "auto" resolved for this machine; sets torch's threads.

    world   the processes of the run; None for work in a single process
    Raises UserError for a device or CUDA graphs that are unavailable, or if several processes run work for one.
    """
    if world is None and not World.here().alone:
        raise UserError("this command runs in a single process: start it without torchrun")
    world = world or ALONE
    if threads:
        torch.set_num_threads(threads)
    chosen = _device(device) if world.alone else _device_of(device, world)
    if chosen.type == "cpu":
        keep_freed_memory()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(precision) or _fast_dtype(chosen)
    graphs, gpu = compile == "graphs", chosen.type == "cuda"
    if graphs and (not gpu or not world.alone):
        where = "several processes" if gpu else chosen.type
        raise UserError(f"CUDA graphs are for one process on a GPU, not for {where}: set runtime.compile auto")
    return Runtime(chosen, dtype, gpu if compile == "auto" else bool(compile), world, parallel, graphs)


def auto_workers(runtime: Runtime) -> int:
    """Number of loader processes: the free cores, at most 12, with a GPU; 0 on a CPU, whose cores train."""
    return min(max(cores() // runtime.world.locals - 1, 0), 12) if runtime.device.type == "cuda" else 0


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of returning it to the kernel after every operation.

    A step allocates the same sizes again and again; the page faults of fresh memory cost element-wise operations on a
    CPU up to five times the operation itself. Without glibc this does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**26)):  # mmap and trim thresholds, top pad
            libc.mallopt(option, value)


def _device(name: str) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in available if available[kind]))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise no_device(name) from None
    if not available.get(device.type, False):
        raise UserError(
            f"device {name} is not there: torch sees {' and '.join(k for k in available if available[k])}{_hidden()}; "
            "use --device auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA device(s), numbered from 0"
            f"{_hidden()}"
        )
    return device


def _hidden() -> str:
    """CUDA_VISIBLE_DEVICES for an error message, if set: when forgotten, it looks like a missing GPU."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if value is None else f" (CUDA_VISIBLE_DEVICES is {value!r})"


def _device_of(name: str, world: World) -> torch.device:
    """The device of this rank: cuda:LOCAL_RANK, or the CPU."""
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
    """bf16 if the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    probe: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


__all__ = ["Runtime", "auto_workers", "resolve"]
