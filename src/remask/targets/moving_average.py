"""The student's own moving average as teacher (data2vec 2.0, arXiv 2212.07525; Bootleg 2603.15553).

One copy of the student's backbone follows it after every step. It sees the whole image once, however many masked views
and branches there are; each target combines some of its layers.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from remask.errors import UserError, setting
from remask.types import INPUT, Features, Images
from remask.views import Views

Layers = Mapping[tuple[int, "Outputs"], Features]
"""The teacher's features by (layer, what of it)."""

Outputs = Literal["block", "ffn"]
"""What is read of a block: its output, or that of its MLP before it is added to the residual stream (data2vec 2.0)."""


class Average(nn.Module):
    """A copy of a backbone and its moving average: fp32, in evaluation mode, without gradient, in the state dict.

    decay      τ at the first step and from `warmup` on: average ← τ · average + (1 - τ) · student
    warmup     share of the training over which τ goes from the first to the second, linearly
    """

    def __init__(self, backbone: Any, decay: tuple[float, float] = (0.9998, 0.99999), warmup: float = 1.0) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.decay, self.warmup = decay, warmup

    def train(self, mode: bool = True) -> "Average":
        """Stay in evaluation mode: a teacher drops no path."""
        return super().train(False)

    def decay_at(self, progress: float) -> float:
        """τ after a share `progress` of the training, in [0, 1]."""
        first, last = self.decay
        return first + (last - first) * (min(1.0, progress / self.warmup) if self.warmup else 1.0)

    def follow(self, backbone: Any, progress: float, taken: Tensor | None = None) -> None:
        """The update after a step of the student. taken: see `mix`."""
        self.mix(self.backbone, backbone, self.decay_at(progress), taken)

    def restart(self, backbone: Any) -> None:
        """Equal the student, whose first weights have just been set."""
        self.mix(self.backbone, backbone, 0.0)

    @staticmethod
    @torch.no_grad()
    def mix(average: nn.Module, student: nn.Module, decay: float, taken: Tensor | None = None) -> None:
        """average ← decay · average + (1 - decay) · student, of any two modules of one make; buffers are copied.

        taken   [] on the device, 0 where the student's step was skipped: the average then stays
        """
        own, theirs = ([_local(p) for p in module.parameters()] for module in (average, student))
        if taken is None:
            get_ema_multi_avg_fn(decay)(own, theirs, 0)
        elif (weight := taken * (1 - decay)).device.type == "cpu":  # a list at once is no faster, three passes slower
            for kept, now in zip(own, theirs, strict=True):
                kept.lerp_(now, weight)
        else:  # a lerp of a list has no weight on the device
            towards = torch._foreach_sub(theirs, own)
            torch._foreach_mul_(towards, weight)
            torch._foreach_add_(own, towards)
        for kept, now in zip(average.buffers(), student.buffers(), strict=True):
            kept.copy_(now)

    @torch.no_grad()
    def forward(self, images: Images, wanted: Sequence[tuple[int, Outputs]]) -> dict[tuple[int, Outputs], Features]:
        """Features of the whole image, by (layer, what of it)."""
        found: dict[tuple[int, Outputs], Features] = {}
        if not wanted:
            return found
        patches = self.backbone.embed(images)
        if any(outputs == "ffn" for _, outputs in wanted):
            found = _outputs(self.backbone, patches, 1 + max(layer for layer, _ in wanted))
        else:
            layers = [layer for layer, _ in wanted]
            found = {(layer, "block"): f for layer, f in self.backbone.encode(patches, layers=layers).items()}
        return {key: Features(found[key].prefix.float(), found[key].tokens.float()) for key in wanted}


class AverageReader(nn.Module, ABC):
    """A target that is made from layers of the student's moving average, which the method computes once for all."""

    wanted: Sequence[tuple[int, Outputs]]
    """The layers to be computed."""

    def __init__(self) -> None:
        super().__init__()
        self._average: list[Average] = []

    def read(self, average: Average) -> None:
        """Take the layers from this teacher, which belongs to the method."""
        self._average = [average]

    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "B _ D"]:
        """The target of the images alone; a method computes the layers of all its targets in one pass instead."""
        return self.combine(self._average[0](images, self.wanted), views)

    @abstractmethod
    def combine(self, features: Layers, views: Views | None = None) -> Float[Tensor, "B _ D"]:
        """The target from the teacher's layers."""

    def follow(self, head: Any, decay: float, taken: Tensor | None = None) -> None:
        """What else follows a step of the student, whose head at this target it is; decay 0 after its first weights.

        taken   [] on the device, 0 where the step was skipped: nothing may then change
        """


class MovingAverage(AverageReader):
    """Layers of the student's moving average as target: each normalised, then their mean, then LayerNorm.

    backbone   the student's, whose width and depth the target has
    top        the last so many blocks are read, unless `layers` names them
    norm       of each layer before the mean: "instance": over the tokens of an image, by channel (data2vec) · "layer":
               of each token · "none". Behind the mean there is a LayerNorm without affine, unless it is "none"
    outputs    what of a block is read
    Raises UserError for blocks that do not exist, and MLPs of networks that have none.
    """

    def __init__(
        self,
        backbone: Any,
        top: int | None = None,
        layers: Sequence[int] | None = None,
        norm: Literal["instance", "layer", "none"] = "instance",
        outputs: Outputs = "ffn",
    ) -> None:
        super().__init__()
        self.layers = tuple(range(backbone.depth)[-(top or backbone.depth) :] if layers is None else layers)
        _check(backbone, top, self.layers, outputs)
        self.width, self.norm, self.outputs = backbone.width, norm, outputs
        self.wanted = [(layer, outputs) for layer in self.layers]

    @torch.no_grad()
    def combine(self, features: Layers, views: Views | None = None) -> Float[Tensor, "B N D"]:
        """Prefix tokens are no part of it."""
        maps = [features[key].tokens for key in self.wanted]
        if self.norm == "instance":
            maps = [F.instance_norm(x.transpose(1, 2)).transpose(1, 2) for x in maps]
        elif self.norm == "layer":
            maps = [F.layer_norm(x, (self.width,)) for x in maps]
        mean = torch.stack(maps).mean(0)
        return mean if self.norm == "none" else F.layer_norm(mean, (self.width,))

    def describe(self) -> str:
        count, of = len(self.layers), "MLP outputs" if self.outputs == "ffn" else "outputs"
        blocks = f"block {self.layers[0]}" if count == 1 else f"{count} blocks"
        norm = "" if self.norm == "none" else f", {self.norm} norm"
        return f"{of} of {blocks} of the moving average{norm}"


def _outputs(backbone: Any, patches: Any, depth: int) -> dict[tuple[int, Outputs], Features]:
    """A ViT on whole images, its first blocks written out: what they give, and their MLPs before the residual sum."""
    prefix, tokens = backbone.encode(patches, layers=(INPUT,))[INPUT]
    found: dict[tuple[int, Outputs], Features] = {}
    x = torch.cat([prefix, tokens], dim=1)
    for i, block in enumerate(backbone.network.blocks[:depth]):
        x = x + block.ls1(block.attn(block.norm1(x)))
        added = block.mlp(block.norm2(x))
        x = x + block.ls2(added)
        found[i, "ffn"] = Features(added[:, : backbone.prefix], added[:, backbone.prefix :])
        found[i, "block"] = Features(x[:, : backbone.prefix], x[:, backbone.prefix :])
    return found


def _local(parameter: Tensor) -> Tensor:
    """This process's shard, if there are several."""
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def _check(backbone: Any, top: int | None, layers: Sequence[int], outputs: Outputs) -> None:
    if top is not None and not 0 < top <= backbone.depth:
        raise UserError(f"{setting('', 'top: ')}the backbone has {backbone.depth} blocks, and not {top}")
    if not layers or not all(0 <= layer < backbone.depth for layer in layers) or len({*layers}) < len(layers):
        raise UserError(
            f"{setting('', 'layers: ')}the backbone has blocks 0 to {backbone.depth - 1}: name some, each once, not "
            f"{[*layers]}"
        )
    blocks = getattr(backbone.network, "blocks", None) or getattr(backbone.network, "blocks3", [])
    if len(blocks) != backbone.depth:
        raise UserError(
            f"the layers of {type(backbone.network).__name__} have different grids and widths, and a moving average "
            "reads layers of one grid: choose a ViT, a BEiT or a ConViT, or another target"
        )
    if outputs == "ffn" and not (len(blocks) and all(type(block) is Block for block in blocks)):
        raise UserError(
            f"outputs ffn reads the MLPs of a plain ViT, and {type(backbone.network).__name__} has other blocks: "
            'choose outputs "block"'
        )


__all__ = ["Average", "AverageReader", "Layers", "MovingAverage", "Outputs"]
