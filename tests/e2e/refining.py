"""What `torchrun -m tests.e2e.refining PICTURES RUN OUT` does in each process, for test_refine: a run is refined."""

import sys
from pathlib import Path

from remask.commands.refining import refine

SETTINGS = [
    "optim.epochs=4", "optim.batch_size=8", "optim.precision=fp32", "optim.base_lr=0.05", "refine.neighbours=3",
    "refine.queue=32", "refine.jitter=0.3", "refine.blocks=1", "runtime.log_every=1", "runtime.threads=1",
    "runtime.device=cpu", "runtime.tensorboard=false", "runtime.workers=0",
]  # fmt: skip
"""20 pictures, whose pairs of crops are batches of 8: two steps an epoch."""


def main(pictures: str, run: str, out: str, *settings: str) -> None:
    """Refine in DDP unless the settings say FSDP."""
    refine(Path(run), {"data.source": pictures}, settings=[*SETTINGS, *settings], out=Path(out), quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
