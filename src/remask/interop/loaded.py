"""The record of weights that were loaded from other people's files, and its line for the user."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from remask.backbones.tables import BIASES, POSITIONS
from remask.errors import UserError
from remask.files.escaping import printable
from remask.tokens import grid_of
from remask.types import Size


class Loaded(NamedTuple):
    """The weights that a network was given.

    spec       their specification
    tensors    how many the network took
    entry      of the file that holds them, where it is not the whole file
    said       further remarks in the line
    left_out   names of the other tensors and values in the file
    """

    spec: str
    tensors: int
    entry: str = ""
    said: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """mae:FILE: 28 tensors of its entry "model"; …; left out: decoder (30 tensors), head (2 tensors)."""
        what = f"{self.tensors} tensors" + (f" of {self.entry}" if self.entry not in ("", "it") else "")
        skipped = (f"left out: {groups(self.left_out)}",) if self.left_out else ()
        return f"{printable(self.spec)}: " + "; ".join((what, *self.said, *skipped))


def groups(names: Sequence[str]) -> str:
    """Names of tensors grouped by their first word: "decoder (58 tensors), head (2 tensors), epoch"."""
    owners = Counter(re.sub(r"^decoder.*", "decoder", name.split(".")[0]) for name in names)
    return ", ".join(f"{owner} ({count} tensors)" if count > 1 else owner for owner, count in owners.items())


def remember(network: Any, loaded: Loaded | None) -> None:
    """Store the record of its weights with a backbone or a target."""
    network.loaded = loaded


def loaded_of(network: object) -> Loaded | None:
    """The record of the weights of a backbone or a target; None where there is none."""
    loaded = getattr(network, "loaded", None)
    return loaded if isinstance(loaded, Loaded) else None


def resized(state: Mapping[str, Tensor], before: Size, after: Size, patch: Size) -> tuple[str, ...]:
    """A remark where tables of positions were resized, since they were made for images of another size; else none."""
    old, new = grid_of(before, patch), grid_of(after, patch)
    if old == new or not any(name.endswith((POSITIONS, BIASES)) for name in state):
        return ()
    return (f"positions resized from {old[0]}×{old[1]} to {new[0]}×{new[1]}",)


def stated(spec: str, setting: str, given: Any, written: Any) -> Any:
    """A setting of a network, given as an argument or written behind its specification. UserError where they differ."""
    if given is not None and written is not None and given != written:
        raise UserError(f"{spec} says {setting}={written}, and {setting} {given} was given besides: leave out one")
    return written if given is None else given


__all__ = ["Loaded", "groups", "loaded_of", "remember", "resized", "stated"]
