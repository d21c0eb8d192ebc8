"""What every fault shares: the undisturbed runs it is compared with, a folder for each injection, and its result."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults.interposing import Act, Interposer, Operation
from tests.faults.launching import Command, Ended, Prepare
from tests.faults.recorder import recording
from tests.faults.subjects import (
    Measured,
    Outcome,
    Subject,
    begun,
    finetuning,
    gone_on,
    measured,
    pretraining,
    recovered,
    well_ended,
)  # fmt: skip

MIDWAY = 14
"""Step at which the run is interrupted that resumes begin from."""


class Reference(NamedTuple):
    """An undisturbed run: what is compared, its operations, and the seconds it took.

    midway   a folder with the same run, interrupted at step MIDWAY
    """

    subject: Subject
    run: Path
    measured: Measured
    operations: list[Operation]
    seconds: float
    midway: Path


class Result(NamedTuple):
    """What became of one injection, or of `injected` ones that were tried together."""

    fault: str
    number: int
    place: str
    survived: int
    injected: int = 1
    lost: int = 0
    repeated: int = 0
    curve: int = 0
    why: str = ""
    seconds: float = 0.0


class Injection(NamedTuple):
    """One of a fault's injections, with a folder of its own. All that is random in it is drawn from `random`."""

    fault: str
    number: int
    count: int
    folder: Path
    references: dict[str, Reference]

    @property
    def random(self) -> random.Random:
        return random.Random(f"{self.fault} {self.number}")

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def operation(self, reference: Reference) -> Operation:
        """The operation at which it happens: the injections of a fault are spread over all of them."""
        operations = reference.operations
        return operations[self.number * len(operations) // self.count]

    def midway(self, reference: Reference) -> None:
        """Put the interrupted run into the folder, and what its steps have had."""
        shutil.copytree(reference.midway / "run", self.run)
        shutil.copy(reference.midway / "shown", self.folder / "shown")

    def result(self, place: str, fault: str, outcome: Outcome) -> Result:
        """How it ended. fault: what is wrong with how the commands ended, "" if nothing."""
        why = "; ".join(filter(None, (fault, *outcome.other)))
        survived = int(not fault and outcome.same)
        return Result(self.fault, self.number, place, survived, 1, outcome.lost, outcome.repeated, outcome.curve, why)

    def after(self, reference: Reference, place: str, ended: Ended, *codes: int) -> Result:
        """The result after a command that should have ended with one of these codes: the run is gone on with."""
        fault = well_ended(ended, *codes)
        again, outcome = recovered(reference.subject, self.run, reference.measured)
        return self.result(place, "; ".join(filter(None, (fault, again and f"then {again}"))), outcome)


Inject = Callable[[Injection], Result]


def described(operation: Operation) -> str:
    """An operation in words, without what is random in its name."""
    return f"{operation.stage}: {operation.kind} {operation.name}".strip()


def at(number: int, act: Callable[[Operation], None], root: Path, *, lasting: bool = False) -> Prepare:
    """Interposes a process so that `act` is called at operation `number`, and at all later ones if `lasting`."""

    def acts(operation: Operation) -> None:
        if operation.number == number or (lasting and operation.number > number):
            act(operation)

    return lambda: Interposer(root, acts).install()


def sending(number: int, times: int = 1) -> Callable[[Operation], None]:
    """Sends a signal to the process itself."""

    def act(_: Operation) -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return act


def undisturbed(subject: Subject, folder: Path) -> Reference:
    """Run it without a fault: alone, to number its operations, to record them; and interrupt it once."""
    shutil.rmtree(folder, ignore_errors=True)
    operations = folder / "operations"
    for name in ("plain", "numbered", "midway", "recorded"):
        (folder / name).mkdir(parents=True)
    start = time.monotonic()
    _succeed(begun(subject, folder / "plain" / "run"))
    seconds = time.monotonic() - start

    def note(operation: Operation) -> None:
        with os.fdopen(os.open(operations, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as file:
            file.write(json.dumps(operation) + "\n")

    _succeed(begun(subject, folder / "numbered" / "run", _installed(folder / "numbered" / "run", note)))
    listed = [Operation(*json.loads(line)) for line in operations.read_text().splitlines()]
    steps = [operation.number for operation in listed if operation.stage == "training" and operation.kind == "stage"]
    _succeed(begun(subject, folder / "recorded" / "run", recording(folder / "recorded" / "run")))
    stop = at(steps[min(MIDWAY, len(steps) - 2) - 1], sending(signal.SIGTERM), folder / "midway" / "run")
    ended = begun(subject, folder / "midway" / "run", stop).wait()
    assert ended.code == 130, ended
    found = measured(folder / "plain" / "run", folder / "plain" / "shown")
    again = measured(folder / "numbered" / "run", folder / "numbered" / "shown")
    assert found == again, "two undisturbed runs differ"
    return Reference(subject, folder / "plain" / "run", found, listed, seconds, folder / "midway")


def _installed(root: Path, act: Act) -> Prepare:
    return lambda: Interposer(root, act).install()


def _succeed(command: Command) -> None:
    ended = command.wait()
    assert ended.code == 0, ended


def references(folder: Path, names: set[str]) -> dict[str, Reference]:
    """The undisturbed runs that faults need, by name."""
    found = {"pretrain": undisturbed(pretraining(), folder / "pretrain")}
    if "finetune" in names:
        found["finetune"] = undisturbed(finetuning(found["pretrain"].run), folder / "finetune")
    return found


__all__ = [
    "MIDWAY", "Inject", "Injection", "Reference", "Result", "at", "begun", "described", "gone_on", "references",
    "sending",
]  # fmt: skip
