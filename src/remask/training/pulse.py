"""Which of a run's processes died or is stuck: each tells the others, twice a second, that it lives.

A collective says no more than that a connection was closed, or that time ran out; and NCCL's ends the process.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

import torch.distributed as dist

from remask.errors import MachineError

BEAT = 0.5
"""Seconds between two signs of life."""

LISTEN = 4 * BEAT
"""Seconds within which a process that lives gives at least one."""


class Pulse:
    """The signs of life of rank `rank` of `size`, in a store that all ranks share.

    step       the last step that this process has done; gradients are exchanged in each, so that the others are within
               one of it
    patience   seconds of silence of another rank after which this process ends, where collectives cannot raise; 0:
               never
    """

    def __init__(self, store: Any, rank: int, size: int, patience: float = 0.0) -> None:
        self.step, self._store, self._rank, self._size, self._patience = 0, store, rank, size, patience
        self._over = threading.Event()
        self._beat(0)
        threading.Thread(target=self._live, name="remask-pulse", daemon=True).start()

    def end(self) -> None:
        """Give no more signs."""
        self._over.set()

    def silent(self, seconds: float = LISTEN) -> list[int]:
        """The other ranks that give no sign within `seconds`. Listens as long."""
        before = self._signs()
        time.sleep(seconds)
        now = self._signs()
        return [rank for rank, sign in now.items() if before.get(rank) == sign]

    def lost(self, error: BaseException) -> MachineError:
        """The error of this process, whose `error` came from an exchange with others."""
        try:
            silent = self.silent()
        except RuntimeError:  # the machine that hosts the store died
            return MachineError("the process that hosts the run's store (rank 0) died; see what its machine says")
        if not silent:
            return MachineError(
                f"another process of the run ended or did not answer after step {self.step}; see what it says above"
            )
        line = MachineError(self._line(silent))
        line.__notes__ = getattr(error, "__notes__", [])
        return line

    def _signs(self) -> dict[int, str]:
        others = [rank for rank in range(self._size) if rank != self._rank]
        return {rank: self._store.get(_key(rank)).decode() for rank in others if self._store.check([_key(rank)])}

    def _beat(self, number: int) -> None:
        self._store.set(_key(self._rank), str(number))

    def _live(self) -> None:
        number, heard, since = 0, dict[int, str](), dict[int, float]()
        try:
            while not self._over.wait(BEAT):
                number += 1
                self._beat(number)
                if self._patience and number % 10 == 0:
                    signs, now = self._signs(), time.monotonic()
                    since = {rank: since[rank] if heard.get(rank) == sign else now for rank, sign in signs.items()}
                    heard = signs
                    if late := [rank for rank, at in since.items() if now - at > self._patience]:
                        self._give_up(late)
        except RuntimeError:  # the store is gone: so is the run, and the main thread says so
            return

    def _give_up(self, silent: list[int]) -> None:
        print(f"remask: {self._line(silent)}; go on with: remask resume RUN", file=sys.stderr, flush=True)
        os._exit(2)

    def _line(self, silent: list[int]) -> str:
        ranks = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
        return (
            f"{ranks} of {self._size} processes died or stopped after step {self.step}: see what was said above, or "
            "what its machine's log says, and raise runtime.patience if it was only slow"
        )


def from_exchange(error: BaseException) -> bool:
    """Whether an error came from an exchange with another process, by gloo or NCCL, which died or did not answer."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text)


def ignore_sigterm() -> None:
    """torchrun sends SIGTERM when another process died; this one ends by itself, after it has said why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _key(rank: int) -> str:
    return f"remask/pulse/{rank}"


__all__ = ["Pulse", "from_exchange", "ignore_sigterm"]
