"""What a recipe builds, as one fingerprint: everything that a command hands to its trainer, value by value.

The commands' own code builds it and is stopped where training would begin. A recipe that is merely carried along is no
trace: of one that a function holds, only the keys count that the function's code reads.
"""

import dis
import hashlib
import types
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, type(None), Path, torch.device, torch.dtype, torch.Size, type)

CLOCKS = ("_wall", "_cpu")
"""Attributes that say when something was made."""


def fingerprint(*things: Any) -> str:
    """A digest of all that can be reached from some objects: equal for equal objects, in every process."""
    digest = hashlib.blake2b()
    _add(digest, things, "", {})
    return digest.hexdigest()


def _add(digest: Any, thing: Any, path: str, seen: dict[int, Any]) -> None:
    """A line for every value below `thing`."""
    if isinstance(thing, PLAIN):
        digest.update(f"{path}={thing!r}\n".encode())
        return
    if isinstance(thing, dict) and not thing:  # of which a module has more than ten, for hooks
        digest.update(f"{path}:{type(thing).__qualname__} empty\n".encode())
        return
    if not isinstance(thing, tuple | Tensor):  # which Python may or may not share
        if id(thing) in seen:
            digest.update(f"{path} again\n".encode())
            return
        seen[id(thing)] = thing  # kept alive, so that its id stays its own
    digest.update(f"{path}:{type(thing).__qualname__}\n".encode())
    for name, value in _inside(thing):
        _add(digest, value, f"{path}.{name}", seen)


def _inside(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Tensor):
        held = thing.detach().cpu().contiguous()
        content = "" if thing.device.type == "meta" else hashlib.sha1(held.reshape(-1).view(torch.uint8).numpy())
        yield "tensor", f"{tuple(thing.shape)} {thing.dtype} {thing.requires_grad} {content and content.hexdigest()}"
    elif isinstance(thing, BaseModel):
        return
    elif all(hasattr(thing, name) for name in ("read", "where", "__len__")):  # pictures
        ends = [thing.where(i) for i in (0, len(thing) - 1)] if len(thing) else []
        plain = {key: value for key, value in vars(thing).items() if isinstance(value, PLAIN)}
        yield "pictures", f"{len(thing)} {ends} {getattr(thing, 'classes', None)} {plain}"
        yield "first", thing.read(0) if len(thing) else None
    elif isinstance(thing, np.ndarray):
        yield "array", f"{thing.shape} {thing.dtype} {hashlib.sha1(thing.tobytes()).hexdigest()}"
    elif isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((str(i), value) for i, value in enumerate(sorted(thing, key=repr) if _loose(thing) else thing))
    elif isinstance(thing, types.FunctionType | types.MethodType):
        yield from _function(thing)
    elif isinstance(thing, partial):
        yield from (("func", thing.func), ("args", thing.args), ("keywords", thing.keywords))
    elif hasattr(thing, "__dict__"):
        yield from ((key, value) for key, value in vars(thing).items() if key not in CLOCKS)


def _loose(thing: Any) -> bool:
    return isinstance(thing, set | frozenset)


def _function(thing: Any) -> Iterator[tuple[str, Any]]:
    """The name of a function, what it is bound to, its defaults, and what it holds of the function around it."""
    if isinstance(thing, types.MethodType):
        yield "self", thing.__self__
        thing = thing.__func__
    yield "name", thing.__qualname__
    yield "defaults", thing.__defaults__
    read = _read(thing.__code__)
    for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
        yield name, Held(cell.cell_contents, read) if isinstance(cell.cell_contents, BaseModel) else cell.cell_contents


class Held:
    """A recipe in the hands of a function, as far as the function reads it."""

    def __init__(self, model: BaseModel, read: tuple[str, ...]) -> None:
        self.read = list(_values(model, read))


def _values(model: BaseModel, read: tuple[str, ...]) -> Iterator[str]:
    for key in type(model).model_fields:
        value = getattr(model, key)
        if key in read:
            yield from _values(value, read) if isinstance(value, BaseModel) else (f"{key}={value!r}",)


@cache
def _read(code: types.CodeType) -> tuple[str, ...]:
    """The attributes that a function's code reads, those of functions inside it too."""
    own = [step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_ATTR", "LOAD_METHOD")]
    inside = [name for constant in code.co_consts if isinstance(constant, types.CodeType) for name in _read(constant)]
    return (*own, *inside)
