"""`python -m tests.faults`: faults of every kind into small trainings, and a table of what became of them."""

import argparse
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.faults.campaign import FAULTS, begin, planned, run
from tests.faults.injecting import Result

BEGIN, END = "<!-- written by make soak -->", "<!-- end of what make soak writes -->"
HEAD = "| fault | injected | survived | images lost | images repeated | lines of the curve that differ |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", help="beginnings of the names of faults; none: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="what is done is kept there")
    parser.add_argument("--slice", action="store_true", help="a few of each")
    parser.add_argument("--minutes", type=float, help="begin no more injections after this time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--page", type=Path, help="a Markdown file whose section between two marks becomes the table")
    parser.add_argument("--table", action="store_true", help="only show what is done")
    options = parser.parse_args()
    names = [name for name in FAULTS if not options.faults or name.startswith(tuple(options.faults))]
    if not names:
        parser.error(f"no such fault: there are {', '.join(FAULTS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seconds = None if options.minutes is None else 60 * options.minutes
    start = time.monotonic()
    page = options.page.resolve() if options.page else None
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    few = options.slice
    results = (
        begin(folder) if options.table else run(folder, names, small=few, workers=options.workers, seconds=seconds)
    )
    lines = table(results, planned(folder))
    print("\n".join([*lines, f"\n{time.monotonic() - start:.0f} s"]))
    if page:
        write(page, lines)
    return int(any(result.survived < result.injected for result in results))


def table(results: list[Result], plan: Mapping[str, int] | None = None) -> list[str]:
    """The table as lines of Markdown, a row for each fault; and a line for each injection that was not survived.

    plan   injections there are to be: a row with fewer says how many of them were made
    """
    rows = [HEAD, "|---|--:|--:|--:|--:|--:|"]
    for name in FAULTS:
        of_it = [result for result in results if result.fault == name]
        if not of_it:
            rows.append(f"| {name} | not run | | | | |")
            continue
        sums = [sum(getattr(r, key) for r in of_it) for key in ("injected", "survived", "lost", "repeated", "curve")]
        total = (plan or {}).get(name, FAULTS[name].count)
        share = f" ({len(of_it)} of {total} were tried)" if len(of_it) < total else ""
        rows.append(f"| {name}{share} | {' | '.join(f'{value:,}' for value in sums)} |")
    totals = [sum(getattr(r, key) for r in results) for key in ("injected", "survived", "lost", "repeated", "curve")]
    rows.append(f"| together | {' | '.join(f'{value:,}' for value in totals)} |")
    bad = [result for result in results if result.survived < result.injected]
    lines = [f"- {r.fault}, {r.place}: {r.why or 'it differs from the undisturbed run'}" for r in bad]
    return [*rows, *(["", "Not survived:", "", *lines] if lines else [])]


def write(page: Path, lines: list[str]) -> None:
    """Put the table into the page, with when and where it was made."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    when = f"Written by `make soak` on {time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, Linux."
    page.write_text(f"{before}{BEGIN}\n{when}\n\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
