"""How much memory this process may still take: of the machine's, and of its container's."""

import contextlib
import shutil
from pathlib import Path

_LIMITS = ("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
"""Files with the limit and the usage of a control group, of version 2 and of version 1."""


def available_mb(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """MiB available: the kernel's MemAvailable or, if less, the rest of the control group's limit; inf if unknown."""
    limits = [float("inf")]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (proc / "meminfo").read_text().splitlines()
        limits.append(next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("MemAvailable")))
    for limit, used in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit, which version 2 writes as "max"
            limits.append((int((groups / limit).read_text()) - int((groups / used).read_text())) / 2**20)
    return max(min(limits), 0.0)


def half_of_memory_mb() -> int:
    """MiB for a cache: half of what is available, and at most 512 GiB."""
    return int(min(available_mb(), 2.0**20) / 2)


def shared_memory_left() -> int:
    """Free bytes of /dev/shm. Containers give little, and writing beyond it kills the process rather than raising."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 1 << 40  # no such file system: shared memory is ordinary memory here


__all__ = ["available_mb", "half_of_memory_mb", "shared_memory_left"]
