"""Where the line goes that says what a command found."""

from collections.abc import Callable

Say = Callable[[str], None]


def printer(say: Say | None, quiet: bool) -> Say:
    """`say` where there is one; else `print`, or what drops the line where `quiet`."""
    return say or ((lambda line: None) if quiet else print)


__all__ = ["Say", "printer"]
