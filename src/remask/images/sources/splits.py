"""The names that people give to the splits of a set, for every kind of source: folders, shards, tables, lists."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

KINDS: Mapping[str, str] = {
    "train": "train", "training": "train", "trainval": "trainval",
    "val": "val", "valid": "val", "validation": "val", "minival": "val",
    "dev": "val", "devel": "val", "development": "val", "eval": "val", "evaluation": "val",
    "test": "test", "testing": "test", "holdout": "test",
}  # fmt: skip
"""Words for splits, and what each is for."""

_WORDS = "|".join(sorted(KINDS, key=len, reverse=True))
_AFTER = r"(?=$|[-_.\s\d]|sets?(?![a-z])|data(?![a-z])|splits?(?![a-z])|images?(?![a-z])|imgs?(?![a-z]))"
_SPLIT = re.compile(rf"(?:^|[-_.\s])({_WORDS}){_AFTER}", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """The word for a split in a file or folder name, in lower case: "train" of "train2017", "val" of "my-Val_set"."""
    match = _SPLIT.search(name)
    return match[1].lower() if match else None


def kinds_of(names: Iterable[str]) -> set[str]:
    """The kinds of the splits among these names: train, trainval, val, test."""
    return {KINDS[word] for name in names if (word := split_of(name))}


def are_splits(names: Collection[str]) -> bool:
    """Whether folders are the splits of a set, and not its classes.

    They are if every name has a word for a split, or if several begin with words for different ones: train, test and
    extra. A single such name among others is a class, as "train" is one of vehicles.
    """
    begin = [name for name in names if (match := _SPLIT.search(name)) and match.start() == 0]
    if names and len(begin) == len(names):
        return True
    return len(kinds_of(begin)) > 1 or (len(kinds_of(names)) > 1 and all(map(split_of, names)))


def folders_below(paths: Iterable[str]) -> list[list[str]]:
    """Paths as lists of names, without the folders that all of them share."""
    folders = [os.path.abspath(path).split(os.sep) for path in paths]
    shared = shared_by([names[:-1] for names in folders])
    return [names[shared:] for names in folders]


def shared_by(folders: Sequence[list[str]]) -> int:
    """The number of leading names that all folders share."""
    if not folders:
        return 0
    low, high = min(folders), max(folders)  # in alphabetic order, all others share what these two do
    return next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def chosen(splits: Collection[str]) -> tuple[str, str]:
    """The name of the split to train on and of the one to test on."""
    order = sorted(splits)
    kinds = {name: KINDS.get(split_of(name.rpartition("/")[2]) or "", "") for name in order}

    def first(*wanted: str) -> list[str]:
        return [name for kind in wanted for name in order if kinds[name] == kind]

    train = next(iter([*first("train", "trainval"), *order]))
    others = [name for name in [*first("val", "test"), *order] if name != train]
    return train, next(iter(others), train)


__all__ = ["KINDS", "are_splits", "chosen", "folders_below", "kinds_of", "shared_by", "split_of"]
