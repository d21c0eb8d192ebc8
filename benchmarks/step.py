"""What a training step costs: forward GFLOP by the flop counter, and time(K) / time(1) of whole steps.

FLOPs are exact. Times are process CPU seconds on one thread, K and 1 interleaved round by round; the ratio counts.
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
    """Forward, backward and AdamW of a ViT-S/16 with K disjoint views of a batch of noise."""

    def __init__(self, views: int) -> None:
        names = {"backbone.name": "vit_small_patch16_224", "dm.views": views, "method.decoder_depth": 4}
        self.method: Method = build_method(load_recipe("mae-dmjd-vit-b", names, environment={}))
        self.optimizer = adamw(parameter_groups(self.method.named_parameters(), 0.05), 1e-4, (0.9, 0.95))
        self.images = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8, generator=generator(0))

    def seconds(self) -> float:
        began = time.process_time()
        self.method(self.images)["total"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - began


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
    one, *more = (Step(views) for views in (1, 2, 4))
    for step in (one, *more):
        step.seconds()
    times = [[step.seconds() for step in (one, *more)] for _ in range(ROUNDS)]
    for i, views in enumerate((2, 4), start=1):
        ratios = sorted(row[i] / row[0] / views for row in times)
        rows.append(
            {
                "name": f"step time, K = {views} against K times K = 1, ViT-S",
                "ratio": statistics.median(ratios),
                "spread": (ratios[0], ratios[-1]),
                "bar": -1.15,
                "unit": "x",
            }
        )
    torch.set_num_threads(threads)
    return rows
