"""Processes that start together agree on a name that no start before them had.

A store may outlive the processes of a run: torchrun's is kept when it starts them anew, with the addresses of those
that died. Its count of restarts does not tell one start from another: a machine that joins a run (--nnodes 1:2) begins
to count at 0, and the processes that are started anew because it came are not counted.
"""

import secrets
import time
from typing import Any

INTERVAL = 0.02
"""Seconds between two looks of rank 0 at who is there."""


def common_name(store: Any, rank: int, size: int) -> str:
    """The name of this start, the same in all `size` processes, which call this at about the same time.

    Each process says a word that was never said before; rank 0 answers every such word with its own, until all of
    this start have it. Raises the store's RuntimeError for a rank 0 that never answers.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"remask/word/{rank}", own)
        name = str(store.get(f"remask/answer/{own}").decode())
        store.add(f"remask/met/{name}", 1)
        return name
    answered = set[str]()
    while store.add(f"remask/met/{own}", 0) < size - 1:
        there = [f"remask/word/{other}" for other in range(1, size)]
        for word in {store.get(key).decode() for key in there if store.check([key])} - answered:
            store.set(f"remask/answer/{word}", own)
            answered.add(word)
        time.sleep(INTERVAL)
    return own


__all__ = ["common_name"]
