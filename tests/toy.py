"""A trainer of a toy that knows nothing of images, for the tests of the loop."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from remask.training.cost import Ledger
from remask.training.optim import Schedule, adamw, parameter_groups
from remask.training.progress import Lines
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime
from remask.training.trainer import Trainer

PER_EPOCH, BATCH = 5, 8


class Batch(NamedTuple):
    images: Tensor


class Batches:
    """Noise that is a function of (epoch, position), as the loader's pictures are."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return PER_EPOCH

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.asked.append((epoch, start))
        for at in range(start, PER_EPOCH):
            yield Batch(torch.randn(BATCH, 6, generator=Generator().manual_seed(100 * epoch + at)))


class Noise(NamedTuple):
    """What the toy draws for a batch."""

    values: Tensor

    def split(self, parts: int) -> list["Noise"]:
        return [Noise(part) for part in self.values.tensor_split(parts)]


class Toy(nn.Module):
    """Predicts drawn noise; with dropout, so that the global generator matters too. `at` runs code at a step."""

    def __init__(self, dropout: float = 0.3, at: dict[int, Callable[[], object]] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 6))
        self.at, self.calls, self.poison = at or {}, 0, False

    def draw(self, images: Tensor, generator: Generator) -> Noise:
        return Noise(torch.randn(len(images), 6, generator=generator))

    def forward(self, images: Tensor, draw: Noise) -> dict[str, Tensor]:
        self.calls += 1
        if act := self.at.get(self.calls):
            act()
        error = (self.body(images) - draw.values).square().mean(1)
        loss = error.mean() * (math.nan if self.poison else 1)
        return {"masked": loss, "total": 2 * loss}


def trainer(path: Path, model: Toy | None = None, *, make: bool = True, **keys: Any) -> Trainer:
    """A trainer of the toy in a new run, or in the one that is there. Keys: those of Schedule, hooks, seed."""
    run = RunFolder.create(path, "", {}) if make else RunFolder.open(path)
    model = model or Toy()
    optimizer = adamw(parameter_groups(model.named_parameters(), 0.05), 1.0, (0.9, 0.95))
    extra = {key: keys.pop(key) for key in ("hooks", "seed") if key in keys}
    settings: dict[str, Any] = {"epochs": 3, "lr": 0.05, "warmup_epochs": 1.0, "log_every": 1, **keys}
    schedule = Schedule(steps_per_epoch=PER_EPOCH, **settings)
    ledger = Ledger(PER_EPOCH * BATCH, 2, 0, 0.5)
    here = Runtime(torch.device("cpu"))
    return Trainer(model, Batches(), optimizer, schedule, here, run, ledger, tensorboard=False, **extra)


def train(made: Trainer) -> list[dict[str, Any]]:
    """Train to the end; the metrics."""
    made.train(Lines(made.schedule.steps, "toy", quiet=True))
    return made.run.metrics()


def losses(metrics: list[dict[str, Any]]) -> list[tuple[int, float, float, float]]:
    return [(line["step"], line["loss/total"], line["loss/masked"], line["lr"]) for line in metrics]


class Killed(BaseException):
    """Stands for kill -9: nothing that runs after it may save anything."""


def kill() -> None:
    raise Killed


def weights(made: Trainer) -> list[Tensor]:
    return [value.clone() for value in made.model.state_dict().values()]
