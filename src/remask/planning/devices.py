"""Data sheets of GPUs: peak of dense bf16 products without sparsity (fp16 if there is no bf16), nominal memory."""

import difflib
from typing import NamedTuple

from remask.errors import UserError


class Device(NamedTuple):
    """tflops: dense peak of matrix products, 10¹² FLOP/s     gigabytes: memory in 10⁹ bytes."""

    name: str
    tflops: float
    gigabytes: float

    @property
    def megabytes(self) -> float:
        """Memory in MiB, the unit of all other modules."""
        return self.gigabytes * 1e9 / 2**20


DEVICES = {
    entry.name: entry
    for entry in (
        Device("h200", 989.5, 141),
        Device("h100", 989.5, 80),
        Device("a100", 312, 80),
        Device("a100-40", 312, 40),
        Device("a6000", 154.8, 48),
        Device("l40s", 362, 48),
        Device("rtx4090", 165.2, 24),
        Device("v100", 125, 32),
    )
}

MFU = 0.35
"""Assumed share of the peak that training reaches (model FLOPs utilisation); printed as an assumption."""


def is_this_machine(name: str) -> bool:
    """Whether a name means a device of this machine, not a data sheet."""
    return name.partition(":")[0] in ("auto", "cpu", "cuda", "mps")


def device(name: str) -> Device:
    """The data sheet by name, case-insensitive. Raises UserError for an unknown name."""
    if sheet := DEVICES.get(name.lower()):
        return sheet
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
    raise UserError(
        f"no data sheet of {name!r}{f'; did you mean {near[0]}?' if near else ''}; known: {', '.join(DEVICES)}, "
        "and auto, cpu, cuda: the machine at hand"
    )


__all__ = ["DEVICES", "MFU", "Device", "device", "is_this_machine"]
