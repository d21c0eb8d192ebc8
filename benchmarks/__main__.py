"""`make bench`: one table of ratios measured side by side in this run, each with its bar; 1 if a bar is missed."""

import sys

from benchmarks import distill, hog, loader, plan, startup, step
from remask.listing import environment


def main() -> int:
    """Print the table; a negative bar is an upper limit."""
    facts = environment()
    print(f"{facts['cpu']}, one thread; torch {facts['versions']['torch']}\n")
    print("| what | measured | spread | bar | |\n|---|--:|--:|--:|---|")
    missed = 0
    for part in (startup, step, distill, plan, hog, loader):
        for row in part.run():
            measured, bar = float(row["ratio"]), float(row["bar"])  # type: ignore[arg-type]
            met = measured <= -bar if bar < 0 else measured >= bar
            missed += not met
            low, high = row.get("spread", (measured, measured))  # type: ignore[misc]
            limit = f"≤ {-bar:g}" if bar < 0 else f"≥ {bar:g}"
            verdict = "met" if met else "MISSED"
            print(
                f"| {row['name']} | {measured:.2f} {row['unit']} | {low:.2f}-{high:.2f} | {limit} | {verdict} |",
                flush=True,
            )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
