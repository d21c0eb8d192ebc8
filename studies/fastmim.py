"""What does low resolution cost? FastMIM at 64, 96 and 128 pixels, each for about five minutes of one core.

    python -m studies.fastmim --data DIR --out DIR [--workers 2]

DIR holds train.parquet and val.parquet of Imagenette at 160 pixels. Every network is probed at 128 pixels, whatever it
was trained at: a linear probe and kNN on all training labels, tested on val. Interrupted, it goes on where it was.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from studies import runs

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
        runs.pretrain("fastmim-vit-micro", flags(row), given.data, out)
        measured = runs.result(out, given.data, PROBED_AT, False, f"seed{row.seed}")
        runs.write(out, {"row": row._asdict(), **measured})
        return
    passed = ["--data", str(given.data), "--out", str(given.out)]
    print(table(runs.all_rows("studies.fastmim", [row.name for row in ROWS], given.out, passed, given.workers)))


if __name__ == "__main__":
    main()
