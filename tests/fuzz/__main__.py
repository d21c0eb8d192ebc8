"""`python -m tests.fuzz`: inputs for every reader, and a table of what became of them."""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import Result, keep, replayed, run, state
from tests.fuzz.targets import FAST, SLOW, TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="names of targets; none: all that are not pending")
    parser.add_argument("--inputs", type=int, help=f"of each target; {FAST:,} of a fast and {SLOW:,} of a slow one")
    parser.add_argument("--slow-inputs", type=int, help="the same for slow targets alone")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--state", type=Path, help="a file from which the campaign goes on, and where it is stored")
    parser.add_argument("--keep", action="store_true", help="write each kind of finding to tests/fuzz/found")
    parser.add_argument("--replay", action="store_true", help="read all that was ever found, too")
    options = parser.parse_args()
    names = options.targets or [name for name, target in TARGETS.items() if not target.pending]
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}: there are {', '.join(TARGETS)}")
    slow = options.slow_inputs or options.inputs or SLOW
    counts = {name: slow if TARGETS[name].slow else options.inputs or FAST for name in names}
    results = {name: Result() for name in TARGETS}
    if options.state and options.state.is_file():
        results |= {name: Result(**stored) for name, stored in json.loads(options.state.read_text()).items()}
    begin, shown = time.monotonic(), 0.0
    try:
        for name, result in run(names, counts, options.workers, {n: r.inputs for n, r in results.items()}):
            results[name].add(result)
            for kind, numbers in result.found.items():
                print(f"{name} {numbers[0]}: {kind}", flush=True)
                if options.keep:
                    keep(name, kind, numbers[0])
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                done, total = sum(results[n].inputs for n in names), sum(counts.values())
                print(f"{shown - begin:6.0f} s  {done:,} of {total:,}  {name}", file=sys.stderr, flush=True)
                if options.state:
                    state(options.state, results)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    if options.state:
        state(options.state, results)
    again = replayed(names) if options.replay else {}
    for name, kinds in again.items():
        print(f"{name}: found again: {'; '.join(kinds)}")
    print(table({name: results[name] for name in names}))
    return int(bool(again) or any(results[name].found for name in names))


def table(results: dict[str, Result]) -> str:
    """What became of the inputs of each target."""
    head = f"{'target':10} {'inputs':>9} {'taken':>9} {'refused':>9} {'slowest':>9} {'most':>8}  findings"
    lines = [head]
    for name, result in results.items():
        found = "; ".join(f"{kind} ×{len(numbers)}" for kind, numbers in result.found.items()) or "0"
        most = f"{result.most / 1e6:.0f} MB"
        numbers = f"{result.inputs:9,} {result.taken:9,} {result.refused:9,}"
        lines.append(f"{name:10} {numbers} {result.slowest:7.2f} s {most:>8}  {found}")
    lines.append(f"{'together':10} {sum(result.inputs for result in results.values()):9,}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
