"""Where the line goes that says what a command found."""

from collections.abc import Callable

Say = Callable[[str], None]


def sayer(say: Say | None, quiet: bool) -> Say:
    """`say` where there is one; else the line is printed, or dropped where a script is to be quiet."""
    return say or ((lambda line: None) if quiet else print)


__all__ = ["Say", "sayer"]
