"""Flags that several commands share, each written once."""

from typing import Annotated

import typer

Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        help="Leave out such names or paths; * and ? allowed; repeatable.",
    ),
]

__all__ = ["Exclude"]
