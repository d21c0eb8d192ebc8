"""Methods whose teacher is the student's moving average beside those they are judged by; CPU seconds of a step.

data2vec in 4 views against MAE in 4 views; refining on two crops against supervised training of all blocks on two
crops. Updates of the average and of the queue are in the step.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.apart import Maker, apart, rounds
from benchmarks.entrants import BETAS, DECAY, LR, Entrant, ours, row
from benchmarks.step import Settings, trained
from remask.build.pretraining import build_backbone
from remask.build.training import gflops_per_image
from remask.downstream.finetune.classifier import Classifier
from remask.recipe import load_recipe
from remask.training.optim import adamw, parameter_groups

VIEWS: Settings = {"dm.views": 4}
IN_FOUR: Settings = {**VIEWS, "dm.independent": False, "masking.pattern": "random", "masking.ratio": 0.75}
REFINER: Settings = {"refine.queue": 4096}
ROUNDS = 4


def supervised(recipe: str, batch: int) -> Entrant:
    """The recipe's backbone with a classifier of 1,000 classes, on noise of 8 bits; all of it is trained."""
    chosen = load_recipe(recipe, environment={})
    model = Classifier(build_backbone(chosen), 1000).train()
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *chosen.data.image_size), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 1000, (batch,), generator=random)

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(model.logits(images), labels)

    return Entrant(model, loss, adamw(parameter_groups(model.named_parameters(), DECAY), LR, BETAS))


def compared(what: str, one: Callable[[], Entrant], other: Callable[[], Entrant], bar: float) -> dict[str, object]:
    """A step of one over that of the other."""
    with apart({"one": Maker(one, keep=True), "other": Maker(other, keep=True)}) as entrants:
        measured = [{name: t.step_fused for name, t in seconds.items()} for seconds in rounds(entrants, ROUNDS)]
    return row(what, [t["one"] / t["other"] for t in measured], -bar)


def run() -> Iterator[dict[str, object]]:
    """All rows, as they are found."""
    usual = gflops_per_image(load_recipe("mae-dm-vit-b", VIEWS, environment={}))
    own = gflops_per_image(load_recipe("data2vec-vit-b", IN_FOUR, environment={}))
    yield {
        "name": "forward FLOPs, data2vec ViT-B, 4 views at .75, against MAE's",
        "ratio": own / usual, "bar": -1.1, "unit": "x",
    }  # fmt: skip
    yield compared(
        "step time, moving-average teacher, ViT-B K = 4, against MAE in 4 views",
        partial(trained, ours, "data2vec-vit-b", IN_FOUR, 2), partial(trained, ours, "mae-dm-vit-b", VIEWS, 2), 1.0,
    )  # fmt: skip
    yield compared(
        "step time, refiner, ViT-B, two crops of each image, against supervised on two crops",
        partial(trained, ours, "refiner-vit-b", REFINER, 8), partial(supervised, "refiner-vit-b", 8), 1.6,
    )  # fmt: skip
