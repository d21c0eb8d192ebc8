"""Runs inputs in worker processes, which may crash, hang or take too much, and keeps what is found."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from remask.errors import UserError
from tests.fuzz.targets import TARGETS, made, seeds_of

FOUND = Path(__file__).parent / "found"
SECONDS, MEMORY = 2.0, 1 << 30
"""Seconds of the processor and bytes of memory beyond what the process had before that an input may take."""
WALL = 60.0
"""Seconds after which an input hangs."""
ROOM = 6 << 30
"""Bytes of addresses beyond those at the start, so that an input cannot take the machine's memory."""
CHUNK = 200
"""Inputs that a worker takes at a time."""
STEP = 2.0
"""Seconds between two looks for inputs that hang."""


@dataclass
class Result:
    """What became of inputs: how many were taken and refused, the most seconds and bytes, and the findings' numbers."""

    inputs: int = 0
    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    most: int = 0
    found: dict[str, list[int]] = field(default_factory=dict)

    def add(self, other: "Result") -> None:
        self.inputs += other.inputs
        self.taken += other.taken
        self.refused += other.refused
        self.slowest, self.most = max(self.slowest, other.slowest), max(self.most, other.most)
        for kind, numbers in other.found.items():
            self.found.setdefault(kind, []).extend(numbers)


def run_one(name: str, data: bytes, result: Result) -> str | None:
    """Read one input in this process, and count it. The kind of the finding; None where all is as it should be."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    before, begin = _reset_peak(), time.process_time()
    kind = None
    try:
        TARGETS[name].read(data, folder)
        result.taken += 1
    except UserError as error:
        result.refused += 1
        kind = "a line of several lines" if "\n" in str(error) else None
    except Exception as error:  # this is what is looked for
        kind = f"{type(error).__name__} {_place(error)}"
    finally:
        seconds, memory = time.process_time() - begin, _peak() - before
        shutil.rmtree(folder, ignore_errors=True)
    result.inputs += 1
    result.slowest, result.most = max(result.slowest, seconds), max(result.most, memory)
    if kind is None and seconds > SECONDS:
        kind = "more than 2 s"
    if kind is None and memory > MEMORY:
        kind = "more than 1 GB"
    return kind


def _place(error: BaseException) -> str:
    """The innermost line of ours in a traceback, and the function where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/remask/" in frame.filename] or frames
    return f"{Path(ours[-1].filename).stem}.{ours[-1].name}"


def _reset_peak() -> int:
    """Bytes of memory that the process has now, from which its peak is counted anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0


def worker(orders: Connection, progress: Any) -> None:
    """Take (target, first, last) from the pipe, and answer with a Result each; `progress` holds the input's number."""
    _prepare()
    seeds: dict[str, list[bytes]] = {}
    while True:
        try:
            name, first, last = orders.recv()
        except EOFError:
            return
        if name not in seeds:
            seeds[name] = seeds_of(name)
            _warm(name, seeds[name])
        result = Result()
        for number in range(first, last):
            progress[0], progress[1] = number, time.monotonic()
            if kind := run_one(name, made(name, number, seeds[name]), result):
                result.found.setdefault(kind, []).append(number)
        progress[1] = 0.0
        orders.send(result)


def _prepare() -> None:
    """Bounds on this process, and silence of the libraries."""
    import warnings

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libjpeg's and libtiff's own lines
    import torch

    torch.set_num_threads(1)
    room = _status("VmSize") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _warm(name: str, seeds: list[bytes]) -> None:
    """The seeds as they are, so that imports and caches count for no input."""
    for data in seeds:
        run_one(name, data, Result())


class Worker:
    """A process, and the order that it works on."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.orders, theirs = context.Pipe()
        self.progress = context.Array("d", [0.0, 0.0], lock=False)
        self.order: tuple[str, int, int] | None = None
        self.process = context.Process(target=worker, args=(theirs, self.progress), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, order: tuple[str, int, int]) -> None:
        self.order = order
        self.progress[0], self.progress[1] = float(order[1]), 0.0
        self.orders.send(order)

    def hangs(self) -> bool:
        begun = self.progress[1]
        return begun > 0 and time.monotonic() - begun > WALL

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.orders.close()


def run(names: list[str], counts: dict[str, int], workers: int, done: dict[str, Any]) -> Iterator[tuple[str, Result]]:
    """Run inputs up to counts[name] of each target, those in `done` ({name: inputs}) left out; yield results."""
    orders = [
        (name, first, min(first + CHUNK, counts[name]))
        for name in names
        for first in range(done.get(name, 0), counts[name], CHUNK)
    ]
    orders.reverse()
    pool: list[Worker] = []
    try:
        while orders or any(one.order for one in pool):
            while orders and len(pool) < workers:
                pool.append(Worker())
            for one in pool:
                if one.order is None and orders:
                    one.give(orders.pop())
            wait([one.orders for one in pool if one.order], timeout=STEP)
            for one in [*pool]:
                if one.order is None:
                    continue
                name, _, last = one.order
                fault = None
                if one.orders.poll():
                    try:
                        yield name, one.orders.recv()
                        one.order = None
                        continue
                    except (EOFError, ConnectionError):
                        one.process.join(5)
                        fault = f"crash, exit {one.process.exitcode}"
                elif one.hangs():
                    fault = f"no end within {WALL:g} s"
                if fault:  # what came before it in its chunk is run again, for its result is lost
                    number, first = int(one.progress[0]), one.order[1]
                    one.end()
                    pool.remove(one)
                    if number > first:
                        orders.append((name, first, number))
                    if number + 1 < last:
                        orders.append((name, number + 1, last))
                    yield name, Result(inputs=1, found={fault: [number]})
    finally:
        for one in pool:
            one.end()


def keep(name: str, kind: str, number: int) -> Path:
    """The file in found/ of a finding, a short one for each kind."""
    data = made(name, number, seeds_of(name))
    short = hashlib.blake2b(f"{name} {kind}".encode(), digest_size=4).hexdigest()
    file = FOUND / name / f"{short}-{number}"
    if not any(file.parent.glob(f"{short}-*")) and len(data) <= 100_000:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return file


def replayed(names: list[str]) -> dict[str, list[str]]:
    """The inputs in found/ of these targets, in a process of their own: {target: what is found again}.

    One that crashes or hangs ends that process; those behind it are read in another.
    """
    again: dict[str, list[str]] = {}
    context = multiprocessing.get_context("fork")
    files = sorted(path for name in names for path in (FOUND / name).glob("*"))
    while files:
        outcomes, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_replay, args=([*files], theirs), daemon=True)
        process.start()
        theirs.close()
        whole = True
        while files and whole:
            file = files.pop(0)
            try:
                whole = outcomes.poll(WALL)
                kind = outcomes.recv() if whole else f"no end within {WALL:g} s"
            except EOFError:
                process.join(5)
                whole, kind = False, f"crash, exit {process.exitcode}"
            if kind is not None:
                again.setdefault(file.parent.name, []).append(f"{file.name}: {kind}")
        process.kill()
        process.join()
        outcomes.close()
    return again


def _replay(files: list[Path], outcomes: Connection) -> None:
    _prepare()
    warmed = set[str]()
    for file in files:
        name = file.parent.name
        if name not in warmed:
            warmed.add(name)
            _warm(name, seeds_of(name)[:1])
        outcomes.send(run_one(name, file.read_bytes(), Result()))


def state(file: Path, results: dict[str, Result]) -> None:
    """Write the results so far, from which an interrupted campaign goes on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tmp = file.with_suffix(".part")
    tmp.write_text(json.dumps({name: asdict(result) for name, result in results.items()}))
    os.replace(tmp, file)
