"""Converts a fine-tuned classifier to timm's network with `num_classes`, the same pool and norm, and its weights.

ours                              timm
the mean of patch tokens, normed  global_pool="avg" with fc_norm (ViT, BEiT), no final norm
the class token                   global_pool="token"
the normed map, averaged          the network's own head (Swin, ResNet, PVTv2 …)

The equality of both is tested on images of noise, and not assumed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from remask.backbones.beit import BeitViT
from remask.backbones.vit import ViT
from remask.downstream.finetune.classifier import Classifier
from remask.evaluation.probing.features import evaluating
from remask.types import Size

TOLERANCE = 1e-4
"""Maximum difference between timm's logits and ours, relative to the largest logit."""


class TimmClassifier(NamedTuple):
    """`timm.create_model(name, **arguments)` loads `state` strictly."""

    name: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]


def as_timm(classifier: Classifier, size: Size) -> TimmClassifier | None:
    """The timm classifier for images of `size` pixels (h, w); None if timm lacks the network or its logits differ."""
    origin = getattr(classifier.backbone, "origin", None)
    if origin is None or not timm.is_model(origin[0]):
        return None
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, classifier.backbone.channels, *size, generator=generator)  # floats: normalised already
    classifier = classifier.cpu()
    with torch.no_grad(), evaluating([classifier]):
        expected = classifier.logits(images)
    for arguments in _candidates(classifier, origin[1]):
        model = _create_or_none(origin[0], arguments)
        state = None if model is None else _state(classifier, model)
        if model is None or state is None:
            continue
        model.load_state_dict(state)
        with torch.no_grad():
            logits = model.eval()(images)
        if logits.shape == expected.shape and torch.allclose(
            logits, expected, atol=TOLERANCE * float(expected.abs().max())
        ):
            return TimmClassifier(origin[0], arguments, state)
    return None


def _candidates(classifier: Classifier, own: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields candidate arguments of timm's model, the most likely first."""
    known = {**own, "num_classes": classifier.classes}
    plain = {key: value for key, value in known.items() if key not in ("global_pool", "fc_norm")}
    pool = {"global_pool": "token" if classifier.pool == "cls" else "avg"}
    if isinstance(classifier.backbone, ViT):
        yield {**plain, **pool, "fc_norm": classifier.fc_norm is not None}
    elif isinstance(classifier.backbone, BeitViT):
        yield {**plain, **pool}
    else:
        yield {**plain, **pool}
        yield plain


def _create_or_none(name: str, arguments: dict[str, Any]) -> Any:
    """timm's model; None if it does not take the arguments."""
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, AssertionError, RuntimeError, ValueError):
        return None


def _state(classifier: Classifier, model: Any) -> dict[str, Tensor] | None:
    """The weights under timm's names; None if they do not cover timm's state dict with equal shapes."""
    head = next((name for name, module in model.named_modules() if module is model.get_classifier()), None)
    if head is None or not isinstance(model.get_classifier(), nn.Linear):
        return None
    expected, state = model.state_dict(), dict(classifier.backbone.network.state_dict())
    state |= {f"{head}.{name}": tensor for name, tensor in classifier.head.state_dict().items()}
    if classifier.fc_norm is not None:
        state |= {f"fc_norm.{name}": tensor for name, tensor in classifier.fc_norm.state_dict().items()}
    selected = {name: tensor.detach().contiguous() for name, tensor in state.items() if name in expected}
    matches = selected.keys() == expected.keys() and all(
        selected[name].shape == expected[name].shape for name in expected
    )
    return selected if matches else None


__all__ = ["TimmClassifier", "as_timm"]
