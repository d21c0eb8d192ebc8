"""What `torchrun -m tests.e2e.elastic` does in each process, for test_elastic: runs begun, stopped, gone on with.

Every process notes which pictures it trained on, so that a run is compared with an undisturbed one step by step.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from remask.cli import main as cli
from remask.runs.session import train
from remask.training.distributed import ALONE, World, joined, leave
from remask.training.launcher import count, place
from remask.training.trainer import Trainer
from tests.e2e.together import SETTINGS, recipe

CASES: dict[str, tuple[str, ...]] = {
    "plain": (), "fsdp": ("runtime.parallel=fsdp",), "unusable": (),
    "sharded": ("runtime.parallel=fsdp", "runtime.state_dict_type=sharded", "runtime.keep_every_epochs=1"),
}  # fmt: skip
"""Further settings of each run that `begin` begins; "unusable" has pictures that cannot be read."""
STOP = 7
"""Steps after which they are asked to stop: five are an epoch."""


def pictures(folder: Path, name: str) -> Path:
    return folder / ("unusable pictures" if name == "unusable" else "pictures")


@contextlib.contextmanager
def noted(file: Path, act: Callable[[Trainer], object] = lambda trainer: None) -> Iterator[None]:
    """Context in which every step appends (its number, this process's rank, its pictures) to a file, after `act`.

    A resume appends its step alone; all processes do so before one goes on.
    """
    step, begin = Trainer.step, Trainer.place

    def write(*line: Any) -> None:
        with open(file, "a") as out:
            out.write(json.dumps(line) + "\n")

    def noting(self: Trainer, batch: Any) -> Any:
        act(self)
        write(self.global_step, place().rank, batch.index.tolist())
        return step(self, batch)

    def placing(self: Trainer, state: Any) -> None:
        begin(self, state)
        write(self.global_step)

    Trainer.step, Trainer.place = noting, placing  # type: ignore[method-assign]
    try:
        yield
    finally:
        Trainer.step, Trainer.place = step, begin  # type: ignore[method-assign]


def pictures_of(file: Path) -> list[list[int]]:
    """The pictures of each step, in the order of the batch, as the processes that did it last had them."""
    steps = dict[int, dict[int, list[int]]]()
    for line in file.read_text().splitlines():
        number, *share = json.loads(line)
        if share:
            steps.setdefault(number, {})[share[0]] = share[1]
        else:
            steps = {step: shares for step, shares in steps.items() if step < number}
    return [[i for rank in sorted(steps[step]) for i in steps[step][rank]] for step in sorted(steps)]


def begin(folder: Path) -> None:
    """Begin each of CASES, in which the last process gets SIGTERM in the middle of an epoch."""

    def act(trainer: Trainer) -> None:
        if trainer.global_step == STOP and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with joined("cpu") as world:
        for name, settings in CASES.items():
            with noted(folder / f"{name}.jsonl", act), contextlib.suppress(KeyboardInterrupt):
                train(recipe(pictures(folder, name), *settings), folder / name, True, True, world)
    leave(0)


def go_on(folder: Path, names: list[str], world: World = ALONE) -> None:
    """Go on with runs of `begin`, to their end, in FOLDER/NAME-SIZE."""
    for name in names:
        run = f"{name}-{world.size}"
        with noted(folder / f"{run}.jsonl"):
            chosen = recipe(pictures(folder, name), *CASES.get(name, ()))
            train(chosen, folder / run, True, False, world)


def command(file: Path) -> None:
    """The command line. DIES_AT: the step at which rank 1 is killed, of the first start; STOPS_AT: SIGTERM at a later.

    SLOW: seconds that each step takes longer.
    """
    dies, stops = (int(os.environ.get(name, "-1")) for name in ("DIES_AT", "STOPS_AT"))
    restarts, slow = count("TORCHELASTIC_RESTART_COUNT"), float(os.environ.get("SLOW", "0"))

    def act(trainer: Trainer) -> None:
        time.sleep(slow)
        if trainer.global_step == dies and place().rank == 1 and not restarts:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.global_step == stops and restarts:
            os.kill(os.getpid(), signal.SIGTERM)

    with noted(file, act):
        cli.main()


def words(folder: Path, run: Path) -> list[str]:
    """A pre-training of `recipe` that saves after every step, as a command line."""
    settings = [word for value in (*SETTINGS, "runtime.save_every_minutes=0.0000001") for word in ("--set", value)]
    data = ["--recipe", "dmjd-vit-micro-cifar", "--data", str(folder / "pictures")]
    return ["pretrain", *data, "--out", str(run), *settings, "--quiet"]


if __name__ == "__main__":
    where = Path(sys.argv.pop(1))
    if sys.argv[1] == "begin":
        begin(where)
    elif sys.argv[1] == "go on":
        with joined("cpu") as found:
            go_on(where, sys.argv[2:], found)
        leave(0)
    else:
        command(where)
