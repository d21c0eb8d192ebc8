"""What `torchrun -m tests.e2e.together` does in each process, for test_processes: runs, one of which is killed."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from remask.cli import main as cli
from remask.errors import UserError
from remask.images.loading.loader import Loader
from remask.recipe import Recipe, choose
from remask.runs.session import train
from remask.training.distributed import joined, leave
from remask.training.trainer import Trainer

SETTINGS = [
    "data.image_size=16", "data.crop_scale=[0.5, 1.0]", "backbone.width=32", "backbone.depth=2", "backbone.heads=2",
    "method.decoder_width=32", "method.decoder_heads=2", "method.decoder_depth=2", "jd.width=32", "dm=on",
    "optim.batch_size=7", "optim.epochs=5", "optim.warmup_epochs=1", "optim.max_steps=20", "optim.clip=0.5",
    "optim.base_lr=0.05", "optim.precision=fp32", "runtime.log_every=1", "runtime.threads=1", "runtime.device=cpu",
    "runtime.tensorboard=false", "jd.target=average", "average.decay=[0.8, 1.0]", "uniformity.weight=0.5",
]  # fmt: skip
"""41 pictures in batches of 7: five steps an epoch, shares of 4 and 3, pictures left over. Of the three terms one
compares all pictures of a batch, those of the other process too."""


GUIDED = ("masking.pattern=loss", "masking.share=0.9")


def recipe(pictures: Path, *settings: str) -> Recipe:
    """A small DMJD with U-MAE, whose visible tokens learn from the student's moving average."""
    return choose("dmjd-vit-micro-cifar", {"data.source": str(pictures)}, settings=[*SETTINGS, *settings])


def recorded(loader: Loader, *where: int) -> Any:
    """Batches of an epoch, whose picture numbers are also written down, a file for each process."""
    for batch in EPOCH(loader, *where):
        if loader._shuffle:  # not those of the guard against collapse, which reads some images again in order
            SEEN.append((where[0], batch.index.tolist()))
        yield batch


EPOCH, SEEN = Loader.epoch, list[tuple[int, list[int]]]()


def equal(pictures: Path, folder: Path) -> None:
    """The same run in DDP, in FSDP, and begun in one and ended in the other."""
    Loader.epoch = recorded  # type: ignore[method-assign]
    with joined("cpu") as world:
        train(recipe(pictures), folder / "ddp", True, True, world)
        (folder / f"seen{world.rank}.json").write_text(json.dumps(SEEN))
        train(recipe(pictures, "runtime.parallel=fsdp", "runtime.accumulate=1"), folder / "fsdp", True, True, world)
        begun = recipe(pictures, "runtime.parallel=fsdp", "optim.max_steps=12", "runtime.keep_every_epochs=2")
        train(begun, folder / "begun", True, True, world)
        train(recipe(pictures, "optim.max_steps=7"), folder / "changed", True, True, world)
        train(recipe(pictures, "runtime.parallel=fsdp"), folder / "changed", True, False, world)
        train(recipe(pictures, *GUIDED), folder / "guided", True, True, world)
        try:
            train(recipe(pictures, *GUIDED, "runtime.parallel=fsdp"), folder / "refused", True, True, world)
        except UserError as error:
            (folder / f"refused{world.rank}.txt").write_text(str(error))
    leave(0)  # as the command line does


def killed(step: int) -> None:
    """The command line, in which the second process dies at a step the first time."""
    learn = Trainer.step

    def dying(self: Trainer, batch: Any) -> Any:
        if self.global_step == step and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(self, batch)

    Trainer.step = dying  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    if sys.argv[1] == "equal":
        equal(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        killed(int(os.environ["DIES_AT"]))
