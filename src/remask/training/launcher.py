"""Reads rank and number of processes from the environment variables of torchrun, or another launcher. Free of torch.

A launcher sets all of NEEDED. If only some are set, they are remnants of another shell or job: they are ignored, and
`left_over` describes them.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from remask.errors import UserError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that processes need to find each other."""

LOCAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""Rank and number of processes on one machine; torchrun sets them too."""


class Place(NamedTuple):
    """Rank and number of processes, over all machines and on this one."""

    rank: int = 0
    size: int = 1
    local: int = 0
    locals: int = 1


def place(environment: Mapping[str, str] | None = None) -> Place:
    """This process's place; Place() without a launcher. Raises UserError for inconsistent numbers."""
    variables = os.environ if environment is None else environment
    if not all(variables.get(name) for name in NEEDED):
        return Place()
    rank, size, local = (_number(variables, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    locals_, size = max(_number(variables, "LOCAL_WORLD_SIZE"), 1), max(size, 1)
    _number(variables, "MASTER_PORT")
    stated = bool(variables.get("LOCAL_WORLD_SIZE"))
    if not 0 <= rank < size or not 0 <= local <= rank or (stated and not local < locals_ <= size):
        raise UserError(
            f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local} of LOCAL_WORLD_SIZE={locals_} cannot be: start with "
            "torchrun, which sets them, or unset them"
        )
    return Place(rank, size, local, locals_)


def left_over(environment: Mapping[str, str] | None = None) -> str | None:
    """A sentence that names remnant variables of a launcher; None if there are none, or a launcher set all."""
    variables = os.environ if environment is None else environment
    names = [name for name in (*NEEDED, *LOCAL) if name in variables]
    missing = [name for name in NEEDED if not variables.get(name)]
    if not names or not missing:
        return None
    stated = ", ".join(f"{name}={variables[name]}" for name in names)
    return f"ignored {stated}: no launcher is there, which sets {', '.join(missing)} too; unset {' '.join(names)}"


def count(name: str, environment: Mapping[str, str] | None = None) -> int:
    """The number in a variable that torchrun sets; 0 if unset or empty. Raises UserError if it is no number."""
    return _number(os.environ if environment is None else environment, name)


def restarted() -> bool:
    """Whether torchrun restarted the processes, after one had died."""
    return count("TORCHELASTIC_RESTART_COUNT") > 0


def restart_patience() -> float:
    """Seconds in which processes that torchrun starts anew wait for those before them to end."""
    return 10.0 if restarted() else 0.0


def may_restart() -> bool:
    """Whether torchrun will restart the processes if one dies."""
    return count("TORCHELASTIC_MAX_RESTARTS") > 0


def _number(variables: Mapping[str, str], name: str) -> int:
    text = variables.get(name, "").strip()
    try:
        return int(text) if text else 0
    except ValueError:
        raise UserError(f"{name}={text} is no number: start with torchrun, which sets it, or unset {name}") from None


__all__ = ["LOCAL", "NEEDED", "Place", "count", "left_over", "may_restart", "place", "restart_patience", "restarted"]
