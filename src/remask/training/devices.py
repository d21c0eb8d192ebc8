"""Names of devices, before torch is asked which of them are there."""

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


__all__ = ["KINDS", "check_device", "no_device"]
