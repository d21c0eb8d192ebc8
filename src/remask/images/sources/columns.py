"""Label columns of tables: which column holds the classes, and what its values mean, over several files of one set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remask.errors import UserError
from remask.images.sources.files import printable
from remask.images.sources.labels import WITHHELD, lacking, measures, numbered, repeated, says_none, united

USUAL = ("label", "labels", "fine_label", "class", "target", "cls")
"""Columns that are taken for classes where a file's metadata say nothing."""


SHOWN = 12
"""Columns that a message names."""


class LabelColumn(NamedTuple):
    """The labels of one file: values as they are stored, and the names of the numbers where the file gives them."""

    values: Sequence[Any]
    names: Sequence[str] | None
    where: str


def label_column(kinds: Mapping[str, str]) -> str | None:
    """The column of classes among {column: "ClassLabel", "integer", "text" or another type}, or None."""
    named = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    usual = [column for kind in ("integer", "text") for column in USUAL if kinds.get(column) == kind]
    return next(iter([*named, *usual]), None)


def joined(label_columns: Sequence[LabelColumn]) -> tuple[list[int] | None, list[str] | None]:
    """Class numbers 0..C-1 of all rows, and the C names; files that list their classes in another order are matched by
    name. Numbers without names are names themselves. (None, None) where a row has no label, or labels are withheld.

    Raises UserError for a number that has no name, a name twice, or files of numbers beside files with names.
    """
    if not label_columns or why_none(label_columns):
        return None, None
    named = [column for column in label_columns if column.names is not None]
    if not named:
        return _plain([value for column in label_columns for value in column.values])
    if bare := next(
        (column for column in label_columns if column.names is None and any(map(_is_number, column.values))), None
    ):
        raise UserError(
            f"{printable(bare.where)} numbers its classes without names, and {printable(named[0].where)} names them: "
            "write both with the same metadata"
        )
    lists = [
        [printable(name) for name in column.names]
        if column.names is not None
        else sorted(set(map(_text, column.values)))
        for column in label_columns
    ]
    for column, names in zip(label_columns, lists, strict=True):
        _check(column, names)
    classes, places = united(lists)
    labels = list[int]()
    for column, names, own in zip(label_columns, lists, places, strict=True):
        at = None if column.names is not None else dict(zip(names, own, strict=True))
        labels += [own[int(value)] if at is None else at[_text(value)] for value in column.values]
    return labels, classes


def _plain(values: Sequence[Any]) -> tuple[list[int] | None, list[str] | None]:
    """Labels of files without names."""
    if all(map(_is_number, values)):
        return numbered([int(value) for value in values])
    return numbered([_text(value) for value in values])


def _text(value: Any) -> str:
    return printable(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value))


def is_label(value: Any) -> bool:
    """Whether a row says its class: it is not empty, no NaN, and not withheld."""
    if isinstance(value, str | bytes):
        return not says_none(_text(value))
    return value is not None and value == value and value != WITHHELD


def why_none(label_columns: Sequence[LabelColumn]) -> str:
    """Why a column gives no classes, for a message: a row has none, or they are measures. Empty where it gives some."""
    values = [value for column in label_columns for value in column.values]
    if missing := sum(not is_label(value) for value in values):
        return lacking(missing, len(values))
    if (measure := next((v for v in values if isinstance(v, float) and not v.is_integer()), None)) is not None:
        return measures(measure)
    below = next((v for column in label_columns if column.names is not None for v in column.values if v < 0), None)
    return "" if below is None else f"its class number {below} is below 0 and has no name"


class Columns(NamedTuple):
    """The columns of a table that are read, and the others."""

    used: Sequence[str]
    unused: Sequence[str]

    def remarks(self) -> list[str]:
        """A line for the user where columns are not read: one may hold labels under a name that is not known here."""
        if not self.unused:
            return []
        shown = ", ".join(map(printable, self.unused[:SHOWN])) + (", …" if len(self.unused) > SHOWN else "")
        return [f"columns used: {', '.join(map(printable, self.used))}; not used: {shown}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(column: LabelColumn, names: Sequence[str]) -> None:
    if twice := repeated(names):
        raise UserError(f"{printable(column.where)} has two classes of the name {twice!r}: give each its own")
    if column.names is not None and (beyond := max(map(int, column.values), default=-1)) >= len(names):
        raise UserError(
            f"{printable(column.where)} has a row of class number {beyond} and names {len(names)} classes, of which "
            f"the last is number {len(names) - 1}: write it with all names"
        )


__all__ = ["USUAL", "Columns", "LabelColumn", "is_label", "joined", "label_column", "why_none"]
