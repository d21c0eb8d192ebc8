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
Range = Annotated[
    str | None,
    typer.Option("--range", metavar="RULE", help="Black and white of deep pictures: auto, full, byte or LOW,HIGH."),
]

__all__ = ["Exclude", "Range"]
