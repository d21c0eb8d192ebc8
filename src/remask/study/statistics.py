"""Means, deviations and paired intervals of few runs."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

LEVEL = 0.95
"""Of an interval."""


class Paired(NamedTuple):
    """A difference between two rows over the seeds that both have: mean, interval (None of one seed), seeds."""

    mean: float
    interval: tuple[float, float] | None
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        """ "+2.1 [+0.4, +3.8]" """
        between = f" [{self.interval[0]:+.1f}, {self.interval[1]:+.1f}]" if self.interval else ""
        return f"{self.mean:+.1f}{between}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "52.7 ± 0.4": mean and sample standard deviation; the mean alone of one value."""
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def paired(first: Mapping[int, float], second: Mapping[int, float], level: float = LEVEL) -> Paired | None:
    """First minus second, seed by seed, with the interval of Student's t for the mean; None without a common seed."""
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    mean = fmean(differences)
    if len(seeds) == 1:
        return Paired(mean, None, seeds)
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, len(seeds) - 1)) * stdev(differences) / math.sqrt(len(seeds))
    return Paired(mean, (mean - half, mean + half), seeds)


__all__ = ["LEVEL", "Paired", "mean_and_deviation", "paired"]
