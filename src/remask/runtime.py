"""Where and how numbers are computed: device, precision, compilation, threads, seeds. No other file knows of them."""

import contextlib
import ctypes
import hashlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, nn

from remask.types import UserError


def generator(seed: int, *parts: int | str) -> Generator:
    """A CPU generator that is a pure function of its arguments: what is random in step s needs no saved state."""
    return Generator().manual_seed(derive(seed, *parts))


def derive(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from a seed and a path of names and numbers."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, *parts: int | str) -> Iterator[None]:
    """Give code that knows no generator (initialisation, drop path) a seed, and restore the global state after."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(seed, *parts))
        yield


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets `asked`, so that a step can end; a second one interrupts."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass(frozen=True)
class Runtime:
    """A device, the precision of autocast on it (float32 = none), and whether the step is compiled."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Move a model, choose its attention kernel, compile its forward where asked."""
        model.to(self.device)
        # bf16 attention on a CPU: plain matrix products are 4× faster backward than the fused kernel
        fused = not (self.device.type == "cpu" and self.dtype == torch.bfloat16)
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused  # type: ignore[assignment]
        if self.compiled:
            model.forward = torch.compile(model.forward)
        return model

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
        return (
            f"{self.device} ({name}), {str(self.dtype).removeprefix('torch.')}{', compiled' if self.compiled else ''}"
        )


def peak_resident_mb() -> float:
    """Most MB of memory that this process has held. Linux hands getrusage's number on to children: not read there."""
    import resource

    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resolve(device: str, precision: str, compile: bool | str = "auto", threads: int | None = None) -> Runtime:
    """Turn "auto" into what this machine has. Raises UserError for a device that is not there."""
    if threads:
        torch.set_num_threads(threads)
    found = _device(device)
    if found.type == "cpu":
        keep_freed_memory()
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(precision) or _fast_dtype(found)
    return Runtime(found, dtype, found.type == "cuda" if compile == "auto" else bool(compile))


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
        raise UserError(f"there is no device {name!r}; choose auto, cpu, cuda, cuda:N or mps") from None
    if not there.get(device.type, False):
        raise UserError(
            f"device {name} is not there: torch sees {' and '.join(k for k in there if there[k])}; use --device auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name} is not there: torch sees {torch.cuda.device_count()} CUDA device(s), numbered from 0"
        )
    return device


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it, else fp32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    probe: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


__all__ = ["Runtime", "StopRequest", "derive", "generator", "resolve", "seeded"]
