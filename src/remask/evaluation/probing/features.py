"""Frozen features: one vector per image, from a backbone or from raw pixels."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from remask.backbones import Backbone, class_tokens
from remask.errors import UserError
from remask.evaluation.sharing import rows_of_all
from remask.types import Features, Images

Pool = Literal["mean", "cls"]
UNITS = {torch.uint8: 255, torch.uint16: 65535}
PIXEL_VALUES = 3072
"""Maximum number of pixel values per image used as features: those of a CIFAR image."""


class Labelled(Protocol):
    """A batch: images, and their class numbers if the source has any."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor | None: ...


Describe = Callable[[Images], Float[Tensor, "B D"]]
Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, text) during long work."""
Collected = tuple[dict[str, Float[Tensor, "n D"]], Int[Tensor, "n"] | None]


def extract(
    backbone: Backbone,
    batches: Iterable[Labelled],
    *,
    layer: int = -1,
    pool: Pool = "mean",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, "n D"], Int[Tensor, "n"] | None]:
    """Features [n, D] of whole images, float32 on the CPU, and their labels if every batch has them.

    layer   index of the block; -1 is the end, after the final norm
    pool    "mean" over the patch tokens, without prefix tokens, or the class token ("cls"), the mean of several
    device  of the images; None: the backbone's
    dtype   of autocast; None: no autocast
    The backbone is in evaluation mode during the pass. Raises UserError for "cls" without such a token, or no image.
    """
    describe = reader(backbone, layer=layer, pool=pool, device=device, dtype=dtype)
    features, labels = collect({"backbone": describe}, {"backbone": backbone}, batches)
    return features["backbone"], labels


def pixels(
    batches: Iterable[Labelled], side: int | None = None
) -> tuple[Float[Tensor, "n D"], Int[Tensor, "n"] | None]:
    """Raw pixels of 0..1 as features [n, D], and labels; see `flat`."""
    features, labels = collect({"pixels": lambda images: flat(images, side)}, {}, batches)
    return features["pixels"], labels


def reader(
    backbone: Backbone,
    *,
    layer: int = -1,
    pool: Pool = "mean",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Describe:
    """The function images -> features that `extract` applies to every batch, of all processes' images."""
    check_pool(backbone, pool)
    encode = frozen(backbone, (layer,), device=device, dtype=dtype)
    return rows_of_all(lambda images: pooled(encode(images)[layer], pool, class_tokens(backbone)).cpu())


def frozen(
    backbone: Backbone,
    layers: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Callable[[Images], dict[int, Features]]:
    """The function images -> {layer: features of the unmasked images}, on the backbone's device."""
    for layer in layers:
        if not -1 <= layer < backbone.depth:
            raise UserError(f"layer {layer} does not exist: blocks are 0 to {backbone.depth - 1}, and -1 is the end")
    target_device = torch.device(device) if device is not None else next(backbone.network.parameters()).device

    def encode(images: Images) -> dict[int, Features]:
        with torch.autocast(target_device.type, dtype=dtype) if dtype else nullcontext():
            return backbone.encode(backbone.embed(images.to(target_device)), layers=tuple(layers))

    return encode


def pooled(features: Features, pool: Pool, class_tokens: int = 1) -> Float[Tensor, "R D"]:
    """One float32 vector per image: the mean of its patch tokens, or its class token, the mean of several."""
    chosen = features.tokens if pool == "mean" else features.prefix[:, :class_tokens]
    return chosen.float().mean(1)


def check_pool(backbone: Backbone, pool: Pool) -> None:
    """Raise UserError for "cls" without such a token."""
    if pool == "cls" and backbone.prefix < 1:
        raise UserError('pool "cls" needs a class token, and this backbone has no prefix token; use pool "mean"')


def flat(images: Images, side: int | None = None) -> Float[Tensor, "B D"]:
    """Pixel values of 0..1, area-averaged to at most 3072 values per image (and at most `side` pixels per side)."""
    (c, h, w), values = images.shape[1:], images.float() / UNITS.get(images.dtype, 1)
    shrink = min(1.0, math.sqrt(PIXEL_VALUES / (c * h * w)), (side or max(h, w)) / max(h, w))
    if shrink < 1:
        values = F.adaptive_avg_pool2d(values, (max(1, int(h * shrink + 1e-9)), max(1, int(w * shrink + 1e-9))))
    return values.flatten(1).cpu()


def collect(
    describers: Mapping[str, Describe], backbones: Mapping[str, object], batches: Iterable[Labelled]
) -> Collected:
    """({name: features}, labels) of several describers in one pass over the images. Raises UserError for no image."""
    rows: dict[str, list[Tensor]] = {name: [] for name in describers}
    labels: list[Tensor | None] = []
    with torch.inference_mode(), evaluating(backbones.values()):
        for batch in batches:
            for name, describe in describers.items():
                rows[name].append(describe(batch.images))
            labels.append(batch.labels)
    if not labels:
        raise UserError("there is no image to extract features of: the source gave no batch")
    known = [chunk.cpu().long() for chunk in labels if chunk is not None]
    # clone: autograd does not accept inference tensors
    features = {name: torch.cat(chunks).clone() for name, chunks in rows.items()}
    return features, torch.cat(known) if len(known) == len(labels) else None


@contextmanager
def evaluating(chunks: Iterable[object]) -> Iterator[None]:
    """Context in which all modules are in evaluation mode; each is restored to its own mode afterwards."""
    roots = [chunk if isinstance(chunk, nn.Module) else getattr(chunk, "network", None) for chunk in chunks]
    modes = {module: module.training for root in roots if isinstance(root, nn.Module) for module in root.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


__all__ = [
    "Describe",
    "Labelled",
    "Pool",
    "Progress",
    "check_pool",
    "collect",
    "evaluating",
    "extract",
    "flat",
    "frozen",
    "pixels",
    "pooled",
    "reader",
]
