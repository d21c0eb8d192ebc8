"""MAE's linear probe (2111.06377, table 10): BatchNorm without affine and a linear layer on frozen features, by LARS.

Features are recomputed from the frozen backbone each epoch, with a new crop of every image, or once (`cached`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from remask.backbones import Backbone, class_tokens
from remask.errors import UserError
from remask.evaluation.probing.fast_probe import Factory, checked, labelled, numbered
from remask.evaluation.probing.features import (
    Describe,
    Labelled,
    Progress,
    check_pool,
    collect,
    evaluating,
    frozen,
    pooled,
)
from remask.evaluation.sharing import rows_of_all
from remask.seeds import generator, seeded
from remask.training.optim import Lars, Schedule, learning_rate, set_lr
from remask.types import Images

Pool = Literal["mean", "cls", "gap"]
"""The probe's own "gap" is --global_pool of MAE, ConvMAE and DMJD: the mean before the final norm, then a fresh one."""
Epochs = Callable[[int], Iterable[Labelled]]
"""Batches of an epoch, by its number."""
Rows = tuple[Float[Tensor, "B D"], Int[Tensor, "B"]]

BATCH = 16384
STEPS = 20
"""Minimum number of steps per epoch; the batch shrinks for sets smaller than ImageNet."""
EPS = 1e-6
MOMENTUM, TRUST = 0.9, 1e-3
CROPS = "random resized crops (area 0.08 to 1) and flips, features recomputed each epoch"
CENTRE = "centre crops, features computed once (MAE: random crops, features recomputed each epoch)"


@dataclass(frozen=True)
class Settings:
    """MAE's, table 10; ViT-L and ViT-H take 50 epochs.

    base_lr   for batches of 256: the rate is base_lr · batch / 256
    batch     images per step; None: MAE's 16384 if that leaves 20 steps per epoch, else the power of two that does, at
              MAE's rate of 6.4: LARS moves a matrix by a share of its norm, so with the rate of a batch of 64 the few
              steps of a small set would hardly change the initial weights (digits: 29 % instead of 97 %)
    warmup    epochs of warm-up; None: a ninth, MAE's 10 of 90
    pool      "cls" or "mean" of the layer, or "gap"; None: "cls" if there is such a token, else "gap"
    cached    compute features once, from `train(0)`, which should give centre crops
    """

    epochs: int = 90
    base_lr: float = 0.1
    warmup: float | None = None
    batch: int | None = None
    pool: Pool | None = None
    layer: int = -1
    cached: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.batch is not None and self.batch < 2):
            raise UserError(f"{self.epochs} epochs in batches of {self.batch}: a linear probe needs at least 1 and 2")

    def batch_of(self, images: int) -> int:
        """Images per step for a training set of `images`."""
        fitting = 2 ** (max(images // STEPS, 16).bit_length() - 1)
        return min(self.batch or min(fitting, BATCH), images)

    def pool_of(self, backbone: Backbone) -> Pool:
        return self.pool or ("cls" if backbone.prefix else "gap")

    def schedule(self, images: int) -> Schedule:
        """The schedule for `images` training images: linear warm-up, then a cosine to 0."""
        warmup = self.epochs / 9 if self.warmup is None else self.warmup
        # official: the linear rule at any batch; here only at a requested one
        lr = learning_rate(self.base_lr, self.batch or BATCH)
        return Schedule(self.epochs, images // self.batch_of(images), lr, warmup)


MAE = Settings()


class LinearProbe:
    """The head, its optimizer and its progress, which can be saved and loaded between epochs.

    steps   number of steps done     history   {"epoch", "loss", "top1"} of each epoch
    """

    def __init__(
        self, width: int, classes: int, schedule: Schedule, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        with seeded(seed, "linear probe"):
            linear = nn.Linear(width, classes)
            nn.init.trunc_normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)
        # official: statistics of the 512 images of a GPU; here of all images of the step
        self.head = nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=EPS), linear).to(device)
        self.optimizer = Lars(self.head.parameters(), lr=0.0, weight_decay=0.0, momentum=MOMENTUM, trust=TRUST)
        self.schedule, self.steps = schedule, 0
        self.history: list[dict[str, float]] = []

    def step(self, x: Float[Tensor, "B D"], y: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Train one step on a batch of features; returns the loss before it."""
        self.head.train()
        set_lr(self.optimizer, self.schedule.lr_at(self.steps))
        loss = F.cross_entropy(self.head(x), y)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    @torch.no_grad()
    def score(self, x: Float[Tensor, "m D"], y: Int[Tensor, "m"]) -> dict[str, float]:
        """{"top1", "top5": in percent, "loss": mean cross-entropy}, with the running statistics of BatchNorm."""
        self.head.eval()
        logits = torch.cat([self.head(chunk) for chunk in x.split(8192)])
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == y[:, None]
        top = {f"top{k}": round(100 * float(hits[:, :k].any(1).double().mean()), 2) for k in (1, 5)}
        return {**top, "loss": round(float(F.cross_entropy(logits, y)), 6)}

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state as tensors and plain values, which torch.load reads with weights_only."""
        chunks = {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict()}
        return deepcopy({**chunks, "steps": self.steps, "history": self.history})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.history = state["steps"], list(state["history"])


def linprobe(
    backbone: Backbone,
    train: Epochs,
    val: Factory,
    labels: Int[Tensor, "n"] | None,
    settings: Settings = MAE,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    state: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train the probe on a frozen backbone, in evaluation mode throughout; {"top1", "top5", "loss", "history", …}.

    train      returns the batches of an epoch, of any size, in random order, which are joined to steps: `Loader.epoch`
               of a loader with ProbeCrop and drop_last=False; with `cached` the centre crops, called once
    val        returns batches of centre crops; their features are computed once
    labels     of all training images, which define the classes
    progress   called as progress(steps done, total, text) after every step
    keep       called with `LinearProbe.state_dict()` after each epoch; passed as `state`, the probe resumes there, with
               the same result if `train(e)` depends on e alone
    Raises UserError for missing labels, one class, unknown classes of `val`, or a pool that does not exist.
    """
    known, describe = checked(labels), describer(backbone, settings, dtype)
    classes, size = known.unique(), settings.batch_of(len(known))
    features, val_labels = collect({"val": describe}, {"val": backbone}, val())
    test = features["val"], numbered(known, val_labels)[1].to(features["val"].device)
    source = _cached(describe, backbone, train, settings.seed) if settings.cached else _fresh(describe, train)
    probe = LinearProbe(test[0].shape[1], len(classes), settings.schedule(len(known)), test[0].device, settings.seed)
    if state:
        probe.load_state_dict(state)
    with evaluating([backbone]):
        _train(probe, lambda epoch: joined(source(epoch), size, classes), test, progress, keep)
    counts = {"images": {"train": len(known), "val": len(test[1])}, "classes": len(classes)}
    protocol = {**_protocol(settings, backbone, probe.schedule, size), **counts}
    return {**probe.score(*test), "history": probe.history, "protocol": protocol}


def describer(backbone: Backbone, settings: Settings, dtype: torch.dtype | None = None) -> Describe:
    """The function images -> frozen features of the probe, without gradient, on the backbone's device."""
    pool = settings.pool_of(backbone)
    if pool != "gap":
        check_pool(backbone, pool)
    layer = backbone.depth - 1 if (pool, settings.layer) == ("gap", -1) else settings.layer
    encode = frozen(backbone, (layer,), dtype=dtype)

    def describe(images: Images) -> Float[Tensor, "B D"]:
        with torch.no_grad():
            x = pooled(encode(images)[layer], "mean" if pool == "gap" else pool, class_tokens(backbone))
            return F.layer_norm(x, x.shape[-1:], eps=EPS) if pool == "gap" else x

    return rows_of_all(describe)


def joined(
    chunks: Iterable[tuple[Float[Tensor, "_ D"], Int[Tensor, "_"]]], size: int, classes: Int[Tensor, "classes"]
) -> Iterator[Rows]:
    """Yields features and labels regrouped to `size` images per step, with class numbers without gaps.

    A remainder is dropped, unless there is no full step.
    """
    pending, has_step = list[Rows](), False
    for x, labels in chunks:
        pending.append((x, torch.searchsorted(classes, labels.cpu()).to(x.device)))
        while sum(len(y) for _, y in pending) >= size:
            all_x, all_y = torch.cat([x for x, _ in pending]), torch.cat([y for _, y in pending])
            yield all_x[:size], all_y[:size]
            pending, has_step = [(all_x[size:], all_y[size:])], True
    if pending and not has_step:
        yield torch.cat([x for x, _ in pending]), torch.cat([y for _, y in pending])


Labelling = Callable[[int], Iterator[Rows]]


def _fresh(describe: Describe, train: Epochs) -> Labelling:
    """A source of features that are recomputed in each epoch."""

    def source(epoch: int) -> Iterator[Rows]:
        for batch in train(epoch):
            yield describe(batch.images), labelled(batch.labels)

    return source


def _cached(describe: Describe, backbone: Backbone, train: Epochs, seed: int) -> Labelling:
    """A source of the same features in every epoch, in a new order."""
    features, labels = collect({"train": describe}, {"train": backbone}, train(0))
    x, y = features["train"], checked(labels)

    def source(epoch: int) -> Iterator[Rows]:
        order = torch.randperm(len(y), generator=generator(seed, "order", epoch))
        yield from zip(x[order.to(x.device)].split(1024), y[order].split(1024), strict=True)

    return source


def _train(
    probe: LinearProbe,
    steps: Labelling,
    test: Rows,
    progress: Progress | None,
    keep: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Train from the epoch that the probe has reached to the last."""
    epochs, steps_per_epoch = probe.schedule.epochs, probe.schedule.steps_per_epoch
    for epoch in range(len(probe.history), epochs):
        probe.steps, losses = epoch * steps_per_epoch, list[Tensor]()  # unusable images may shorten an epoch
        for x, y in islice(steps(epoch), steps_per_epoch):
            losses.append(probe.step(x, y))
            if progress:
                progress(
                    probe.steps, epochs * steps_per_epoch, f"epoch {epoch + 1}/{epochs} | loss {float(losses[-1]):.4f}"
                )
        if not losses:
            raise UserError(f"there is no image to train the probe on: epoch {epoch + 1} of the source gave no batch")
        score, loss = probe.score(*test), float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise UserError(f"the probe's loss is {loss} in epoch {epoch + 1}: lower its base_lr")
        probe.history.append({"epoch": epoch + 1, "loss": round(loss, 6), "top1": score["top1"]})
        if keep:
            keep(probe.state_dict())


def _protocol(settings: Settings, backbone: Backbone, schedule: Schedule, size: int) -> dict[str, Any]:
    return {
        "paper": "MAE, arXiv 2111.06377, table 10",
        # official: the best of all epochs by validation accuracy; here the last
        "reported": "after the last epoch",
        "head": f"BatchNorm without affine (eps {EPS:g}), linear",
        "features": {"layer": settings.layer, "pool": settings.pool_of(backbone), "mode": "frozen, evaluation"},
        "crops": CENTRE if settings.cached else CROPS,
        "cached": settings.cached,
        "optimizer": f"LARS, momentum {MOMENTUM}, trust {TRUST}, weight decay 0",
        "base_lr": settings.base_lr,
        "lr": schedule.lr,
        "batch": size,
        "epochs": schedule.epochs,
        "warmup_epochs": schedule.warmup_epochs,
        "steps_per_epoch": schedule.steps_per_epoch,
        "seed": settings.seed,
    }


__all__ = ["CENTRE", "CROPS", "MAE", "LinearProbe", "Settings", "describer", "joined", "linprobe"]
