"""Attentive probe: a learned query attends to the frozen patch tokens of an image, and a linear layer classifies it.

As CAE introduced it for masked image modeling (2202.03026), and as AIM (2401.08541) and V-JEPA (2404.08471) use it:
cross-attention with several heads, BatchNorm without affine, a linear classifier. A mean over tokens undervalues
networks whose information is in their patch tokens (Psomas et al., 2506.10178). Rate and decay are chosen on a held-out
part of the TRAINING images, never on the test images.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from remask.backbones import Backbone
from remask.errors import UserError
from remask.evaluation.probing.attentive_head import AttentiveHead, heads_of
from remask.evaluation.probing.fast_probe import Factory, checked, numbered
from remask.evaluation.probing.features import Labelled, Progress, evaluating, frozen
from remask.evaluation.probing.logistic_regression import stratified
from remask.evaluation.probing.memory import Memory
from remask.evaluation.sharing import rows_of_all
from remask.seeds import generator, seeded
from remask.training.optim import Schedule, adamw, parameter_groups, set_lr
from remask.types import Images


@dataclass(frozen=True)
class Settings:
    """Settings of the attentive probe.

    layer      block whose tokens are read; -1: the end, after the final norm
    heads      None: width / 64, at least 4, reduced until it divides the width
    batch      images per step; fewer if an epoch would have less than 20 steps
    rates, decays   the grid of AdamW's learning rates and weight decays
    held_out   share of each class's training images that selects from the grid; the final fit uses all images
    ram_gb     size in GB up to which half-precision tokens are in memory; larger ones are in a temporary file
    disk_gb    maximum size in GB of that file, in `folder` (None: the system's)
    """

    layer: int = -1
    heads: int | None = None
    epochs: int = 20
    batch: int = 256
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    decays: tuple[float, ...] = (1e-2, 1e-1)
    held_out: float = 0.2
    seed: int = 0
    ram_gb: float = 4.0
    disk_gb: float = 32.0
    folder: Path | None = None


DEFAULT = Settings()


class Tokens(NamedTuple):
    """Layer-normed tokens of images in half precision, in memory or mapped from a file, and the images' labels."""

    x: Float[Tensor, "n N D"]
    y: Int[Tensor, "n"] | None


def attentive_probe(
    backbones: Mapping[str, Backbone],
    train_batches: Factory,
    val_batches: Factory,
    counts: tuple[int, int],
    settings: Settings = DEFAULT,
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    memory: Memory | None = None,
) -> dict[str, Any]:
    """Test accuracy in percent for each backbone, {"top1": trained, "untrained": …}, and the protocol.

    counts     numbers of training and test images, to allocate tokens; unusable images may reduce them
    dtype      of autocast; None: no autocast
    progress   called as progress(fits done, total, text)
    memory     scores of an earlier, killed call, which are not computed again; each depends on its settings alone.
               Scores of this call are added
    Raises UserError for labels that are missing or unknown, one class, or tokens that exceed memory and disk.
    """
    say = progress or (lambda done, total, words: None)
    fit_count = len(settings.rates) * len(settings.decays) + 1
    results: dict[str, Any] = {}
    for number, (name, backbone) in enumerate(backbones.items()):
        done, total = number * fit_count, fit_count * len(backbones)
        say(done, total, f"{name}: tokens of {sum(counts)} images")
        with room(settings.folder) as folder:
            share = counts[0] / max(sum(counts), 1)
            train = cache(backbone, train_batches(), counts[0], settings, folder / "train", share, dtype)
            known = checked(train.y)
            test = cache(backbone, val_batches(), counts[1], settings, folder / "val", 1 - share, dtype)
            train_y, test_y = numbered(known, test.y)
            steps = _Steps(say, done, total, name)
            device = next(backbone.network.parameters()).device
            scores = memory or Memory({})
            pair = Tokens(train.x, train_y), Tokens(test.x, test_y)
            results[name] = _chosen(*pair, settings, device, steps, scores.of(name))
    shape = {"images": {"train": len(train_y), "val": len(test_y)}, "classes": len(train_y.unique())}
    accuracies = {name: result.pop("accuracy") for name, result in results.items()}
    return {**accuracies, "protocol": {**_protocol(settings), **shape, "chosen": results}}


class _Steps:
    """Counts fits, and reports each one to `progress`."""

    def __init__(self, say: Progress, done: int, total: int, name: str) -> None:
        self.say, self.done, self.total, self.name = say, done, total, name

    def __call__(self, words: str) -> None:
        self.say(self.done, self.total, f"{self.name}: {words}")
        self.done += 1


def _chosen(
    train: Tokens, test: Tokens, settings: Settings, device: torch.device, steps: _Steps, memory: Memory
) -> dict[str, Any]:
    """Test result of the rate and decay that are best on held-out training images: an entry of protocol "chosen".

    {"accuracy": in percent, "lr", "weight_decay", "held_out_accuracy": of the grid, "held_out", "heads", "tokens"}
    """
    assert train.y is not None
    assert test.y is not None
    held_out = stratified(train.y, settings.held_out, settings.seed)
    fit_rows, queries = (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
    grid = [(rate, decay) for rate in settings.rates for decay in settings.decays]
    best, accuracies = grid[len(grid) // 2], dict[str, float]()
    if len(queries):
        scores = {}
        for rate, decay in grid:
            steps(f"rate {rate:g}, decay {decay:g}")
            fit_and_score = partial(_scored, train, fit_rows, train, queries, rate, decay, settings, device)
            scores[rate, decay] = memory.recall(f"{rate:g} {decay:g}", fit_and_score)
            accuracies[f"lr {rate:g}, weight decay {decay:g}"] = round(scores[rate, decay][0], 2)
        best = max(grid, key=lambda pair: scores[pair])
    steps(f"all training images, rate {best[0]:g}, decay {best[1]:g}")
    everything = torch.arange(len(train.y)), test, torch.arange(len(test.y))
    accuracy, _ = memory.recall("all", partial(_scored, train, *everything, *best, settings, device))
    return {
        "accuracy": round(accuracy, 2),
        "lr": best[0],
        "weight_decay": best[1],
        "held_out_accuracy": accuracies,
        "held_out": len(queries),
        "heads": heads_of(train.x.shape[-1], settings.heads),
        "tokens": list(train.x.shape[1:]),
    }


def _scored(
    train: Tokens, known: Int[Tensor, "k"], queries: Tokens, rows: Int[Tensor, "m"], rate: float, decay: float,
    settings: Settings, device: torch.device,
) -> tuple[float, float]:  # fmt: skip
    """`score`, on rows of `queries`, of a head trained on the rows `known` of `train`."""
    return score(fit(train, known, rate, decay, settings, device), queries, rows)


def fit(
    tokens: Tokens, rows: Int[Tensor, "k"], rate: float, decay: float, settings: Settings, device: torch.device
) -> AttentiveHead:
    """A head trained on `rows` of the tokens by AdamW: warm-up for a tenth of the epochs, then a cosine to 0.

    rate, decay   peak learning rate and weight decay
    """
    assert tokens.y is not None
    width, classes = tokens.x.shape[-1], int(tokens.y.max()) + 1
    with seeded(settings.seed, "attentive probe"):
        head = AttentiveHead(width, classes, heads_of(width, settings.heads)).to(device).train()
    optimizer = adamw(parameter_groups(head.named_parameters(), decay), rate, (0.9, 0.999))
    size = min(len(rows), max(16, min(settings.batch, len(rows) // 20)))
    schedule = Schedule(settings.epochs, len(rows) // size, rate, settings.epochs / 10)
    for step in range(schedule.steps):
        if step % schedule.steps_per_epoch == 0:
            order = torch.randperm(len(rows), generator=generator(settings.seed, "order", step))
            steps = iter(rows[order].split(size))
        batch = next(steps)
        loss = F.cross_entropy(head(_batch_of(tokens, batch, device)), tokens.y[batch].to(device))
        set_lr(optimizer, schedule.lr_at(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return head.eval()


@torch.no_grad()
def score(head: AttentiveHead, tokens: Tokens, rows: Int[Tensor, "k"]) -> tuple[float, float]:
    """(accuracy in percent, negative cross-entropy) on `rows` of the tokens; higher is better for both."""
    assert tokens.y is not None
    device = head.query.device
    logits = torch.cat([head(_batch_of(tokens, chunk, device)).cpu() for chunk in rows.split(512)])
    y = tokens.y[rows]
    return 100 * float((logits.argmax(1) == y).double().mean()), -float(F.cross_entropy(logits, y))


def _batch_of(tokens: Tokens, rows: Int[Tensor, "k"], device: torch.device) -> Float[Tensor, "k N D"]:
    return tokens.x[rows].to(device).float()


@contextmanager
def room(folder: Path | None) -> Iterator[Path]:
    """Context with a temporary folder for files of tokens."""
    with tempfile.TemporaryDirectory(prefix="remask-tokens-", dir=folder) as path:
        yield Path(path)


def cache(
    backbone: Backbone,
    batches: Iterable[Labelled],
    count: int,
    settings: Settings,
    file: Path,
    share: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tokens:
    """The layer-normed patch tokens of up to `count` images at settings.layer, in half precision.

    file    holds the tokens if they exceed settings.ram_gb
    share   of the budgets settings.ram_gb and settings.disk_gb
    Raises UserError if they exceed the budget on disk, or for no images.
    """
    see, cached, start = frozen(backbone, (settings.layer,), dtype=dtype), torch.empty(0), 0
    labels: list[Tensor | None] = []

    def normed(images: Images) -> Float[Tensor, "B N D"]:
        tokens = see(images)[settings.layer].tokens.float()
        return F.layer_norm(tokens, tokens.shape[-1:]).half().cpu()

    describe = rows_of_all(normed)
    with torch.inference_mode(), evaluating([backbone]):
        for batch in batches:
            tokens = describe(batch.images)
            if not labels:
                cached = _allocate((count, *tokens.shape[1:]), settings, file, share)
            cached[start : start + len(tokens)] = tokens
            start += len(tokens)
            labels.append(batch.labels)
    if not labels:
        raise UserError("there is no image to take tokens of: the source gave no batch")
    known = [chunk.cpu().long() for chunk in labels if chunk is not None]
    return Tokens(cached[:start], torch.cat(known) if len(known) == len(labels) else None)


def _allocate(shape: tuple[int, ...], settings: Settings, file: Path, share: float) -> Float[Tensor, "n N D"]:
    """An empty float16 tensor, in memory or mapped from a file; allocated outside inference mode. Raises UserError."""
    size = math.prod(shape)
    gb = 2 * size / 1e9
    with torch.inference_mode(False):
        if gb <= settings.ram_gb * share:
            return torch.empty(shape, dtype=torch.float16)
        if gb <= settings.disk_gb * share:
            return torch.from_file(str(file), shared=True, size=size, dtype=torch.float16).view(shape)
    raise UserError(
        f"the {shape[1]} tokens of {shape[0]} images take {gb:.1f} GB, more than the {settings.disk_gb * share:.1f} GB "
        "allowed on disk: use fewer images (--limit), a smaller image size, or allow more"
    )


def _protocol(settings: Settings) -> dict[str, Any]:
    return {
        "head": "cross-attention of one learned query, BatchNorm without affine, linear",
        "papers": "CAE 2202.03026, AIM 2401.08541, V-JEPA 2404.08471",
        "features": {"layer": settings.layer, "tokens": "patch tokens, layer-normed, float16", "crops": "centre, once"},
        "optimizer": "AdamW (0.9, 0.999), cosine to 0, a tenth of the epochs warms up",
        "epochs": settings.epochs,
        "batch": settings.batch,
        "grid": {"lr": list(settings.rates), "weight_decay": list(settings.decays)},
        "chosen_on": f"a share of {settings.held_out:g} of each class's training images; the last fit has them all",
        "seed": settings.seed,
    }


__all__ = [
    "DEFAULT", "AttentiveHead", "Settings", "Tokens", "attentive_probe", "cache", "fit", "heads_of", "score",
]  # fmt: skip
