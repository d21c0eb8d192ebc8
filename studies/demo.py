"""What `make demo` shows, with several seeds, and MAE for the same CPU time: means and standard deviations.

    python -m studies.demo --out DIR [--seeds 0,1,2] [--val crops:test] [--json FILE]

Each run is what `make demo SEED=N` does, on as many threads as OMP_NUM_THREADS says. Interrupted, it goes on where it
was. Settings were chosen with --val crops:val.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

MAE = ["--method", "mae", "--epochs", "6", "--set", "optim.base_lr=6e-3"]
"""As many epochs as take the CPU time of the demo: a step has one view and one branch in place of two and two."""
METHODS: dict[str, list[str]] = {"DMJD": [], "MAE": MAE}
KINDS = {"top1": "trained", "untrained": "untrained", "pixels": "raw pixels"}


def run(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Cells of a run by row and kind in percent, and CPU minutes; made where it is not there."""
    out = given.out / f"{name.lower()}-seed{seed}"
    status = out / "status.json"
    state = json.loads(status.read_text())["state"] if status.is_file() else "absent"
    begin = ["pretrain", "--recipe", "demo", "--seed", str(seed), "--out", str(out), *METHODS[name]]
    if state != "finished":
        _remask(*(begin if state == "absent" else ["resume", str(out)]))
    _remask("probe", str(out), "--data", "crops:train", "--val", given.val, "--shots", "10")
    probe, cost = (json.loads((out / file).read_text()) for file in ("eval/probe.json", "cost.json"))
    few = probe["few_labels"]
    rows = {"kNN": probe["knn"], "linear": probe["linear"]}
    rows |= {"kNN, 10 labels a class": few["knn"], "linear, 10 labels a class": few}
    cells = {row: {kind: found[kind] for kind in KINDS} for row, found in rows.items()}
    return {"seed": seed, "cpu_minutes": round(60 * cost["cpu_hours"], 2), "cells": cells}


def _remask(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "remask.cli.main", *arguments, "--quiet"], check=True)


def spread(values: Sequence[float]) -> str:
    """ "52.7 ± 0.4": mean and sample standard deviation; the mean alone of one."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: a line a row of the probe."""
    heads = [*(words if kind != "top1" else "DMJD" for kind, words in KINDS.items()), "MAE, same CPU time"]
    lines = [f"| accuracy, % | {' | '.join(heads)} |", f"|---{'|--:' * len(heads)}|"]
    for row in found["DMJD"][0]["cells"]:
        cells = [spread([one["cells"][row][kind] for one in found["DMJD"]]) for kind in KINDS]
        cells.append(spread([one["cells"][row]["top1"] for one in found["MAE"]]))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    minutes = (f"{name} {spread([one['cpu_minutes'] for one in runs])}" for name, runs in found.items())
    return "\n".join([*lines, "", f"CPU minutes of a pre-training: {', '.join(minutes)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--val", default="crops:test")
    parser.add_argument("--json", type=Path, help="write every cell of every seed here")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    found = {name: [run(name, seed, given) for seed in seeds] for name in METHODS}
    if given.json:
        given.json.write_text(json.dumps({"val": given.val, "runs": found}, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
