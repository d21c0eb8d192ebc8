"""Prepares names for figures: one line, printable, shortened. Draw them with parse_math=False."""

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from remask.files.escaping import on_one_line

SHORT = 18
"""Maximum number of characters of a class's name in a legend."""


def shown(name: str, most: int = SHORT) -> str:
    """A name on one line; if longer than `most` characters, its beginning and end with an ellipsis."""
    name = on_one_line(name)
    end = (most - 1) // 3
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"


def labels(names: Sequence[str]) -> list[str]:
    """The names by `shown`; names that become equal get their index appended."""
    short = [shown(name) for name in names]
    count = Counter(short)
    return [text if count[text] == 1 else f"{text} ({number})" for number, text in enumerate(short)]


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG, without warnings for characters that the font lacks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


__all__ = ["SHORT", "labels", "png", "shown"]
