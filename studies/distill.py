"""Is a small student better taught than trained from scratch? MAE, DMAE and MOMA for the same minutes of one core.

    python -m studies.distill --data DIR --out DIR --mobilenet FILE [--workers 2] [--held-out]

DIR holds train.parquet and val.parquet of Imagenette at 160 pixels; FILE is an ImageNet MobileNetV2 for torchvision. A
teacher is first pre-trained by DMJD on the same pictures. Every student is a ViT of width 192 (ViT-Ti's) with 6 blocks
and patches of 16 pixels, at 128 pixels, and is probed on all training labels, tested on val. A row's minutes are all it
costs, teachers included. Interrupted, it goes on where it was.
"""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

from studies import runs

SIZE = (128, 128)
PICTURES = 9469
DMJD, MOBILENET = "run:{out}/teacher", "torchvision:mobilenet_v2,weights={mobilenet}"


class Row(NamedTuple):
    """A student: its method, its teachers, and as many pictures as the minutes allow."""

    label: str
    method: str
    pictures: int
    teachers: tuple[str, ...] = ()
    seed: int = 0
    learned: bool = False

    @property
    def name(self) -> str:
        return f"{self.label.replace(' ', '-')}-seed{self.seed}"


BOTH = (DMJD, MOBILENET)
ROWS = [
    Row("MAE", "mae", 36000),
    Row("MOMA both", "moma", 7000, BOTH),
    Row("MOMA MobileNetV2", "moma", 11500, (MOBILENET,)),
    Row("MOMA DMJD", "moma", 13000, (DMJD,)),
    Row("DMAE DMJD", "dmae", 27000, (DMJD,)),
    Row("MOMA both, learned", "moma", 7000, BOTH, learned=True),
    *(Row("MAE", "mae", 36000, seed=seed) for seed in (1, 2)),
    *(Row("MOMA both", "moma", 7000, BOTH, seed) for seed in (1, 2)),
]
STUDENT = ["--model", "vit_tiny", "--image-size", "128", "--set", "backbone.patch_size=16", "--set", "backbone.depth=6"]
TEACHER = [
    "--model", "vit_tiny", "--image-size", "128", "--limit", "9469", "--epochs", "3", "--set", "jd.target.cell=16",
    *(part for key in ("patch_size=16", "width=256", "depth=8", "heads=4") for part in ("--set", f"backbone.{key}")),
]  # fmt: skip


def flags(row: Row, given: argparse.Namespace) -> list[str]:
    """The row as flags of `remask pretrain --recipe METHOD-vit-micro-cifar`: whole epochs of as few as it takes."""
    epochs = math.ceil(row.pictures / PICTURES)
    found = [*STUDENT, "--epochs", str(epochs), "--limit", str(row.pictures // epochs), "--seed", str(row.seed)]
    for teacher in row.teachers:
        found += ["--teacher", teacher.format(out=given.out, mobilenet=given.mobilenet)]
    if row.method == "moma":  # .9 would leave 6 of these 64 tokens; fewer pictures a minute, so more steps from them
        found += [*("--set", "masking.ratio=0.75"), *("--set", "optim.lr=2e-3"), *("--set", "optim.batch_size=16")]
    return [*found, *(["--set", "distill.learned=true"] if row.learned else [])]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| student | seed | pictures | CPU min | linear | untrained | kNN | untrained |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row, found in zip(ROWS, results, strict=True):
        values = [found[who][kind] for kind in ("linear", "knn") for who in ("trained", "untrained")]
        cells = [row.label, str(row.seed), str(found["images"]), f"{found['cpu_minutes']:.1f}"]
        lines.append(f"| {' | '.join([*cells, *(f'{value:.1f}' for value in values)])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mobilenet", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--held-out", action="store_true", help="test on held-out training pictures")
    parser.add_argument("--row", type=int, help="do this row alone, in this process")
    given = parser.parse_args()
    runs.pretrain("dmjd-vit-micro-cifar", TEACHER, given.data, given.out / "teacher")
    if given.row is not None:
        row = ROWS[given.row]
        out = given.out / row.name
        runs.pretrain(f"{row.method}-vit-micro-cifar", flags(row, given), given.data, out)
        runs.write(out, runs.result(out, given.data, SIZE, given.held_out, f"seed{row.seed}"))
        return
    passed = ["--data", str(given.data), "--out", str(given.out), "--mobilenet", str(given.mobilenet)]
    passed += ["--held-out"] if given.held_out else []
    print(table(runs.all_rows("studies.distill", [row.name for row in ROWS], given.out, passed, given.workers)))


if __name__ == "__main__":
    main()
