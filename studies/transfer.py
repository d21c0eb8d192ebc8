"""Is a pre-trained network better to train further than the same one from scratch? Imagenette's labels, CamVid's masks.

    python -m studies.transfer --data DIR --camvid DIR --out DIR [--workers 2] [--held-out]

DIR of --data holds train.parquet and val.parquet of Imagenette at 160 pixels, that of --camvid images/ and masks/ with
train, val and test. DMJD pre-trains a ViT of width 192 (ViT-Ti's) with 6 blocks and patches of 16 pixels on Imagenette
without labels, once; each row then fine-tunes it, or the same network with first weights, for the same epochs, on one
thread. Interrupted, it goes on where it was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from studies import runs

PRETRAINING = [
    "--model", "vit_tiny", "--image-size", "128", "--epochs", "8",
    *(part for key in ("backbone.patch_size=16", "backbone.depth=6", "jd.target.cell=16") for part in ("--set", key)),
]  # fmt: skip


class Row(NamedTuple):
    """A network that is trained further: on what share of the labels, or on masks (share 0), and from what."""

    share: float
    scratch: bool
    seed: int

    @property
    def name(self) -> str:
        what = f"finetune-{self.share:g}" if self.share else "segment"
        return f"{what}-{'scratch' if self.scratch else 'dmjd'}-seed{self.seed}"


EPOCHS = {0.0: 24, 0.1: 20, 1.0: 4}
SEEDS = {0.0: (0,), 0.1: (0, 1, 2), 1.0: (0, 1, 2)}
ROWS = [Row(share, scratch, seed) for share in SEEDS for seed in SEEDS[share] for scratch in (False, True)]


def flags(row: Row, given: argparse.Namespace) -> list[str]:
    """The row as a command of remask. What is chosen is chosen with --held-out, see docs/results/transfer.md."""
    found = ["--epochs", str(EPOCHS[row.share]), "--seed", str(row.seed), "--set", "runtime.threads=1"]
    found += ["--untrained", "--set", "optim.layer_decay=1"] if row.scratch else []
    if row.share:
        train, val = given.data / "train.parquet", given.data / "val.parquet"
        found += ["--data", str(train), *(["--val", str(val)] if not given.held_out else [])]
        found += ["--image-size", "96", "--set", "test.every_epochs=100", "--set", f"data.share={row.share}"]
        return ["finetune", str(given.out / "dmjd"), *found]
    images, masks, test = given.camvid / "images", given.camvid / "masks", "val" if given.held_out else "test"
    found += ["--data", str(images / "train"), "--masks", str(masks / "train"), "--recipe", "camvid-vit-tiny"]
    return ["segment", str(given.out / "dmjd"), *found, "--val", str(images / test), "--val-masks", str(masks / test)]


def measure(row: Row, given: argparse.Namespace) -> dict[str, Any]:
    """The row's run, made or resumed; accuracy or mIoU in percent, and what it cost."""
    out = given.out / row.name
    status = out / "status.json"
    state = json.loads(status.read_text())["state"] if status.is_file() else "absent"
    if state != "finished":
        command = [*flags(row, given), "--out", str(out)] if state == "absent" else ["resume", str(out)]
        subprocess.run([sys.executable, "-m", "remask.cli.main", *command, "--quiet"], check=True)
    found = json.loads((out / "eval" / f"{'finetune' if row.share else 'segment'}.json").read_text())
    cost = json.loads((out / "cost.json").read_text())
    return {"result": found["top1" if row.share else "mIoU"], "minutes": 60 * cost["cpu_hours"]}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each task, with every seed."""
    lines = ["| trained on | epochs | from DMJD | mean | from scratch | mean | gain | CPU min a run |"]
    lines += ["|---|--:|---|--:|---|--:|--:|--:|"]
    found = dict(zip(ROWS, results, strict=True))
    for share, seeds in SEEDS.items():
        rows = [[found[Row(share, scratch, seed)] for seed in seeds] for scratch in (False, True)]
        each = [", ".join(f"{one['result']:.1f}" for one in row) for row in rows]
        means = [fmean(one["result"] for one in row) for row in rows]
        minutes = fmean(one["minutes"] for row in rows for one in row)
        what = f"Imagenette, {100 * share:g} % of the labels, top-1" if share else "CamVid, UperNet, mIoU"
        cells = [what, str(EPOCHS[share]), each[0], f"{means[0]:.1f}", each[1], f"{means[1]:.1f}"]
        lines.append(f"| {' | '.join([*cells, f'{means[0] - means[1]:+.1f}', f'{minutes:.1f}'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--held-out", action="store_true", help="test on held-out training pictures, CamVid's val")
    parser.add_argument("--row", type=int, help="do this row alone, in this process")
    given = parser.parse_args()
    runs.pretrain("dmjd-vit-micro-cifar", PRETRAINING, given.data, given.out / "dmjd")
    if given.row is not None:
        out = given.out / ROWS[given.row].name
        found = measure(ROWS[given.row], given)
        runs.write(out, found)
        return
    passed = ["--data", str(given.data), "--camvid", str(given.camvid), "--out", str(given.out)]
    passed += ["--held-out"] if given.held_out else []
    print(table(runs.all_rows("studies.transfer", [row.name for row in ROWS], given.out, passed, given.workers)))


if __name__ == "__main__":
    main()
