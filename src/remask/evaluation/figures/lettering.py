"""Users' names in figures: on one line, without odd characters, short enough. They are drawn with parse_math=False."""

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from remask.files.escaping import on_one_line

SHORT = 18
"""Characters of a class's name that a legend has room for."""


def shown(name: str, most: int = SHORT) -> str:
    """A name as it is drawn: its begin and its end where it is longer than `most` characters."""
    name = on_one_line(name)
    end = (most - 1) // 3
    return name if len(name) <= most else f"{name[: most - 1 - end]}…{name[-end:]}"


def labels(names: Sequence[str]) -> list[str]:
    """The names as `shown`, and their number behind those that look alike once they are short."""
    short = [shown(name) for name in names]
    count = Counter(short)
    return [text if count[text] == 1 else f"{text} ({number})" for number, text in enumerate(short)]


def png(figure: Any) -> bytes:
    """A figure as a PNG. Characters that the font lacks are boxes, without a warning for each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


__all__ = ["SHORT", "labels", "png", "shown"]
