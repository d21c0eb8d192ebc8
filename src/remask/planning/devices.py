"""Data sheets: dense bf16 peaks without sparsity (fp16 where a device has no bf16), and memory as it is sold."""

import difflib
from typing import NamedTuple

from remask.errors import UserError


class Device(NamedTuple):
    """tflops: dense peak of matrix products, 10¹² FLOP/s     gigabytes: 10⁹ bytes of memory."""

    name: str
    tflops: float
    gigabytes: float

    @property
    def megabytes(self) -> float:
        """In MiB, as memory is counted everywhere else."""
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
"""Share of the peak that training is assumed to reach: an assumption, and printed as one."""


def is_this_machine(name: str) -> bool:
    """Whether a name means the machine at hand, and no data sheet."""
    return name.partition(":")[0] in ("auto", "cpu", "cuda", "mps")


def device(name: str) -> Device:
    """By name, in any case. Raises UserError for one that is not in the table."""
    if found := DEVICES.get(name.lower()):
        return found
    near = difflib.get_close_matches(name.lower(), DEVICES, n=1)
    raise UserError(
        f"no data sheet of {name!r}{f'; did you mean {near[0]}?' if near else ''}; known: {', '.join(DEVICES)}, "
        "and auto, cpu, cuda: the machine at hand"
    )


__all__ = ["DEVICES", "MFU", "Device", "device", "is_this_machine"]
