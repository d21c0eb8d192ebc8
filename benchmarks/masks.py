"""Masks that adapt or are filtered noise beside random ones: a step of ViT-B's MAE, and what drawing alone costs.

A guided step is also measured without the teacher's pass, which is a forward pass of the whole images: 1.8 of those of
MAE's view, .6 of its step.
"""

import math
import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.apart import Maker, apart, rounds
from benchmarks.entrants import Entrant, ours, row
from benchmarks.step import Settings, trained
from remask.build.training import gflops_per_image
from remask.masking import Masking
from remask.masking.green import Green
from remask.masking.guided import MostAttended, hardest
from remask.masking.scores import Score, random
from remask.method import Method
from remask.recipe import load_recipe
from remask.types import Images
from remask.views import Views

RECIPE, BATCH, ROUNDS = "mae-vit-b", 4, 4
GREEN: Settings = {"masking.pattern": "green"}
GUIDED: list[tuple[str, Settings]] = [
    ("by attention", {"masking.pattern": "attention"}),
    ("by predicted loss", {"masking.pattern": "loss"}),
]
GRID, IMAGES = (14, 14), 256
SCORES: list[tuple[str, Score]] = [("green noise", Green()), ("by attention", MostAttended()), ("by loss", hardest)]


def without_teacher(method: Method, images: Images, *dtype: torch.dtype) -> Entrant:
    """`ours`, whose guide is noise in place of what the moving average says."""
    entrant = ours(method, images, *dtype)
    masking, grid = method.masking, method.grid((images.shape[-2], images.shape[-1]))

    def draw(given: Images) -> Views:
        return masking(len(given), grid, guide=torch.randn(len(given), math.prod(grid)))

    method.draw = draw  # type: ignore[assignment,method-assign]
    return entrant


def flops() -> Iterator[dict[str, object]]:
    """Of one image, over those of random masks."""
    usual = gflops_per_image(load_recipe(RECIPE, environment={}))
    for (name, settings), bar in zip([("green noise", GREEN), *GUIDED], (1.001, 2.9, 3.0), strict=True):
        cost = gflops_per_image(load_recipe(RECIPE, settings, environment={}))
        yield {"name": f"forward FLOPs, MAE ViT-B, masks {name}", "ratio": cost / usual, "bar": -bar, "unit": "x"}


def steps() -> Iterator[dict[str, object]]:
    """A step over that with random masks; of guided masks without the teacher's pass, then with it."""
    cases = [("green noise", ours, GREEN, 1.02)]
    cases += [(f"{name}, without the teacher's pass", without_teacher, keys, 1.10) for name, keys in GUIDED]
    cases += [(name, ours, keys, 1.7) for name, keys in GUIDED]
    makers = {"": Maker(partial(trained, ours, RECIPE, {}, BATCH), keep=True)}
    makers |= {name: Maker(partial(trained, make, RECIPE, keys, BATCH), keep=True) for name, make, keys, _ in cases}
    with apart(makers) as entrants:
        measured = [{name: t.step_fused for name, t in seconds.items()} for seconds in rounds(entrants, ROUNDS)]
    for name, _, _, bar in cases:
        yield row(f"step time, MAE ViT-B, masks {name}, against random", [t[name] / t[""] for t in measured], -bar)


def drawing(score: Score) -> float:
    """CPU seconds in which the masks of a batch are drawn."""
    masking = Masking(0.75, score)
    guide = None if score is random or isinstance(score, Green) else torch.randn(IMAGES, math.prod(GRID))
    began = time.process_time()
    masking(IMAGES, GRID, guide=guide)
    return time.process_time() - began


def draws() -> Iterator[dict[str, object]]:
    """Masks of 256 images drawn over random ones; no bar but that it stays a matter of milliseconds."""
    measured = [{name: drawing(score) for name, score in [("", random), *SCORES]} for _ in range(1 + ROUNDS)][1:]
    for name, _ in SCORES:
        yield row(f"masks of {IMAGES} images drawn, {name}, against random", [t[name] / t[""] for t in measured], -10.0)


def run() -> Iterator[dict[str, object]]:
    """All rows, as they are found."""
    yield from flops()
    yield from draws()
    yield from steps()
