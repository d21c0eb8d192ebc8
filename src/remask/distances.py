"""Distances: the `d` of the equation. Each compares rows of predictions with rows of targets and averages over P."""

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from remask.targets.gather import gather, offset

Rows: TypeAlias = Float[Tensor, "*rows P"]
Distance: TypeAlias = Callable[[Rows, Num[Tensor, "*rows T"]], Float[Tensor, "*rows"]]
"""Targets are vectors of the same length, T = P, or one id each, T = 1."""


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


def info_nce(
    prediction: Float[Tensor, "B 1 P"], target: Float[Tensor, "B 1 2P"], temperature: float = 0.2
) -> Float[Tensor, "B 1"]:
    """Cross-entropy over the batch that tells an image's positive from the other images (MIM-Refiner, 2402.10093).

    Rows 2i and 2i + 1 are two crops of image i. A target holds two unit vectors: the positive, and the image's own
    vector, with which it is a negative of the other images' crops of the same place. Logits are cosines over the
    temperature. The own vectors of all processes are gathered.
    """
    z = F.normalize(prediction[:, 0], dim=-1)
    positive, own = target[:, 0].chunk(2, dim=-1)
    keys, first = gather(own), offset(own) // 2
    losses = []
    for crop in (0, 1):
        rows, others = z[crop::2], keys[crop::2]
        image = first + torch.arange(len(rows), device=z.device)
        with full_precision(z.device):
            logits = rows @ others.T
        logits = logits.scatter(1, image[:, None], (rows * positive[crop::2]).sum(1, keepdim=True)) / temperature
        losses.append(F.cross_entropy(logits, image, reduction="none"))
    return torch.stack(losses, dim=1).flatten().unsqueeze(1)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context in which products of matrices are not rounded by autocast, which "meta" does not have."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


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


def described(distance: Any) -> str:
    """`squared`, `smooth-l1 β=2`: the function's name and its parameters, fixed by `partial` or by default."""
    function, fixed = (distance.func, distance.keywords) if isinstance(distance, partial) else (distance, {})
    parameters = inspect.signature(function).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not p.empty} | fixed
    greek = {"beta": "β"}
    return " ".join([function.__name__.replace("_", "-"), *(f"{greek.get(k, k)}={v:g}" for k, v in values.items())])


__all__ = [
    "Distance", "cosine", "cross_entropy", "described", "full_precision", "info_nce", "l1", "l1_unit", "pair_ranking",
    "smooth_l1", "smooth_l1_with", "squared", "squared_unit",
]  # fmt: skip
