"""The one error a user ever sees; a module of its own, so that a mistake is answered before torch is imported."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from remask.files.escaping import on_one_line


class UserError(Exception):
    """A mistake that one line explains: what, where, and what to do. The command line prints it and exits with 2.

    Names that stand in it may hold anything: line ends, and bytes that are no UTF-8, are escaped.
    """

    def __init__(self, line: str) -> None:
        super().__init__(on_one_line(line))


GO_ON = "go on with: "
"""Stands in a note on an exception that says how a training goes on; the command line appends it to the line."""


class MachineError(UserError):
    """The machine failed, not the user: a process died or is stuck, memory ran out. A training goes on from its last
    checkpoint.
    """


_IN_RECIPE = ContextVar("whether mistakes are those of a recipe", default=False)


@contextmanager
def in_recipe() -> Iterator[None]:
    """What is built inside comes from a recipe: errors name its keys."""
    token = _IN_RECIPE.set(True)
    try:
        yield
    finally:
        _IN_RECIPE.reset(token)


def setting(key: str, argument: str) -> str:
    """How an error calls what should be changed: the key inside a recipe, the argument in a Python program."""
    return key if _IN_RECIPE.get() else argument


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name where it says nothing, as a bare `assert` does."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def naming(keys: Sequence[str]) -> Iterator[None]:
    """A UserError from inside that names none of these keys of a recipe begins with them."""
    try:
        yield
    except UserError as error:
        if not keys or any(key in str(error) for key in keys):
            raise
        raise UserError(f"{', '.join(keys)}: {error}") from error


__all__ = ["GO_ON", "MachineError", "UserError", "first_line", "in_recipe", "naming", "setting"]
