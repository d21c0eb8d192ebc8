"""Writes a run's checkpoints beside its next steps: of large ones, a thread writes, hashes and syncs a copy."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from remask.training.checkpoint import Content, gather, write, write_sharded
from remask.training.distributed import World
from remask.training.run_folder import RunFolder

BACKGROUND = 10_000_000
"""Bytes of weights and moments from which on a checkpoint is written in a thread."""


class Saver:
    """Writes checkpoints of a run, one after the other. All processes call it; the one with `run.writes` writes.

    background   bytes from which on `save` returns when the content is copied, and a thread goes on
    sharded      the processes of which each writes its own piece, before `save` returns: a thread would exchange
                 values beside the steps, which do so too; None: whole tensors are gathered
    An error of the thread is raised by the next `check`, `save` or `wait`.
    """

    def __init__(self, run: RunFolder, background: int = BACKGROUND) -> None:
        self.run, self.background = run, background
        self.sharded: World | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, names: Sequence[str], model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
    ) -> None:
        """Write the same checkpoint under each name, in this order. Collective."""
        self.wait()
        if self.sharded:
            for name in names:
                write_sharded(self.run, name, model, optimizer, state, self.sharded)
            return
        content = gather(model, optimizer, state, self.run.writes)
        if content is None:
            return
        if _bytes(content) < self.background:
            self._write(names, content)
        else:
            copied = Content(_copied(content.weights), _copied(content.moments), content.state)
            self._thread = threading.Thread(target=self._write_noting, args=(names, copied), name="checkpoint")
            self._thread.start()

    def check(self) -> None:
        """Raise the error of a thread that has failed."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Return when the last checkpoint is on the disk; raises the error if it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if error := self._error:
            self._error = None
            raise error

    def _write(self, names: Sequence[str], content: Content) -> None:
        for name in names:
            write(self.run, name, content)

    def _write_noting(self, names: Sequence[str], content: Content) -> None:
        try:
            self._write(names, content)
        except BaseException as error:  # whatever it is, the main thread raises it
            self._error = error


def _bytes(content: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(content, Tensor):
        return content.nbytes
    inner = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return sum(map(_bytes, inner))


def _copied(content: Any) -> Any:
    """Nested containers with every tensor copied to the CPU."""
    if isinstance(content, Tensor):
        return _copy(content.detach())
    if isinstance(content, Mapping):
        return {key: _copied(value) for key, value in content.items()}
    return type(content)(map(_copied, content)) if isinstance(content, list | tuple) else content


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU by one thread: torch's threads would wait for one another at each of hundreds of small tensors."""
    if tensor.device.type != "cpu":
        return tensor.to("cpu")
    values = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().copy()
    return torch.from_numpy(values).view(tensor.dtype).reshape(tensor.shape)


__all__ = ["BACKGROUND", "Saver"]
