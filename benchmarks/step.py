"""What a training step costs: forward GFLOP by the flop counter, and ratios of the times of whole steps.

FLOPs are exact. Times are process CPU seconds on one thread, interleaved round by round.
"""

import statistics
import time

import torch

from remask.build import build_method, gflops_per_image
from remask.method import Method
from remask.optim import adamw, parameter_groups
from remask.recipe import load_recipe
from remask.runtime import generator, keep_freed_memory

ROUNDS, BATCH = 5, 4
RANDOM = {"masking.pattern": "random", "masking.cell": 1, "masking.ratio": 0.75}
FLOPS: list[tuple[str, dict[str, object], float]] = [
    ("mae-vit-b", {}, 19.6),
    ("mae-dmjd-vit-b", {}, 38.2),
    ("convmae-dmjd-convit-b", {}, 78.0),
    ("convmae-dmjd-convit-b", RANDOM, 62.5),
    ("convmae-dmjd-convit-l", RANDOM, 128.5),
]


class Step:
    """Forward, backward and AdamW of a recipe on a batch of noise."""

    def __init__(self, name: str, settings: dict[str, object]) -> None:
        recipe = load_recipe(name, settings, environment={})
        self.method: Method = build_method(recipe)
        self.optimizer = adamw(parameter_groups(self.method.named_parameters(), 0.05), 1e-4, (0.9, 0.95))
        size = (BATCH, 3, *recipe.data.image_size)
        self.images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator(0))

    def seconds(self) -> float:
        began = time.process_time()
        self.method(self.images)["total"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - began


def ratios(steps: list[Step]) -> list[list[float]]:
    """Time of each step but the first over that of the first, round by round."""
    for step in steps:
        step.seconds()
    times = [[step.seconds() for step in steps] for _ in range(ROUNDS)]
    return [[later[i] / later[0] for later in times] for i in range(1, len(steps))]


def row(name: str, values: list[float], bar: float) -> dict[str, object]:
    """Median and spread."""
    spread = min(values), max(values)
    return {"name": name, "ratio": statistics.median(values), "spread": spread, "bar": bar, "unit": "x"}


def run() -> list[dict[str, object]]:
    """All rows."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = [
        {
            "name": f"forward GFLOP per image, {name}{', random .75' if settings else ''}",
            "ratio": gflops_per_image(load_recipe(name, settings, environment={})),
            "bar": -bar,
            "unit": "GFLOP",
        }
        for name, settings, bar in FLOPS
    ]
    small: dict[str, object] = {"backbone.name": "vit_small_patch16_224"}
    views = [Step("mae-dmjd-vit-b", {**small, "dm.views": k, "method.decoder_depth": 4}) for k in (1, 2, 4)]
    for k, share in zip((2, 4), ratios(views), strict=True):
        rows.append(row(f"step time, K = {k} against K times K = 1, ViT-S", [ratio / k for ratio in share], -1.15))
    sizes = [Step("fastmim-vit-b", {"data.image_size": size}) for size in (224, 128)]
    rows.append(row("step time, FastMIM ViT-B at 128 px against 224 px", ratios(sizes)[0], -0.42))
    torch.set_num_threads(threads)
    return rows
