"""`make bench`: one table of ratios measured side by side in this run, each with its bar; 1 if a bar is missed.

`python -m benchmarks step hog` runs those parts alone; what other parts found earlier stays in docs/results. The part
"alike" runs only where it is named. A part that fails is reported, the others go on.
"""

import argparse
import importlib
import importlib.util
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from remask.training.environment import environment

PARTS = tuple(
    part
    for part in ("startup", "step", "cross", "masks", "alike", "hog", "average", "distill", "loader", "plan")
    if importlib.util.find_spec(f"benchmarks.{part}")
)
NAMED = ("alike",)
"""Minutes more than `make bench` has: left out unless named."""
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all but {', '.join(NAMED)} unless named"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where performance.* goes")
    parser.add_argument("--no-write", action="store_true", help="print only")
    given = parser.parse_args(arguments)
    if unknown := [part for part in given.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}: choose from {', '.join(PARTS)}")
    facts = environment()
    print(f"{facts['cpu']}, one thread; torch {facts['versions']['torch']}\n\n{results.HEAD}")
    usual = [part for part in PARTS if part not in NAMED]
    found = {part: measure(part, facts) for part in given.parts or usual}
    if not given.no_write:
        results.write(given.out, found)
    for part, record in found.items():
        if record["failed"]:
            print(f"\npart {part} failed: {record['failed']}", file=sys.stderr)
    missed = any(results.verdict(row) == "MISSED" for record in found.values() for row in record["rows"])
    return int(missed or any(record["failed"] for record in found.values()))


def run(part: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a part, as they are found; nothing of the others is imported."""
    return importlib.import_module(f"benchmarks.{part}").run()


def measure(part: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The record of one part: its rows, when and on what, how long it took, and why it ended early if it did."""
    began, rows, failed = time.perf_counter(), list[dict[str, Any]](), None
    try:
        for row in run(part):
            rows.append(dict(row))
            print(results.line(row), flush=True)
    except Exception as error:
        traceback.print_exc()
        failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return {
        "measured": time.strftime("%Y-%m-%d"),
        "command": f"python -m benchmarks {part}",
        "seconds": round(time.perf_counter() - began, 1),
        "machine": {key: facts[key] for key in ("cpu", "cores", "python", "versions")},
        "failed": failed,
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
