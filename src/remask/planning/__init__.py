"""What a recipe will cost, before anybody pays: counted on tensors without memory, or rehearsed on this machine.

devices.py   data sheets of common GPUs     anatomy.py    parameters, FLOPs and bytes, exact and on no device
rehearsal.py a few real steps in a process of their own, and a line through them     parts.py  accumulate = "auto"
"""

from remask.planning.anatomy import Anatomy, Held, anatomy, held
from remask.planning.devices import DEVICES, Device, device
from remask.planning.parts import settle
from remask.planning.rehearsal import Forecast, Rehearsed, forecast, rehearse

__all__ = [
    "DEVICES", "Anatomy", "Device", "Forecast", "Held", "Rehearsed", "anatomy", "device", "forecast", "held",
    "rehearse", "settle",
]  # fmt: skip
