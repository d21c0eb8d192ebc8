"""The steps of `python -m benchmarks step` beside the others' once more, who now keep freed memory too; the same bars.

What is left is arithmetic and the optimizer, and with AdamW fused on both sides arithmetic alone: never below 1.
"""

from collections.abc import Iterator

from benchmarks.step import DMJD, mae
from benchmarks.step import dmjd as beside_textbook


def run() -> Iterator[dict[str, object]]:
    """All rows, as they are found."""
    yield from mae(alike=True)
    for case in DMJD:
        yield from beside_textbook(case, alike=True)
