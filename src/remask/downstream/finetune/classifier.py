"""Fine-tuning: the backbone and a linear head are trained to classify, as in MAE (arXiv 2111.06377, A.1).

Pooling follows the papers: MAE, BEiT, SimMIM's ViT and ConvMAE average the tokens of the last block and apply a new
LayerNorm (`fc_norm`) to the mean; for Swin and other maps the final norm comes first, then the average.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Generator, Tensor, nn

from remask.backbones import Backbone, class_tokens
from remask.backbones.beit import BeitViT
from remask.backbones.convvit import ConvViT
from remask.backbones.vit import ViT
from remask.downstream.finetune.mixing import Mixing, mixed, soft_targets
from remask.errors import UserError
from remask.evaluation.probing.features import Labelled, Pool
from remask.interop.beit import classifier_state
from remask.training.distributed import here
from remask.training.gathering import all_rows
from remask.types import Images

UNDECAYED = ("cls_token", "reg_token", "pos_embed", "relative_position_bias_table")
"""Ends of the parameter names without weight decay, besides vectors and biases (MAE, SimMIM)."""


@dataclass(frozen=True)
class MixedLabels:
    """The random draws of a step of fine-tuning, and its labels.

    targets    probabilities if images are mixed, else class numbers
    partners   the image to mix with each image, which another micro-batch may hold; None without mixing
    weights    weight of each pixel of the image itself; its partner has the rest
    """

    targets: Float[Tensor, "B classes"] | Int[Tensor, "B"]
    partners: Num[Tensor, "B C H W"] | None = None
    weights: Float[Tensor, "H W"] | None = None

    def split(self, chunks: int) -> list["MixedLabels"]:
        """Consecutive chunks, in the sizes of `Tensor.tensor_split`."""
        none = (None,) * chunks
        partners = none if self.partners is None else self.partners.tensor_split(chunks)
        pairs = zip(self.targets.tensor_split(chunks), partners, strict=True)
        return [MixedLabels(targets, others, self.weights) for targets, others in pairs]


class Classifier(nn.Module):
    """A backbone with a linear classifier, trained end to end. Changes the backbone in place (see `prepared`).

    pool        "mean" of the patch tokens, or "cls": the class token after the final norm, the mean of several. A
                ConvViT has none and uses its top left token instead, as ConvMAE's code does
    dropout     probability, before the head
    smoothing   of the labels: share of their weight that is spread evenly over all classes
    mixing      of images and labels; None: only smoothing
    init_scale  of the head's initial weights, truncated normal of deviation .02 · init_scale: 2e-5 (MAE, BEiT, SimMIM's
                ViT) by default, .02 (Swin) at 1
    Raises UserError for "cls" if the backbone has no such token, and for fewer than 2 classes.

    # official: FastMIM fine-tunes ViT and Swin with a new norm behind the mean, CMT with a wide 1×1 convolution before
    # it; here Swin keeps its final norm, as SimMIM's does, and so do CMT and all other maps, for one rule.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        pool: Pool = "mean",
        dropout: float = 0.0,
        smoothing: float = 0.1,
        mixing: Mixing | None = None,
        init_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise UserError(f"{classes} classes leave nothing to tell apart; give pictures of 2 classes or more")
        if pool == "cls" and backbone.prefix < 1 and not isinstance(backbone, ConvViT):
            name = type(backbone.network).__name__
            raise UserError(f'pool "cls" needs a class token, which {name} has not; use pool "mean"')
        own_norm = pool == "mean" and isinstance(backbone, ViT | BeitViT | ConvViT)
        self.backbone = prepared(backbone, final_norm=not own_norm)
        self.classes, self.pool, self.smoothing, self.mixing = classes, pool, smoothing, mixing
        self.depth = backbone.depth
        self.fc_norm = nn.LayerNorm(backbone.width, eps=1e-6) if own_norm else None
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(backbone.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)

    def features(self, images: Images) -> Float[Tensor, "B D"]:
        """The pooled features, before dropout and head."""
        layer = -1 if self.fc_norm is None else self.depth - 1  # the last block, not yet normed
        prefix, tokens = self.backbone.encode(self.backbone.embed(images), layers=(layer,))[layer]
        if self.pool == "cls":
            return prefix[:, : class_tokens(self.backbone)].mean(1) if prefix.shape[1] else tokens[:, 0]
        return tokens.mean(1) if self.fc_norm is None else self.fc_norm(tokens.mean(1))

    def logits(self, images: Images, normalised: bool = False) -> Float[Tensor, "B classes"]:
        """Logits of integer images, or of normalised float images; set `normalised` for those with values in 0..1."""
        self.backbone.normalise.refuse_unnormalised(images, normalised)
        return self._scores(images)

    def _scores(self, images: Images) -> Float[Tensor, "B classes"]:
        return self.head(self.dropout(self.features(images)))

    def draw(self, batch: Labelled, generator: Generator) -> MixedLabels:
        """The labels of a batch and its draw of mixing, on the device of the images. Raises UserError without labels.

        Partners are the unmixed images; `forward` mixes each micro-batch. A partner may be another process's image:
        those of all are exchanged.
        """
        labels = self._checked(batch.labels).to(batch.images.device)
        if self.mixing is None:
            return MixedLabels(labels)
        size = batch.images.shape[-2], batch.images.shape[-1]
        mix, labels = self.mixing.draw(size, generator), all_rows(labels)
        own = here().share(len(labels))
        targets = soft_targets(labels, self.classes, self.smoothing, mix.share)[own]
        if mix.share == 1:
            return MixedLabels(targets)
        return MixedLabels(targets, all_rows(batch.images).flip(0)[own], mix.weights(size).to(batch.images.device))

    def forward(self, images: Images, draw: MixedLabels) -> dict[str, Float[Tensor, ""]]:
        """{"total": cross-entropy with the drawn targets}; targets that are probabilities include the smoothing.

        Images are mixed after normalisation, as in official code: mixed integers would have to be rounded.
        """
        if draw.partners is not None and draw.weights is not None:
            normalise = self.backbone.normalise
            images = mixed(normalise(images), normalise(draw.partners), draw.weights)
        smoothing = 0.0 if draw.targets.is_floating_point() else self.smoothing
        return {"total": F.cross_entropy(self._scores(images).float(), draw.targets, label_smoothing=smoothing)}

    def param_depth(self, name: str) -> int:
        """Depth of a parameter `name` of `named_parameters()`: the backbone's, and depth + 1 for `fc_norm` and head."""
        network = "backbone.network."
        return self.backbone.param_depth(name.removeprefix(network)) if name.startswith(network) else self.depth + 1

    def no_decay(self) -> list[str]:
        """Names of parameters without weight decay, besides vectors and biases."""
        return [name for name, _ in self.named_parameters() if name.endswith(UNDECAYED)]

    def _checked(self, labels: Int[Tensor, "B"] | None) -> Int[Tensor, "B"]:
        if labels is None:
            raise UserError("fine-tuning needs labels: give class folders, or a set that has them")
        if (largest := int(labels.max())) >= self.classes or int(labels.min()) < 0:
            raise UserError(f"class number {largest} among the labels, and the head has {self.classes} classes")
        return labels.long()


def prepared(backbone: Backbone, final_norm: bool) -> Backbone:
    """The backbone, prepared for fine-tuning in place.

    Frozen sin-cos positions become trainable (MAE, ConvMAE). Parameters that a classifier does not use become frozen:
    those of pre-training outside the network, and the final norm without `final_norm`. BEiT's shared table of position
    biases is copied into every block (BEiT, SimMIM).
    """
    if isinstance(backbone, BeitViT):
        _unshare_tables(backbone)
    assert isinstance(backbone, nn.Module)
    for name, parameter in backbone.named_parameters():
        unused = not name.startswith("network.") or (not final_norm and name.startswith("network.norm."))
        if unused or name == "network.pos_embed":
            parameter.requires_grad_(not unused)
    return backbone


def _unshare_tables(backbone: BeitViT) -> None:
    """Rebuild the network with a position bias table in every block, each a copy of the shared one."""
    before = backbone.network
    if before.rel_pos_bias is None or backbone.origin is None:
        return
    name, arguments = backbone.origin
    changed: dict[str, Any] = {**arguments, "use_shared_rel_pos_bias": False, "use_rel_pos_bias": True}
    rate = float(getattr(before.blocks[-1].drop_path1, "drop_prob", None) or 0.0)
    network = timm.create_model(name, pretrained=False, drop_path_rate=rate, **changed)
    network.load_state_dict(classifier_state(before.state_dict(), network))
    network.set_grad_checkpointing(before.grad_checkpointing)
    backbone.network, backbone.origin = network.to(before.cls_token.device), (name, changed)


__all__ = ["UNDECAYED", "Classifier", "MixedLabels", "prepared"]
