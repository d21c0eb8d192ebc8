"""Names of devices, before torch is asked which of them are there; and processors."""

import os

from remask.errors import UserError

KINDS = (
    "auto", "cpu", "cuda", "mps",
    "fpga", "hip", "hpu", "ideep", "ipu", "lazy", "maia", "meta", "mkldnn", "mtia", "opencl", "opengl", "privateuseone",
    "ve", "vulkan", "xla", "xpu",
)  # fmt: skip
"""Kinds that torch knows, after our own auto; whether one of them is there, torch alone can say."""


def check_device(name: str | None) -> None:
    """Raise UserError for the name of no device; nothing is wrong with None, which leaves the choice."""
    if name is not None and name.partition(":")[0] not in KINDS:
        raise no_device(name)


def no_device(name: str) -> UserError:
    """The error for a name that means no device."""
    return UserError(f"there is no device {name!r}; choose auto, cpu, cuda, cuda:N or mps")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["KINDS", "check_device", "cores", "no_device"]
