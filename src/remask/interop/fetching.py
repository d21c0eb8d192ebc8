"""Weights that other libraries fetch: their errors become one line, and none are fetched where costs are counted."""

import importlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import torch

from remask.errors import UserError


def fetched(make: Callable[[], Any], spec: str, cure: str = "offline, give its weights as a file") -> Any:
    """The network that `make` builds with published weights; whatever it raises becomes a UserError of one line.

    cure   the advice in that line
    """
    try:
        with _quick_when_offline():
            return make()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{spec} could not be opened ({reason}); {cure}") from error


@contextmanager
def _quick_when_offline() -> Iterator[None]:
    """Set the hub's client to offline where there is no name server: it would retry for minutes, and print each try."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True  # files that were fetched before are still found
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def package(name: str, spec: str) -> Any:
    """An optional package. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{spec} needs the package {name}: pip install remask[teachers]") from error


def counting() -> bool:
    """Whether networks are built on the meta device, without memory, to count their costs."""
    return torch.get_default_device().type == "meta"


__all__ = ["counting", "fetched", "package"]
