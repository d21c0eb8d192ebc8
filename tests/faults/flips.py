"""Bits that flip in the files of a run: noticed, recovered from, or without effect on what is trained."""

import re
import shutil
from pathlib import Path

import numpy as np

from remask.files.manifest import damage
from tests.faults.injecting import Injection, Result, gone_on
from tests.faults.launching import Command
from tests.faults.subjects import beside, compared, well_ended

HARMLESS = {
    "report.html": "remask report writes it anew",
    "pictures/reconstruction.png": "remask reconstruct draws it anew",
    ".lock": "what it says is for people; the lock is the system's",
    "status.json": "only the state in it is read, and a state that is no word counts as not finished",
    "cost.json": "written anew from the checkpoint's state",
}
"""Files that nothing depends on, and why."""


def files_of(run: Path) -> list[str]:
    """The files of a run that hold something."""
    return sorted(str(file.relative_to(run)) for file in run.rglob("*") if file.is_file() and file.stat().st_size)


def flip_midway(injection: Injection) -> Result:
    """A random bit of a file of an interrupted run, which is then gone on with."""
    reference = injection.references["pretrain"]
    injection.midway(reference)
    names = files_of(injection.run)
    name = names[injection.number % len(names)]
    place = _flip(injection, injection.run / name)
    ended = gone_on(reference.subject, injection.run).wait()
    if ended.code == 2:  # detected, and nothing is lost: with the bit as it was the run goes on
        fault = well_ended(ended, 2)
        said = name.rpartition("/")[2] in ended.errors or name.split(".")[0] in ended.errors
        _unflip(injection.run / name, place)
        again = gone_on(reference.subject, injection.run).wait()
        fault = fault or well_ended(again, 0) or ("" if said else f"the file is not named: {ended.errors.strip()}")
        verdict = "detected"
    else:
        fault, named = well_ended(ended, 0), Path(name).name in ended.errors
        verdict = "recovered, said" if named else "no effect"
    outcome = compared(reference.subject, injection.run, beside(injection.run, "shown"), reference.measured)
    kept, _, _ = name.rpartition("/")
    if (
        verdict == "no effect" and "/epoch-" in name and damage(injection.run / kept)
    ):  # not used, and refused if it were
        unused = tuple(other for other in outcome.other if not name.endswith(other))
        verdict, outcome = "detected by verify, not needed", outcome._replace(other=unused)
    if verdict == "recovered, said" and not outcome.same and name in ("recipe.toml", "metrics.jsonl"):
        return injection.result(f"{name}, {place}: detected, gone on with", fault, outcome._replace(curve=0, other=()))
    return injection.result(f"{name}, {place}: {verdict}", fault, outcome)


def flip_finished(injection: Injection) -> Result:
    """A random bit of a file of a finished run, whose state `remask verify` then tells."""
    reference = injection.references["pretrain"]
    names = files_of(reference.run)
    name = names[injection.number % len(names)]
    shutil.copytree(reference.run, injection.run)
    place = _flip(injection, injection.run / name)
    ended = Command(["verify", injection.run], injection.folder / "said").wait()
    fault = well_ended(ended, 0, 2)
    if ended.code == 2:
        verdict = "detected"
        fault = fault or ("" if name.split("/")[0] in ended.errors else f"not named: {ended.errors.strip()}")
    else:
        verdict = HARMLESS.get(name, "")
        if name == "data.npz" and _arrays(injection.run / name) == _arrays(reference.run / name):
            verdict = "a field of the archive, its content is the same"
        fault = fault or ("" if verdict else "unnoticed")
    outcome = compared(reference.subject, reference.run, beside(reference.run, "shown"), reference.measured)
    return injection.result(f"{name}, {place}: {verdict}", fault, outcome)


def _arrays(file: Path) -> dict[str, list[object]]:
    with np.load(file) as archive:
        return {key: archive[key].tolist() for key in archive}


def _flip(injection: Injection, file: Path) -> str:
    """Flip a bit; returns where."""
    content = bytearray(file.read_bytes())
    bit = injection.random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"bit {bit}"


def _unflip(file: Path, place: str) -> None:
    (bit,) = map(int, re.findall(r"\d+", place))
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


__all__ = ["HARMLESS", "flip_finished", "flip_midway"]
