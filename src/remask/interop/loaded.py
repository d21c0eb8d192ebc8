"""What was taken out of other people's files, as a line for a person."""

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
    """What a network was given.

    spec       where it came from
    tensors    how many the network took
    entry      of the file, where it is not all of it
    said       what else there is to know of the choice
    left_out   names of tensors and other things that the file holds besides
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
        left = (f"left out: {groups(self.left_out)}",) if self.left_out else ()
        return f"{printable(self.spec)}: " + "; ".join((what, *self.said, *left))


def groups(names: Sequence[str]) -> str:
    """Names of tensors by what they belong to: "decoder (58 tensors), head (2 tensors), epoch"."""
    owners = Counter(re.sub(r"^decoder.*", "decoder", name.split(".")[0]) for name in names)
    return ", ".join(f"{owner} ({count} tensors)" if count > 1 else owner for owner, count in owners.items())


def remember(network: Any, loaded: Loaded | None) -> None:
    """Keep with a backbone or a target what it was given."""
    network.loaded = loaded


def loaded_of(network: object) -> Loaded | None:
    """What a backbone or a target was given, where that is known."""
    found = getattr(network, "loaded", None)
    return found if isinstance(found, Loaded) else None


def resized(state: Mapping[str, Tensor], before: Size, after: Size, patch: Size) -> tuple[str, ...]:
    """What to say where tables of positions were made for images of another size."""
    old, new = grid_of(before, patch), grid_of(after, patch)
    if old == new or not any(name.endswith((POSITIONS, BIASES)) for name in state):
        return ()
    return (f"positions resized from {old[0]}×{old[1]} to {new[0]}×{new[1]}",)


def stated(spec: str, setting: str, given: Any, written: Any) -> Any:
    """A setting of a network, given beside its specification or written behind it. UserError where the two differ."""
    if given is not None and written is not None and given != written:
        raise UserError(f"{spec} says {setting}={written}, and {setting} {given} was given besides: leave out one")
    return written if given is None else given


__all__ = ["Loaded", "groups", "loaded_of", "remember", "resized", "stated"]
