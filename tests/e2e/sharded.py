"""What `torchrun -m tests.e2e.sharded FOLDER` does in each process, for test_sharded: an FSDP run saves its pieces."""

import contextlib
import errno
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from remask.errors import UserError
from remask.files import records
from remask.runs.session import train
from remask.training import checkpoint, shards
from remask.training.distributed import World, joined, leave
from remask.training.trainer import Trainer
from tests.e2e.together import recipe

SETTINGS = (
    "runtime.parallel=fsdp", "runtime.state_dict_type=sharded", "runtime.keep_every_epochs=1", "optim.max_steps=12",
)  # fmt: skip


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def faults(world: World) -> dict[str, Any]:
    """What fails in a save, by name, as contexts for this process."""
    second, write = world.rank == 1, shards.write_shards

    def without_the_second(folder: Path, *given: Any) -> None:
        write(folder, *given)
        if second:
            next(folder.glob("shard-00002-*")).unlink()
        world.wait()

    fails = mock.patch.object(shards.HuggingFaceStorageWriter, "write_data", full)
    return {
        "a piece": fails if second else contextlib.nullcontext(),
        "its manifest": mock.patch.object(checkpoint, "write_manifest", full),
        "its new name": mock.patch.object(records, "_replace_folder", full),
        "another disk": mock.patch.object(shards, "write_shards", without_the_second),
    }


def tried(trainer: Trainer, world: World, said: Path) -> None:
    """Saves that fail: every process says so, and the older checkpoint stays."""
    for name, fault in faults(world).items():
        with fault:
            _save(trainer, {"step": 0}, world, said, name)


def _save(trainer: Trainer, state: dict[str, Any], world: World, said: Path, name: str) -> None:
    try:
        checkpoint.write_sharded(trainer.run, "last", trainer.model, trainer.optimizer, state, world)
        line = "saved"
    except (UserError, OSError) as error:
        line = str(error)
    with open(said, "a") as out:
        out.write(f"{name}: {line}\n")


def main(folder: Path) -> None:
    """Train, and before the end of the last step try saves that fail."""
    with joined("cpu") as world:
        step = Trainer.step

        def stepped(self: Trainer, batch: Any) -> Any:
            if self.global_step == 11:
                tried(self, world, folder / f"said{world.rank}.txt")
            return step(self, batch)

        Trainer.step = stepped  # type: ignore[method-assign]
        train(recipe(folder / "pictures", *SETTINGS), folder / "run", True, True, world)
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
