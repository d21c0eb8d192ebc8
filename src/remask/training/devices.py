"""Checks of device names that need no torch, and the number of usable CPU cores."""

import os

from remask.errors import UserError

KINDS = (
    "auto", "cpu", "cuda", "mps",
    "fpga", "hip", "hpu", "ideep", "ipu", "lazy", "maia", "meta", "mkldnn", "mtia", "opencl", "opengl", "privateuseone",
    "ve", "vulkan", "xla", "xpu",
)  # fmt: skip
"""Our own "auto", and torch's kinds of devices; only torch knows which of them are available."""


def check_device(name: str | None) -> None:
    """Raise UserError for a name of an unknown kind; None (automatic choice) passes."""
    if name is not None and name.partition(":")[0] not in KINDS:
        raise no_device(name)


def no_device(name: str) -> UserError:
    """The error for an unknown device name."""
    return UserError(f"there is no device {name!r}; choose auto, cpu, cuda, cuda:N or mps")


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["KINDS", "check_device", "cores", "no_device"]
