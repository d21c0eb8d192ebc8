"""`make bench-gpu`: what one GPU makes of the step. Written for an H200; the bars are for its 790 TFLOP/s in bf16.

Pictures are bytes that lie on the device, steps are compiled and in bf16, times are CUDA events. MFU counts useful work
alone, three times the forward FLOPs of what is not masked away. Each row is written as soon as it is found; parts that
the time does not allow are named. Without a GPU: one line, and 2.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from benchmarks.gpu_loader import loader
from benchmarks.gpu_steps import CASES, Rows, Session, against, graphs, speed, surroundings
from remask.training.environment import environment

ABOUT = """# Speed on a GPU

Steps of published sizes on pictures that lie on the device as bytes: bf16, compiled, times by CUDA events, medians over
steps. MFU is 3 × the forward FLOPs of the method over the time and the card's dense bf16 rate. "The textbook" is the
plain composition of the same method (`benchmarks/reference.py`), eager with automatic mixed precision, in interleaved
rounds.

```bash
make bench-gpu
```
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to see that it runs; its numbers mean nothing")
    parser.add_argument("--seconds", type=float, default=460, help="start no part after that long")
    parser.add_argument("--peak", type=float, default=790, help="dense bf16 TFLOP/s of the card")
    parser.add_argument("--data", help="pictures for the loader; scikit-image's photographs unless given")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "results", metavar="DIR")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("bench-gpu: torch sees no CUDA device here, so nothing was measured", file=sys.stderr)
        return 2
    record, began = start(given), time.perf_counter()
    print(f"{record['machine']['device']}; torch {torch.__version__}\n\n{results.HEAD}")
    for row in measured(given, began):
        record["rows"].append(row)
        record["seconds"] = round(time.perf_counter() - began, 1)
        print(results.line(row), flush=True)
        results.write(given.out, {"gpu": record}, "performance-gpu", ABOUT)
    return int(any(results.verdict(row) == "MISSED" or row.get("failed") for row in record["rows"]))


def start(given: argparse.Namespace) -> dict[str, Any]:
    """The record without rows."""
    facts = environment()
    cuda = given.device.startswith("cuda")
    machine = {key: facts[key] for key in ("cpu", "cores", "python", "versions")}
    machine["device"] = torch.cuda.get_device_name() if cuda else f"{facts['cpu']} (to see that it runs)"
    command = f"python -m benchmarks.gpu{' --tiny' if given.tiny else ''}"
    return {"measured": time.strftime("%Y-%m-%d"), "command": command, "machine": machine, "failed": None, "rows": []}


def measured(given: argparse.Namespace, began: float) -> Iterator[dict[str, Any]]:
    """All rows, the most important first; one that fails is a row too."""
    if not given.device.startswith("cuda"):
        torch.set_num_threads(1)
    session = Session(torch.device(given.device), given.tiny, given.peak * 1e12)
    for what, part in parts(session, given.data):
        if time.perf_counter() - began > given.seconds:
            yield {"name": what, "bar": 0.0, "unit": "", "unmeasured": f"no time left after {given.seconds:.0f} s"}
            continue
        try:
            yield from part()
        except Exception as error:
            said = str(error).splitlines()[0][:200] if str(error) else ""
            yield {
                "name": what,
                "bar": 0.0,
                "unit": "",
                "unmeasured": f"{type(error).__name__}: {said}",
                "failed": True,
            }
        session.clean()


def parts(session: Session, data: str | None) -> Iterator[tuple[str, Callable[[], Rows]]]:
    """Names and what finds their rows, most important first."""
    for case in CASES[:3]:
        yield case.what, partial(speed, session, case)
    for case in CASES:
        if case.faster:
            yield f"{case.what}: the textbook against ours", partial(against, session, case)
    yield "HOG, loss and optimiser", partial(surroundings, session, CASES[1])
    yield "the loader", partial(loader, session, CASES[1], data)
    yield "CUDA graphs", partial(graphs, session)
    yield CASES[3].what, partial(speed, session, CASES[3])


if __name__ == "__main__":
    sys.exit(main())
