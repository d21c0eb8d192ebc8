"""Images that an evaluation cannot use: left out, named once, counted with its result."""

from collections.abc import Callable, Iterable, Iterator

from remask.errors import UserError
from remask.images.loading.loader import Batch, TooManyBad
from remask.images.sources.files import printable
from remask.images.sources.opening import Source


class UnusableImages:
    """A callback for the loader: it receives a line for each unusable image and says it once; `lines` are all lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.lines = say, list[str]()

    def __call__(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)
            self.say(f"skipped {line}")


def refuse_too_many(source: Source, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of an evaluation. Raises UserError where more images cannot be used than is allowed."""
    try:
        yield from batches
    except TooManyBad as error:
        first = "; ".join(f"{where}: {reason}" for where, reason in list(error.bad.items())[:3])
        raise UserError(
            f"{len(error.bad)} of {len(source)} pictures of {printable(source.name)} cannot be used, more than is "
            f"allowed ({first}): remask data check names them all; repair them, or leave them out with --exclude"
        ) from None


__all__ = ["UnusableImages", "refuse_too_many"]
