"""Weights that other libraries fetch: what goes wrong there is one line; where costs are counted none are fetched."""

import importlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

import torch

from remask.errors import UserError


def fetched(make: Callable[[], Any], spec: str, cure: str = "offline, give its weights as a file") -> Any:
    """What a library makes of published weights; whatever it raises when they are out of reach becomes one line.

    cure   what to do then
    """
    try:
        with _quick_when_offline():
            return make()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{spec} could not be opened ({reason}); {cure}") from error


@contextmanager
def _quick_when_offline() -> Iterator[None]:
    """Without a name server the hub's client would try again for minutes, and say so each time: it is told before."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True  # what was fetched earlier is still found
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
    """Whether networks are made without memory, to count what they cost."""
    return torch.get_default_device().type == "meta"


__all__ = ["counting", "fetched", "package"]
