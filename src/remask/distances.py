"""Distances: the `d` of the equation. Each compares rows of predictions with rows of targets and averages over P.

One that is marked `across_batch` compares the rows of different pictures: it receives those of the whole batch, of all
processes, as [V, B, R, P], and the batch is never cut into micro-batches.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

Rows: TypeAlias = Float[Tensor, "*rows P"]
Distance: TypeAlias = Callable[[Rows, Num[Tensor, "*rows T"]], Float[Tensor, "*rows"]]
"""Targets are vectors of the same length, T = P, or one id each, T = 1."""

D = TypeVar("D", bound=Distance)


def across_batch(distance: D) -> D:
    """Mark a distance as one that compares pictures of a batch with one another, on [V, B, R, P] of all processes."""
    distance.across_batch = True  # type: ignore[attr-defined]
    return distance


def is_across_batch(distance: Any) -> bool:
    """Whether a distance, perhaps with parameters fixed by `partial`, is marked so."""
    return getattr(distance.func if isinstance(distance, partial) else distance, "across_batch", False)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Context without autocast, for numbers that are ranked or choose an id: in bf16 many would be equal.

    The "meta" device has no autocast.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def squared(prediction: Rows, target: Rows) -> Float[Tensor, "*rows"]:
    """Squared error (MAE, MaskFeat, ConvMAE, FastMIM)."""
    return (prediction - target).square().mean(-1)


def l1(prediction: Rows, target: Rows) -> Float[Tensor, "*rows"]:
    """Absolute error (SimMIM)."""
    return (prediction - target).abs().mean(-1)


def l1_unit(prediction: Rows, target: Rows) -> Float[Tensor, "*rows"]:
    """Absolute error of the two brought to unit length (DMAE, 2208.12256; the scaling is its official code's)."""
    return l1(F.normalize(prediction, dim=-1), F.normalize(target, dim=-1))


def squared_unit(prediction: Rows, target: Rows) -> Float[Tensor, "*rows"]:
    """Squared error of the two brought to unit length (an option of DMAE's official code)."""
    return squared(F.normalize(prediction, dim=-1), F.normalize(target, dim=-1))


def smooth_l1(prediction: Rows, target: Rows, beta: float = 2.0) -> Float[Tensor, "*rows"]:
    """d²/2β below β, |d| - β/2 from there on (DMJD Eq. (5): β = 2)."""
    return F.smooth_l1_loss(prediction, target, beta=beta, reduction="none").mean(-1)


def smooth_l1_with(beta: float) -> Distance:
    """`smooth_l1` at another β."""
    return partial(smooth_l1, beta=beta)


def cosine(prediction: Rows, target: Rows) -> Float[Tensor, "*rows"]:
    """One minus the cosine of the angle between the two vectors."""
    return 1 - F.cosine_similarity(prediction, target, dim=-1)


def cross_entropy(prediction: Rows, target: Int[Tensor, "*rows 1"]) -> Float[Tensor, "*rows"]:
    """Minus the log of the probability given to the target id; P is the vocabulary (BEiT, 2106.08254, Eq. 2)."""
    logits = prediction.reshape(-1, prediction.shape[-1])
    return F.cross_entropy(logits, target.flatten().long(), reduction="none").view(prediction.shape[:-1])


@across_batch
def info_nce(
    prediction: Float[Tensor, "V B 1 P"], target: Float[Tensor, "V B 1 _"], temperature: float = 0.2
) -> Float[Tensor, "V B"]:
    """Cross-entropy over the batch that tells an image's positive from the other images (MIM-Refiner, 2402.10093).

    Rows 2i and 2i + 1 are two crops of image i. A target holds two unit vectors: the positive, and the image's own
    vector, with which it is a negative of the other images' crops of the same place. Logits are cosines over the
    temperature.
    """
    z = F.normalize(prediction.squeeze(-2), dim=-1)
    positive, own = target.squeeze(-2).chunk(2, dim=-1)
    z, positive, own = (x.unflatten(1, (-1, 2)).transpose(1, 2) for x in (z, positive, own))  # V, crop, image, P
    with full_precision(z.device):
        logits = z @ own.mT
    image = torch.eye(z.shape[2], dtype=torch.bool, device=z.device)
    logits = torch.where(image, (z * positive).sum(-1, keepdim=True), logits) / temperature
    losses = torch.logsumexp(logits, -1) - logits.diagonal(dim1=-2, dim2=-1)
    return losses.transpose(1, 2).flatten(1)


def pair_ranking(
    prediction: Float[Tensor, "*rows R 1"], target: Float[Tensor, "*rows R 1"]
) -> Float[Tensor, "*rows R"]:
    """Of row i, the mean over the other rows j of -[t_i > t_j] log σ(p_i - p_j) - [t_i < t_j] log(1 - σ(p_i - p_j)).

    Whose target is higher is learned, and not by how much (HPM, 2304.05919). Takes R² numbers; equal targets add 0.
    """
    p, t = prediction.squeeze(-1), target.squeeze(-1)
    order = (t.unsqueeze(-1) - t.unsqueeze(-2)).sign()
    ranked = F.softplus(-order * (p.unsqueeze(-1) - p.unsqueeze(-2)))  # log(1 - σ(x)) = log σ(-x)
    return (ranked * order.abs()).sum(-1) / max(p.shape[-1] - 1, 1)


@across_batch
def uniformity(prediction: Float[Tensor, "V B 1 P"], target: Float[Tensor, "V B 1 _"]) -> Float[Tensor, "V B"]:
    """Squared cosine of a picture's row with another picture's, mean over the others (U-MAE, 2210.08344).

    Pairs are of different pictures in the same view; there is no target. 0 for a single picture, which has no other.
    # official: i = j is a pair too, which adds a constant to the loss
    """
    rows = F.normalize(prediction.squeeze(-2), dim=-1)
    with full_precision(rows.device):
        squares = (rows @ rows.mT).square()
    count = squares.shape[-1]
    itself = torch.eye(count, dtype=torch.bool, device=rows.device)
    return squares.masked_fill(itself, 0.0).sum(-1) / max(count - 1, 1)


def described(distance: Any) -> str:
    """`squared`, `smooth-l1 β=2`: the function's name and its parameters, fixed by `partial` or by default."""
    function, fixed = (distance.func, distance.keywords) if isinstance(distance, partial) else (distance, {})
    parameters = inspect.signature(function).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not p.empty} | fixed
    greek = {"beta": "β"}
    return " ".join([function.__name__.replace("_", "-"), *(f"{greek.get(k, k)}={v:g}" for k, v in values.items())])


__all__ = [
    "Distance", "across_batch", "cosine", "cross_entropy", "described", "full_precision", "info_nce", "is_across_batch",
    "l1", "l1_unit", "pair_ranking", "smooth_l1", "smooth_l1_with", "squared", "squared_unit", "uniformity",
]  # fmt: skip
