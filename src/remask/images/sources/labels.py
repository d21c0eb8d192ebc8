"""Classes by name: labels of any kind become numbers 0..C-1 with a name each, and those of two sources are matched.

Two names are one class where their text is equal (in Unicode's form NFC), or where both are whole numbers of one value:
a folder "010", a list's 10 or 10.0 and a .cls of 10 are one class. The order in which a source lists its classes means
nothing. Within one source every number is written in one way: 1 beside 01 may be meant as one class or as two.
"""

import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from remask.errors import UserError

WITHHELD = -1
"""The class number of an image whose label is not published, as in the test sets of ImageNet."""
_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?")
_SHOWN = 3
"""Classes that a message names."""


def integer_of(name: str) -> int | None:
    """The value of a name that is a whole number, however it is written; tables write 3.0 beside missing values."""
    return int(name.partition(".")[0]) if _INTEGER.fullmatch(name) else None


class TextLabels(NamedTuple):
    """Labels read from texts.

    labels    indices of `classes`, or without these the numbers that were written; None: there are none
    classes   names, sorted
    why       why there are no labels, for a message
    """

    labels: list[int] | None = None
    classes: list[str] | None = None
    why: str = ""


def of_texts(texts: Sequence[str]) -> TextLabels:
    """Classes that are written as texts: numbers by their value, or names in the order of the alphabet.

    There are none where an image has none (see `says_none`), and where numbers are measures such as 0.37.
    """
    if missing := sum(map(says_none, texts)):
        return TextLabels(why=lacking(missing, len(texts)))
    values = [integer_of(text) for text in texts]
    if all(value is not None for value in values):
        if len(set(values)) == len(set(texts)):
            return TextLabels(values)  # type: ignore[arg-type]
        classes = sorted(set(texts), key=lambda text: (integer_of(text), text))
    elif all(map(_NUMBER.fullmatch, texts)):
        return TextLabels(why=measures(next(text for text, value in zip(texts, values, strict=True) if value is None)))
    else:
        classes = sorted(set(texts))
    places = {text: place for place, text in enumerate(classes)}
    return TextLabels([places[text] for text in texts], classes)


def says_none(text: str) -> bool:
    """Whether a text in the place of a label says that there is none: empty, NaN, or -1."""
    return text in ("", "nan", "NaN", "NAN") or integer_of(text) == WITHHELD


def lacking(missing: int, total: int) -> str:
    """The message that labels are not used because some or all images have none."""
    return f"{missing:,} of {total:,} images have no label (missing, -1 or NaN)"


def measures(value: object) -> str:
    """The message that labels are not used because they are measures, such as `value`."""
    return f"its labels are measures such as {value}, and no classes"


def spelled_twice(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two names that are one number, as 01 and 1 are."""
    known_names: dict[int, str] = {}
    for name in names:
        if (value := integer_of(name)) is not None and (first := known_names.setdefault(value, name)) != name:
            return first, name
    return None


def numbered(values: Sequence[int] | Sequence[str]) -> tuple[list[int], list[str]]:
    """Labels that are numbers or names as class numbers 0..C-1, and the C classes in ascending order.

    A number stands for itself alone: 1234567890 is a class of that name, and says nothing about how many there are.
    """
    classes = sorted(set(values))  # type: ignore[type-var]  # all numbers or all names
    places = {value: place for place, value in enumerate(classes)}
    return [places[value] for value in values], [str(value) for value in classes]


def united(lists: Iterable[Sequence[str]]) -> tuple[list[str], list[list[int]]]:
    """The classes of several files together, and for each file the indices of its classes among them, by name.

    The first file's classes come first, in its order, then those that others add.
    """
    places: dict[str, int] = {}
    indices = [[places.setdefault(name, len(places)) for name in names] for names in lists]
    return list(places), indices


def repeated(names: Sequence[str]) -> str | None:
    """The first name that stands in the list twice."""
    known_names: set[str] = set()
    return next((name for name in names if name in known_names or known_names.add(name)), None)  # type: ignore[func-returns-value]


def match(names: Sequence[str], known: Sequence[str], used: Iterable[int], where: str, other: str) -> dict[int, int]:
    """{number in `names`: number in `known`} of each class that is used, and of all others that are known.

    used           numbers in `names` of the classes with images to test
    where, other   names of the two sources of classes, for messages
    Raises UserError for used classes that are not known, or not by one name only.
    """
    used = sorted(set(used))
    if list(names) == list(known):
        return {number: number for number in range(len(known))}
    tables = [(sense, _table(known, sense)) for sense in _SENSES]
    matches = {number: place for number, name in enumerate(names) if (place := _place(name, tables)) is not None}
    if unknown := [number for number in used if number not in matches]:
        raise UserError(_unknown([names[number] for number in unknown], known, where, other))
    first_of: dict[int, int] = {}
    for number in used:
        if (first := first_of.setdefault(matches[number], number)) != number:
            raise UserError(
                f"the classes {names[first]!r} and {names[number]!r} of {where} are both {known[matches[number]]!r} of "
                f"{other}: name them alike in both, or put them together"
            )
    return matches


def check_trained(names: Sequence[str], used: Iterable[int], trained: Iterable[int], where: str, other: str) -> None:
    """Raise UserError for classes of `where` that `other` names and has no image of. Numbers are those of `names`."""
    if empty := sorted(set(used) - set(trained)):
        few, has = _listed([names[number] for number in empty]), "has" if len(empty) == 1 else "have"
        raise UserError(
            f"class{'es' * (len(empty) > 1)} {few} of {where} {has} no training image in {other}: give some to train "
            "on, or leave the class out of the test"
        )


_Sense = Callable[[str], Hashable]
_SENSES: tuple[_Sense, ...] = (lambda name: name, lambda name: unicodedata.normalize("NFC", name), integer_of)
"""Functions under which two names may be equal, the strictest first."""


def _table(known: Sequence[str], sense: _Sense) -> dict[Hashable, list[int]]:
    table: dict[Hashable, list[int]] = {}
    for place, name in enumerate(known):
        table.setdefault(sense(name), []).append(place)
    return table


def _place(name: str, tables: Sequence[tuple[_Sense, dict[Hashable, list[int]]]]) -> int | None:
    """The index of a name in the tables; None where it is not there, or where several names match."""
    for sense, table in tables:
        key = sense(name)
        if key is not None and (places := table.get(key)):
            return places[0] if len(places) == 1 else None
    return None


def _unknown(unknown: Sequence[str], known: Sequence[str], where: str, other: str) -> str:
    many = len(unknown) > 1
    line = f"class{'es' * many} {_listed(unknown)} of {where} {'are' if many else 'is'} not among those of {other}"
    if similar := _near(unknown[0], known):
        return f"{line}, which has {_listed(similar)}: name the class alike in both"
    numbers = [all(integer_of(name) is not None for name in names) for names in (unknown, known)]
    if numbers[0] != numbers[1]:
        return f"{line} ({_listed(known)}): numbers cannot be matched with names; give both sources the same"
    return (
        f"{line} ({_listed(known)}): train on {'them' if many else 'it'} too, or leave {'them' if many else 'it'} out"
    )


def _near(name: str, known: Sequence[str]) -> list[str]:
    """Known names that differ in case, blanks, width or the like only, or that are the same number."""
    loose = _loosely(name)
    return [
        candidate
        for candidate in known
        if _loosely(candidate) == loose or (integer_of(name) is not None and integer_of(candidate) == integer_of(name))
    ]


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


__all__ = [
    "WITHHELD", "TextLabels", "check_trained", "integer_of", "lacking", "match", "measures", "numbered", "of_texts",
    "repeated", "says_none", "spelled_twice", "united",
]  # fmt: skip
