"""What torchrun, or another launcher, says in the environment of each process: who it is, of how many. Free of torch.

A launcher sets all of NEEDED. Some of them alone are left over from a shell or a job that is gone: they are ignored,
and `left_over` says so.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from remask.errors import UserError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Without one of them processes cannot find each other."""

LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""The same on one machine; torchrun sets them too."""


class Place(NamedTuple):
    """A process among those of a run: its number of how many, over all machines and on its own."""

    rank: int = 0
    size: int = 1
    local: int = 0
    locals: int = 1


def place(environment: Mapping[str, str] | None = None) -> Place:
    """Who this process is; one alone where no launcher is there. Raises UserError for numbers that cannot be."""
    found = os.environ if environment is None else environment
    if not all(found.get(name) for name in NEEDED):
        return Place()
    rank, size, local = (_number(found, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    locals_, size = max(_number(found, "LOCAL_WORLD_SIZE"), 1), max(size, 1)
    _number(found, "MASTER_PORT")
    stated = bool(found.get("LOCAL_WORLD_SIZE"))
    if not 0 <= rank < size or not 0 <= local <= rank or (stated and not local < locals_ <= size):
        raise UserError(
            f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local} of LOCAL_WORLD_SIZE={locals_} cannot be: start with "
            "torchrun, which sets them, or unset them"
        )
    return Place(rank, size, local, locals_)


def left_over(environment: Mapping[str, str] | None = None) -> str | None:
    """The sentence about variables of a launcher that is not there; None where there are none, or it is."""
    found = os.environ if environment is None else environment
    names = [name for name in (*NEEDED, *LOCAL) if name in found]
    missing = [name for name in NEEDED if not found.get(name)]
    if not names or not missing:
        return None
    stated = ", ".join(f"{name}={found[name]}" for name in names)
    return f"ignored {stated}: no launcher is there, which sets {', '.join(missing)} too; unset {' '.join(names)}"


def count(name: str, environment: Mapping[str, str] | None = None) -> int:
    """A number that torchrun sets; 0 where it did not, or it is empty. Raises UserError where it is no number."""
    return _number(os.environ if environment is None else environment, name)


def restarted() -> bool:
    """Whether torchrun started the processes anew, after one of them had died."""
    return count("TORCHELASTIC_RESTART_COUNT") > 0


def may_restart() -> bool:
    """Whether torchrun would start them anew."""
    return count("TORCHELASTIC_MAX_RESTARTS") > 0


def _number(found: Mapping[str, str], name: str) -> int:
    text = found.get(name, "").strip()
    try:
        return int(text) if text else 0
    except ValueError:
        raise UserError(f"{name}={text} is no number: start with torchrun, which sets it, or unset {name}") from None


__all__ = ["LOCAL", "NEEDED", "Place", "count", "left_over", "may_restart", "place", "restarted"]
