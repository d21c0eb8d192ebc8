"""The type checker of the tests: beartype on every call, with the protocols taken on trust.

A protocol with data members cannot be asked of a torch module: what a module holds is not found by the static look-up
that Python 3.12 uses, and without @runtime_checkable beartype refuses the annotation altogether.
"""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import BeartypeConf, FrozenDict, beartype

F = TypeVar("F", bound=Callable[..., Any])


def check(function: F) -> F:
    """`function`, whose arguments and result are checked on every call."""
    hints = getattr(function, "__annotations__", {}).values()
    trusted = {protocol: object for hint in hints for protocol in _protocols(hint)}
    conf = BeartypeConf(hint_overrides=FrozenDict(trusted), is_pep484_tower=True)  # an int is a float, as for mypy
    checked: F = beartype(conf=conf)(function)
    return checked


def _protocols(hint: object) -> set[type]:
    """The library's protocols that an annotation mentions, at any depth."""
    if getattr(hint, "_is_protocol", False) and getattr(hint, "__module__", "").startswith("remask"):
        return {hint}  # type: ignore[arg-type]
    if isinstance(hint, list | tuple):  # the arguments of a Callable
        return {protocol for inner in hint for protocol in _protocols(inner)}
    return {protocol for inner in get_args(hint) for protocol in _protocols(inner)}
