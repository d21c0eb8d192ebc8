"""What does low resolution cost? FastMIM at 64, 96 and 128 pixels, each for about five minutes of one core.

    python -m studies.fastmim --data DIR --out DIR [--workers 2]

DIR holds train.parquet and val.parquet of Imagenette at 160 pixels. Every network is probed at 128 pixels, whatever it
was trained at: a linear probe and kNN on all training labels, tested on val. Interrupted, it goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

PROBED_AT = (128, 128)


class Row(NamedTuple):
    """A run: image size, target, method, and as many pictures as five minutes of a core allow."""

    size: int
    target: str
    method: str
    epochs: int
    limit: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.method.replace('+', '-')}-{self.target}-{self.size}-seed{self.seed}"


ROWS = [
    Row(64, "hog", "fastmim", 5, 9285), Row(96, "hog", "fastmim", 2, 9400), Row(128, "hog", "fastmim", 1, 9469),
    Row(64, "pixels-norm", "fastmim", 5, 9285), Row(96, "pixels-norm", "fastmim", 2, 9400),
    Row(128, "pixels-norm", "fastmim", 1, 9469),
    Row(64, "hog", "fastmim+dmjd", 3, 7555), Row(96, "hog", "fastmim+dmjd", 1, 9469),
    Row(128, "hog", "fastmim+dmjd", 1, 4840),
    *(Row(64, "hog", "fastmim", 5, 9285, seed) for seed in (1, 2)),
    *(Row(128, "hog", "fastmim", 1, 9469, seed) for seed in (1, 2)),
]  # fmt: skip
HOG = "{kind='hog',norm='l2',flavour='sobel',cell=8}"


def flags(row: Row) -> list[str]:
    """The row as flags of `remask pretrain --recipe fastmim-vit-micro`."""
    given = ["--method", row.method, "--image-size", str(row.size), "--epochs", str(row.epochs)]
    given += ["--limit", str(row.limit), "--seed", str(row.seed), "--set", "optim.lr=2e-3"]
    if row.target != "hog":
        given += ["--target", row.target]
    if row.method != "fastmim":
        given += ["--set", "jd.width=96", "--set", f"jd.target={HOG}"]
    return given


def train(row: Row, data: Path, out: Path) -> None:
    """Pre-train where that is still to be done, on one thread."""
    status = out / "status.json"
    if status.is_file() and json.loads(status.read_text())["state"] == "finished":
        return
    begin = ["pretrain", "--recipe", "fastmim-vit-micro", "--data", str(data / "train.parquet"), "--out", str(out)]
    command = ["resume", str(out)] if status.is_file() else [*begin, *flags(row), "--set", "runtime.threads=1"]
    subprocess.run([sys.executable, "-m", "remask.cli", *command, "--quiet"], check=True)


def result(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """What a row cost, and the probes of its network and of the same one untrained.

    The untrained network depends on the seed alone, so it is probed once a seed.
    """
    from remask.build import build_method
    from remask.progressive import at_size
    from remask.runs import open_run, trained

    run, recipe = open_run(out)
    cost, known = run.read("cost.json"), out.parent / f"untrained-seed{row.seed}.json"
    if not known.is_file():
        known.write_text(json.dumps(probe(build_method(at_size(recipe, PROBED_AT)), data)))
    return {
        "row": row._asdict(), "cpu_minutes": 60 * cost["cpu_hours"], "images": cost["images"],
        "trained": probe(trained(run, recipe, size=PROBED_AT), data), "untrained": json.loads(known.read_text()),
    }  # fmt: skip


def probe(method: Any, data: Path) -> dict[str, float]:
    """Linear probe and kNN at one size for all rows."""
    import torch

    from remask.evaluation import extract, linear_probe, weighted_knn
    from remask.images import CentreCrop, iterate, open_source

    torch.set_num_threads(1)
    sources = [open_source(str(data / f"{split}.parquet"), labelled=True) for split in ("train", "val")]
    (x, y), (u, v) = [extract(method.backbone, iterate(s, CentreCrop(PROBED_AT), 256)) for s in sources]
    return {"linear": linear_probe(x, y, u, v, seed=0).accuracy, "knn": weighted_knn(x, y, u, v)}


def measure(number: int, data: Path, out: Path) -> dict[str, Any]:
    """A row's result, from its file where there is one, else by a process of its own."""
    done = out / ROWS[number].name / "study.json"
    if not done.is_file():
        command = ["studies.fastmim", "--data", str(data), "--out", str(out), "--row", str(number)]
        subprocess.run([sys.executable, "-m", *command], check=True)
    return json.loads(done.read_text())


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| px | target | method | seed | pictures | CPU min | linear | untrained | kNN | untrained |"]
    lines += ["|--:|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for found in results:
        row, probes = Row(**found["row"]), [found["trained"], found["untrained"]]
        cells = [str(row.size), row.target, row.method, str(row.seed), str(found["images"])]
        cells += [f"{found['cpu_minutes']:.1f}", *(f"{p[kind]:.1f}" for kind in ("linear", "knn") for p in probes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--row", type=int, help="do this row alone, in this process")
    given = parser.parse_args()
    if given.row is not None:
        row, out = ROWS[given.row], given.out / ROWS[given.row].name
        train(row, given.data, out)
        (out / "study.json").write_text(json.dumps(result(row, given.data, out)))
        return
    with ThreadPoolExecutor(given.workers) as pool:
        print(table(list(pool.map(lambda n: measure(n, given.data, given.out), range(len(ROWS))))))


if __name__ == "__main__":
    main()
