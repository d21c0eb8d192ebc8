"""What studies share: a run that is made once and resumed, and the probes of a network on Imagenette."""

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def pretrain(recipe: str, flags: Sequence[str], data: Path, out: Path) -> None:
    """`remask pretrain` where that is still to be done, `remask resume` where it was cut off; on one thread."""
    status = out / "status.json"
    if status.is_file() and json.loads(status.read_text())["state"] == "finished":
        return
    begin = ["pretrain", "--recipe", recipe, "--data", str(data / "train.parquet"), "--out", str(out), *flags]
    command = ["resume", str(out)] if status.is_file() else [*begin, "--set", "runtime.threads=1"]
    subprocess.run([sys.executable, "-m", "remask.cli.main", *command, "--quiet"], check=True)


def probes(method: Any, data: Path, size: tuple[int, int], held_out: bool = False) -> dict[str, float]:
    """Linear probe and kNN of a network, in percent: on all of train, tested on val.

    held_out: tested on the last 1,469 pictures of train, learned on the others; for choosing settings.
    """
    import torch

    from remask.evaluation.probing.features import extract
    from remask.evaluation.probing.knn import weighted_knn
    from remask.evaluation.probing.logistic_regression import linear_probe
    from remask.images.loading.loader import iterate
    from remask.images.sources.opening import open_source
    from remask.images.sources.subset import Subset
    from remask.images.transforms import CentreCrop

    torch.set_num_threads(1)
    sources: list[Any] = [open_source(str(data / "train.parquet"), labelled=True)]
    if held_out:
        sources = [Subset(sources[0], list(range(8000))), Subset(sources[0], list(range(8000, len(sources[0]))))]
    else:
        sources.append(open_source(str(data / "val.parquet"), labelled=True))
    (x, y), (u, v) = [extract(method.backbone, iterate(s, CentreCrop(size), 256)) for s in sources]
    assert y is not None
    assert v is not None
    return {"linear": linear_probe(x, y, u, v, seed=0).accuracy, "knn": weighted_knn(x, y, u, v)}


def result(out: Path, data: Path, size: tuple[int, int], held_out: bool, untrained_name: str) -> dict[str, Any]:
    """Cost and probes of a run, beside the same network untrained, which is probed once a name."""
    from remask.runs.opening import open_run
    from remask.runs.reopen import trained, untrained

    run, recipe = open_run(out)
    cost, known = run.read("cost.json"), out.parent / f"untrained-{untrained_name}.json"
    if not known.is_file():
        known.write_text(json.dumps(probes(untrained(recipe, size), data, size, held_out)))
    return {
        "cpu_minutes": 60 * cost["cpu_hours"], "images": cost["images"],
        "trained": probes(trained(run, recipe, size=size), data, size, held_out),
        "untrained": json.loads(known.read_text()),
    }  # fmt: skip


def all_rows(module: str, names: Sequence[str], out: Path, flags: Sequence[str], workers: int) -> list[dict[str, Any]]:
    """The rows' results in order, from their files where there are any, else by a process each."""

    def measure(number: int) -> dict[str, Any]:
        done = out / names[number] / "study.json"
        if not done.is_file():
            subprocess.run([sys.executable, "-m", module, *flags, "--row", str(number)], check=True)
        return json.loads(done.read_text())

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(measure, range(len(names))))


def write(out: Path, measured: dict[str, Any]) -> None:
    """A row's result, whole or not at all."""
    part = out / "study.part"
    part.write_text(json.dumps(measured))
    part.replace(out / "study.json")


__all__ = ["all_rows", "pretrain", "probes", "result", "write"]
