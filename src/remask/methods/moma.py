"""MOMA: Distill from Self-Supervised Teachers (Yao et al., arXiv 2302.02089)."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from remask.backbones import Backbone
from remask.color_jitter import BatchColorJitter
from remask.distances import smooth_l1_with
from remask.errors import UserError
from remask.heads import ProjectionHead
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods.defaults import masking_of
from remask.methods.dmae import region_of
from remask.methods.mae import initialise, initialise_tokens
from remask.targets import Target


def moma(
    backbone: Backbone,
    masking: Masking | float,
    teachers: Sequence[Target],
    *,
    weights: Sequence[float] | None = None,
    learned: bool = False,
    head: Literal["linear", "mlp"] = "linear",
    beta: float = 1.0,
    layer: int = -1,
    jitter: float = 0.0,
    pretrained: bool = False,
) -> Method:
    """f drops the masked tokens; per teacher a head predicts its normalised features; smooth-l1; all encoded tokens.

    As published: ratio .9, teachers that see the whole image, their losses averaged; no decoder.
    teachers     features of frozen networks, normalised: `TokenTeacher` with sees="image", or `MapTeacher`
    weights      one for each, 1 / their number unless given; `learned` trains them from there on (its future work)
    jitter       strength of colour jitter on the student's images; teachers see the image as it is
    pretrained   leave the backbone's weights as they are: the student of one teacher starts from another's
    """
    shares = [1 / len(teachers) for _ in teachers] if weights is None else [*weights]
    if len(shares) != len(teachers) or not teachers or min(shares) <= 0:
        raise UserError(f"{len(teachers)} teachers cannot have the weights {shares}: give each one, above 0")
    if not -1 <= layer < backbone.depth:
        raise UserError(f"the backbone has blocks 0 to {backbone.depth - 1}, and no block {layer}; -1 is its end")
    branches = []
    for i, (teacher, share) in enumerate(zip(teachers, shares, strict=True)):
        region = region_of(backbone, teacher)
        align = ProjectionHead(backbone.width, teacher.width, head, region)
        branches.append(Branch(f"teacher{i}", align, teacher, smooth_l1_with(beta), region, share, layer, learned))
    method = Method(backbone, masking_of(masking), branches, jitter=BatchColorJitter(jitter) if jitter else None)
    fresh: Sequence[nn.Module] = branches if pretrained else [method]
    for module in fresh:
        module.apply(initialise)
    if not pretrained:
        initialise_tokens(method)
    return method
