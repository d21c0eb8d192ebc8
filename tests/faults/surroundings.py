"""What happens around a run: its pictures change, another process writes it, its helpers die or stop, clocks jump."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.injecting import Injection, Reference, Result, at, begun, gone_on, sending
from tests.faults.interposing import Operation
from tests.faults.launching import Command, children
from tests.faults.subjects import (
    PRETRAIN,
    Outcome,
    Subject,
    beside,
    compared,
    images_of,
    measured,
    recovered,
    settings,
    well_ended,
)  # fmt: skip

DAY = 86_400
JUMPS = (400 * DAY, -400 * DAY, 3600, -3600, 20 * 365 * DAY, -60)
"""Seconds by which the clock jumps."""


def step_of(reference: Reference, step: int) -> int:
    """Number of the operation with which a step begins, counted from 0."""
    steps = [op.number for op in reference.operations if op.kind == "stage" and op.stage == "training"]
    return steps[step]


def clock(injection: Injection) -> Result:
    """The clock jumps at a step."""
    reference = injection.references["pretrain"]
    seconds = JUMPS[injection.number % len(JUMPS)]
    step = injection.random.randrange(20)

    def jump(_: Operation) -> None:
        real = time.time
        time.time = lambda: real() + seconds

    ended = begun(reference.subject, injection.run, at(step_of(reference, step), jump, injection.run)).wait()
    outcome = compared(reference.subject, injection.run, beside(injection.run, "shown"), reference.measured)
    return injection.result(f"by {seconds} s at step {step}", well_ended(ended, 0), outcome)


def two_writers(injection: Injection) -> Result:
    """A second process goes on with the run while a first does; it is told who writes, or that nothing is left."""
    reference = injection.references["pretrain"]
    injection.midway(reference)
    first = gone_on(reference.subject, injection.run)
    delay = injection.number / injection.count * 0.7 * reference.seconds
    time.sleep(delay)
    second = Command(["resume", injection.run, "--quiet"], injection.folder / "said by the second")
    one, two = first.wait(), second.wait()
    told = ("is being written by process", "is finished")
    refused = [ended for ended in (one, two) if ended.code == 2 and any(text in ended.errors for text in told)]
    fault = "" if len(refused) == 1 and {one.code, two.code} == {0, 2} else f"{one} {two}"
    fault = fault or well_ended(refused[0], 2)
    outcome = compared(reference.subject, injection.run, beside(injection.run, "shown"), reference.measured)
    same_but_images = outcome._replace(lost=0, repeated=0, other=tuple(o for o in outcome.other if "order" not in o))
    return injection.result(f"{delay:.2f} s later", fault, same_but_images if refused == [one] else outcome)


WORKERS = ("runtime.workers=2", "data.keep=never")


def worker(injection: Injection) -> Result:
    """One of two loader processes is killed, in three ways, or stopped for good; then the run is gone on with."""
    reference = injection.references["pretrain"]
    number = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP)[injection.number % 4]
    subject = reference.subject.more(*WORKERS, "runtime.patience=2")
    step = injection.random.randrange(2, 20)

    def harm(_: Operation) -> None:
        for pid in children(os.getpid()):
            os.kill(pid, number)

    ended = begun(subject, injection.run, at(step_of(reference, step), harm, injection.run)).wait()
    undisturbed = reference._replace(subject=subject)
    return injection.after(undisturbed, f"{signal.Signals(number).name} at step {step}", ended, 2, 0)


def rank(injection: Injection) -> Result:
    """One of two processes of torchrun is killed or stopped; one process goes on with the run.

    Its losses are those of one process but for the order of sums.
    """
    reference = injection.references["pretrain"]
    number = (signal.SIGKILL, signal.SIGSTOP)[injection.number % 2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "remask"]
    words = [*PRETRAIN, "--out", str(injection.run), *settings("runtime.patience=10")]
    with open(injection.folder / "said", "w") as said:
        process = subprocess.Popen([*launch, *words], stderr=said, stdout=subprocess.DEVNULL, start_new_session=True)
    victim = 0
    try:
        _until(lambda: _lines(injection.run) > 2 + injection.number or process.poll() is not None, 120)
        victim = next(pid for pid in children(process.pid) if b"\0RANK=1\0" in _environment(pid))
        os.kill(victim, number)
        _until(lambda: _state(injection.run) != "running" or process.poll() is not None, 60)
        time.sleep(3)
    finally:
        for pid in {victim, *children(process.pid), process.pid} - {0}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    fault = "" if _state(injection.run) in ("failed", "interrupted") else f"state {_state(injection.run)}"
    ended = gone_on(reference.subject, injection.run).wait()
    return _beside_one_process(injection, reference, fault or well_ended(ended, 0), number)


def _beside_one_process(injection: Injection, reference: Reference, fault: str, number: signal.Signals) -> Result:
    outcome = compared(reference.subject, injection.run, beside(injection.run, "shown"), reference.measured)
    lines = [json.loads(line) for line in (injection.run / "metrics.jsonl").read_text().splitlines()]
    before = reference.measured.lines
    apart = [abs(one["loss/total"] / two["loss/total"] - 1) for one, two in zip(lines, before, strict=False)]
    if [line["step"] for line in lines] != [line["step"] for line in before]:
        fault = fault or f"steps {[line['step'] for line in lines]}"
    curve = sum(value > 1e-5 for value in apart)
    shown = images_of(beside(injection.run, "shown"))
    rest = {step: images for step, images in reference.measured.images.items() if step in shown}
    lost = sum(len({*rest[step]} - {*shown[step]}) for step in rest)
    kept = tuple(o for o in outcome.other if o == "cost" or "state" in o)
    place = f"{number.name}, losses within {max(apart):.0e} of one process"
    return injection.result(place, fault, Outcome(lost, 0, curve, kept))


def source_changed(injection: Injection) -> Result:
    """The pictures change while a run is down: a line says so, and put back as they were the run goes on."""
    reference, folder = injection.references["pretrain"], injection.folder
    kind = CHANGES[injection.number % len(CHANGES)]
    pictures = folder / "pictures"
    _draw(pictures)
    source = ["--data", str(pictures)]
    words = [word for word in PRETRAIN if word not in ("--data", "digits:train")]
    subject = Subject("pictures", [*words, *source], reference.subject.lasting)
    (folder / "plain").mkdir()
    plain = begun(subject, folder / "plain" / "run").wait()
    stop = at(step_of(reference, 10 + injection.number), sending(signal.SIGTERM), injection.run)
    ended = begun(subject, injection.run, stop).wait()
    shutil.copytree(pictures, folder / "copy")
    kind(pictures)
    told = gone_on(subject, injection.run).wait()
    fault = well_ended(plain, 0) or well_ended(ended, 130) or well_ended(told, 2)
    shutil.rmtree(pictures, ignore_errors=True)
    (folder / "copy").rename(pictures)
    again, outcome = recovered(subject, injection.run, measured(folder / "plain" / "run", folder / "plain" / "shown"))
    return injection.result(kind.__name__, fault or again, outcome)


def _draw(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def removed(folder: Path) -> None:
    (folder / "07.png").unlink()


def added(folder: Path) -> None:
    shutil.copy(folder / "07.png", folder / "071.png")


def renamed(folder: Path) -> None:
    (folder / "07.png").rename(folder / "99.png")


def other_content(folder: Path) -> None:
    (folder / "07.png").write_bytes((folder / "08.png").read_bytes() + b"\0")


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


CHANGES: tuple[Callable[[Path], None], ...] = (removed, added, renamed, other_content, emptied, gone)


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)


def _lines(run: Path) -> int:
    return (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0


def _state(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def _environment(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


__all__ = ["clock", "rank", "source_changed", "two_writers", "worker"]
