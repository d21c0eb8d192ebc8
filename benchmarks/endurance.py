"""Does a long run stay as small as it began? `python -m benchmarks.endurance`: memory, files, threads over its steps.

A small pre-training with two loader processes that saves every ten seconds, in a process of its own, looked at from
outside through /proc.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SMALL = {
    "data.image_size": 16,
    "backbone.width": 32,
    "backbone.depth": 2,
    "backbone.heads": 2,
    "method.decoder_width": 32,
    "method.decoder_depth": 1,
    "jd.width": 32,
    "optim.batch_size": 16,
    "optim.precision": "fp32",
    "runtime.device": "cpu",
    "runtime.threads": 1,
    "runtime.workers": 2,
    "runtime.save_every_minutes": 0.17,
    "runtime.log_every": 10,
}


EPOCH = 320
"""Steps of an epoch, at whose end the loaders are made anew."""


class Look(NamedTuple):
    """The step at a moment, resident memory in MiB of the training and of its loaders, open files, threads."""

    step: int
    training: float
    loaders: float
    files: int
    threads: int


def look(pid: int, run: Path) -> Look:
    training, loaders = status(pid), [status(child) for child in children(pid)]
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resident = [one.get("VmRSS", 0) / 1024 for one in loaders]  # none of one that has just ended
    return Look(step_of(run), training["VmRSS"] / 1024, sum(resident), files, training["Threads"])


def status(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines) if key in WANTED}


WANTED = ("VmRSS", "Threads")


def children(pid: int) -> list[int]:
    """Those that decode, not the tracker of shared memory, which has no memory of ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended since
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found += [int(entry.name)] if int(fields[1]) == pid else []
    return found


def step_of(run: Path) -> int:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def watched(steps: int, every: int) -> list[Look]:
    """A look at about every `every`-th step of a run of `steps`."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = [text for key, value in SMALL.items() for text in ("--set", f"{key}={json.dumps(value)}")]
        command = [
            sys.executable,
            "-m",
            "remask",
            "pretrain",
            "--recipe",
            "demo",
            "--limit",
            str(16 * EPOCH),
            "--quiet",
        ]
        length = ["--epochs", str(steps // EPOCH + 1), "--max-steps", str(steps), "--out", str(run)]
        process, looks = subprocess.Popen([*command, *length, *options], stdout=subprocess.DEVNULL), list[Look]()
        while process.poll() is None:
            time.sleep(1)
            if every * (len(looks) + 1) <= step_of(run) < steps and (seen := look(process.pid, run)).loaders:
                looks.append(seen)  # not between two epochs, when there are no loaders
                print(row(seen), flush=True)
        if process.returncode:
            raise SystemExit(f"the run ended with {process.returncode}")
    return looks


def row(one: Look) -> str:
    return f"| {one.step:,} | {one.training:.0f} | {one.loaders:.0f} | {one.files} | {one.threads} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    print("| step | MiB, training | MiB, loaders | open files | threads |\n|--:|--:|--:|--:|--:|")
    looks = watched(options.steps, options.steps // 10)
    first, last = looks[0], looks[-1]
    gained = f"training {last.training - first.training:+.0f} MiB, loaders {last.loaders - first.loaders:+.0f} MiB"
    counts = f"files {last.files - first.files:+d}, threads {last.threads - first.threads:+d}"
    print(f"{options.steps:,} steps; from the first look to the last: {gained}, {counts}")


if __name__ == "__main__":
    main()
