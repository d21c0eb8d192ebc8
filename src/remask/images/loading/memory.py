"""How much memory this process may still take: of the machine's, and of its container's."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

_FILES = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}
"""Files with the limit and the usage of a control group, of each version."""


def available_mb(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """MiB available: the kernel's MemAvailable or, if less, the rest of a control group's limit; inf if unknown.

    The process's own group counts, and all groups that it lies in.
    """
    limits = [float("inf")]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (proc / "meminfo").read_text().splitlines()
        limits.append(next(int(line.split()[1]) / 2**10 for line in lines if line.startswith("MemAvailable")))
    for folder, version in _control_groups(proc, groups):
        limit, used = (folder / name for name in _FILES[version])
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit, which version 2 writes as "max"
            limits.append((int(limit.read_text()) - int(used.read_text())) / 2**20)
    return max(min(limits), 0.0)


def _control_groups(proc: Path, groups: Path) -> Iterator[tuple[Path, int]]:
    """(Folder, version) of each control group with a say in this process's memory, from its own up to the root.

    /proc/self/cgroup has a line "0::/a/b" for version 2 and "7:memory:/a/b" for version 1. In a container the path may
    be one of the host, which is not there: then the root's files are the container's.
    """
    own = {2: "/", 1: "/"}
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                own[2] = path
            elif "memory" in controllers.split(","):
                own[1] = path
    for version, root in ((2, groups), (1, groups / "memory")):
        inside = root / own[version].lstrip("/")
        for folder in (inside, *inside.parents):
            if not folder.is_relative_to(root):
                break
            yield folder, version


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
