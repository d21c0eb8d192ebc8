"""Names in figures: one line, printable, shortened, and drawn as they are written, never as mathematics."""

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


def legend(where: Any, handles: Sequence[Any], names: Sequence[str], **style: Any) -> None:
    """A legend of a figure or axes. matplotlib's own leaves out names that begin with an underscore."""
    made = where.legend(handles, [*map(str, range(len(names)))], **style)
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(on_one_line(name))


def as_written(figure: Any) -> None:
    """Let every text of a figure be drawn as it is written: between two $ matplotlib reads mathematics, or fails."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def png(figure: Any) -> bytes:
    """A matplotlib figure as a PNG, texts as written, without warnings for characters that the font lacks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    as_written(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


__all__ = ["SHORT", "as_written", "labels", "legend", "png", "shown"]
