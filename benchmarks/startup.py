"""Seconds from `remask --help` to its answer: a newcomer's first impression. Wall time, fresh processes."""

import statistics
import subprocess
import sys
import time


def run() -> list[dict[str, object]]:
    """One row."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "remask.cli.main", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    spread = (min(seconds), max(seconds))
    return [{"name": "remask --help", "ratio": statistics.median(seconds), "spread": spread, "bar": -1.0, "unit": "s"}]
