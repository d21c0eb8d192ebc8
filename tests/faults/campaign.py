"""Injects faults in several processes at once, keeps every result in a file, and goes on where it was stopped."""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults import disks, endings, flips, power, surroundings
from tests.faults.injecting import Inject, Injection, Reference, Result, references
from tests.faults.launching import warm

RESULTS, PLAN = "results.jsonl", "planned.json"
SOURCE = Path(__file__).parents[2] / "src" / "remask"


class Fault(NamedTuple):
    """A kind of fault: how it is injected, how often, in a slice of it, and whose undisturbed run it needs."""

    inject: Inject
    count: int
    slice: int = 1
    subject: str = "pretrain"


FAULTS: dict[str, Fault] = {
    "SIGKILL at a random moment": Fault(endings.kill_at_a_moment, 60, 1),
    "SIGKILL at every operation of a run": Fault(endings.kill_at_an_operation, 0, 2),
    "SIGKILL of a resume, at its operations": Fault(endings.kill_of_a_resume, 40),
    "SIGKILL where a thread writes checkpoints": Fault(endings.kill_beside_the_steps, 40, 0),
    "SIGKILL of a fine-tuning, at its operations": Fault(endings.kill_of_finetuning, 40, 0, "finetune"),
    "SIGINT at operations of all stages": Fault(endings.interrupt, 40),
    "SIGTERM at operations of all stages": Fault(endings.terminate, 40),
    "SIGINT twice": Fault(endings.interrupt_twice, 20, 0),
    "disk full at an operation": Fault(disks.full, 80),
    "input/output error at an operation": Fault(disks.input_output, 60, 1),
    "read-only from an operation on": Fault(disks.read_only, 30, 0),
    "quota used up from an operation on": Fault(disks.quota, 20, 0),
    "power cut, all states of a pre-training": Fault(power.power_cut, 4, 0),
    "power cut, all states of a fine-tuning": Fault(power.power_cut_of_finetuning, 4, 0, "finetune"),
    "power cut, then gone on with to the end": Fault(power.power_cut_gone_on_with, 40),
    "bit flipped in a file of an interrupted run": Fault(flips.flip_midway, 96, 2),
    "bit flipped in a file of a finished run": Fault(flips.flip_finished, 96, 2),
    "pictures changed while the run was down": Fault(surroundings.source_changed, 6, 0),
    "two writers": Fault(surroundings.two_writers, 10),
    "loader process killed or stopped": Fault(surroundings.worker, 12, 0),
    "rank killed or stopped (torchrun, 2 processes)": Fault(surroundings.rank, 4, 0),
    "clock jumps": Fault(surroundings.clock, 6, 0),
}
"""All faults, by the names in the table. A count of 0 stands for every operation of the run."""


def jobs(names: Sequence[str], counts: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(fault, number, count) of all injections, so ordered that any beginning holds a share of each fault.

    A fault's own injections follow a fixed permutation, so that a beginning of them is spread as well.
    """
    ordered = []
    for name in names:
        count = counts[name]
        stride = next((s for s in (7919, 104729, 1) if count % s), 1)
        ordered += [((i + 0.5) / count, name, i * stride % count, count) for i in range(count)]
    return [(name, number, count) for _, name, number, count in sorted(ordered)]


def run(folder: Path, names: Sequence[str], *, small: bool, workers: int, seconds: float | None) -> list[Result]:
    """Inject all, or a slice, of these faults; returns all results, those of earlier calls among them.

    folder    keeps references, results, and the folders of injections that were not survived
    seconds   after which no more injections begin; None: until all is done
    """
    warm()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    done = begin(folder)
    wanted = [name for name in names if not small or FAULTS[name].slice]
    known = references(folder / "references", {FAULTS[name].subject for name in wanted})
    counts = {name: count_of(name, known, small=small) for name in wanted}
    plan = folder / PLAN
    plan.write_text(json.dumps({**planned(folder), **counts}))
    ahead = [job for job in jobs(wanted, counts) if job[:2] not in {(r.fault, r.number) for r in done}]
    if seconds is not None:
        seconds -= time.monotonic() - start
    for result in _injected(ahead, folder, known, workers, seconds):
        done.append(result)
        with open(folder / RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(result._asdict()) + "\n")
        if result.survived < result.injected:
            print(f"{result.fault} {result.number}: {result.place}: {result.why or 'it differs'}", flush=True)
    return done


def planned(folder: Path) -> dict[str, int]:
    """How many injections of each fault there are to be, of those that were begun."""
    return dict(json.loads((folder / PLAN).read_text())) if (folder / PLAN).exists() else {}


def begin(folder: Path) -> list[Result]:
    """The results that are there, if they are of this very source; else they are put aside."""
    file, stamp = folder / RESULTS, folder / "source"
    if file.exists() and stamp.exists() and stamp.read_text() == source_digest():
        return [Result(**json.loads(line)) for line in file.read_text().splitlines() if line.endswith("}")]
    if file.exists():
        file.rename(folder / f"earlier-{int(file.stat().st_mtime)}.jsonl")
    stamp.write_text(source_digest())
    return []


def source_digest() -> str:
    """Digest of the library and of the harness: results of another source say nothing about this one."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def count_of(name: str, known: Mapping[str, Reference], *, small: bool) -> int:
    """Injections of a fault."""
    fault = FAULTS[name]
    return fault.slice if small else fault.count or len(known[fault.subject].operations)


def _injected(
    ahead: Sequence[tuple[str, int, int]], folder: Path, known: dict[str, Reference], workers: int,
    seconds: float | None,
) -> Iterator[Result]:  # fmt: skip
    deadline = None if seconds is None else time.monotonic() + seconds
    inject = partial(_inject, folder=folder, known=known, deadline=deadline)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for result in pool.imap_unordered(inject, ahead):
            if result:
                yield result


def _inject(
    job: tuple[str, int, int], folder: Path, known: dict[str, Reference], deadline: float | None
) -> Result | None:
    """One injection, in a folder that goes if it was survived; None after the deadline."""
    name, number, count = job
    begun = time.monotonic()
    if deadline is not None and begun > deadline:
        return None
    place = folder / "injections" / f"{list(FAULTS).index(name):02d}-{number:04d}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    os.chdir(place)
    result = FAULTS[name].inject(Injection(name, number, count, place, known))
    result = result._replace(seconds=round(time.monotonic() - begun, 1))
    if result.survived == result.injected:
        shutil.rmtree(place, ignore_errors=True)
    return result


__all__ = ["FAULTS", "Fault", "begin", "count_of", "jobs", "planned", "run"]
