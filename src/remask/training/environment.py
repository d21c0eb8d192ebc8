"""Versions of packages and properties of the machine, for env.json and `remask doctor`."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def environment() -> dict[str, Any]:
    """The content of env.json, its keys as below; "cores" are torch's threads, "command" the arguments."""
    import torch

    names = ("remask", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "instructions": _instructions(),
        "cores": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: installed(name) for name in names},
        "command": sys.argv[1:],
    }


def installed(name: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_field(key: str) -> str:
    """Of the first processor in /proc/cpuinfo; empty where there is no such file or field."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return ""


def _instructions() -> str:
    """The processor's matrix and vector instructions, which decide its speed: the widest of each kind."""
    flags = set(_cpu_field("flags").split())
    vectors = next((name for name in ("avx512f", "avx2", "avx", "asimd") if name in flags), platform.machine())
    return ", ".join([vectors, *(name for name in ("avx512_bf16", "amx_bf16") if name in flags)])
