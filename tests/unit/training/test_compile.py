"""torch.compile takes the whole forward, once: no graph break, no recompilation under other masks, the same losses."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_forwards_compile_whole_and_once(tmp_path: Path) -> None:
    """A break or a second compilation raises there; compiled DDP and FSDP on one process are the same numbers too."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.training.compiled", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {name: float(worst) for name, worst in (line.split() for line in done.stdout.splitlines())}
    assert list(found) == [
        "dmjd",
        "average",
        "guided",
        "maskfeat",
        "convmae",
        "localmim",
        "refiner",
        "pixmim",
        "ddp",
        "fsdp",
    ]
    assert all(worst < 1e-6 for worst in found.values()), found
