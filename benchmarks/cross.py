"""The cross decoder beside today's: forward FLOPs, which are exact, and CPU seconds of a step, side by side.

Depths, γ and views as in CrossMAE (2401.14391) and for disjoint views in which every token is predicted once.
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.apart import Maker, apart, rounds
from benchmarks.entrants import ours, row
from benchmarks.step import Settings, trained
from remask.build.training import gflops_per_image
from remask.recipe import load_recipe

CROSS = {"method.decoder": "cross"}
MAE: list[tuple[str, Settings, float, float]] = [
    ("γ .75, 8 blocks", CROSS, 0.83, 0.88),
    ("γ .25, 8 blocks", {**CROSS, "masking.predicted": 0.25}, 0.61, 0.70),
    ("γ .75, 1 block", {**CROSS, "method.decoder_depth": 1}, 0.52, 0.60),
]
"""Name, settings, and the bars of FLOPs and of time against MAE's decoder of 8 blocks."""
ONCE = {**CROSS, "masking.predicted": "once"}
DMJD: list[tuple[str, Settings, float]] = [
    ("8 blocks", ONCE, 0.85),
    ("4 blocks", {**ONCE, "method.decoder_depth": 4}, 0.75),
]
ROUNDS = 4


def flops() -> Iterator[dict[str, object]]:
    """Of one image, over those of MAE's decoder."""
    usual = gflops_per_image(load_recipe("mae-vit-b", environment={}))
    for name, settings, bar, _ in MAE:
        cost = gflops_per_image(load_recipe("mae-vit-b", settings, environment={}))
        what = f"forward FLOPs, MAE ViT-B, cross decoder, {name}, against 8 blocks of MAE's"
        yield {"name": what, "ratio": cost / usual, "bar": -bar, "unit": "x"}


def times(recipe: str, cases: list[tuple[str, Settings, float]], batch: int, what: str) -> Iterator[dict[str, object]]:
    """A step over that of the recipe as it is."""
    makers = {"": Maker(partial(trained, ours, recipe, {}, batch), keep=True)}
    makers |= {name: Maker(partial(trained, ours, recipe, keys, batch), keep=True) for name, keys, _ in cases}
    with apart(makers) as entrants:
        measured = [{name: t.step_fused for name, t in seconds.items()} for seconds in rounds(entrants, ROUNDS)]
    for name, _, bar in cases:
        yield row(f"step time, {what}, {name}, against 8 blocks of MAE's", [t[name] / t[""] for t in measured], -bar)


def run() -> Iterator[dict[str, object]]:
    """All rows, as they are found."""
    yield from flops()
    yield from times("mae-vit-b", [(name, keys, bar) for name, keys, _, bar in MAE], 4, "MAE ViT-B, cross decoder")
    yield from times("mae-dmjd-vit-b", DMJD, 2, "DMJD ViT-B K = 2, cross decoder, predicted once")
