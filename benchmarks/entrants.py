"""Those who run side by side: our step, the textbook's, and those of other libraries, on the same pictures.

Each does forward, backward and AdamW, and draws its masks within the step. Pictures are normalised before the step for
all but ours, which takes bytes.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.reference import Reference
from remask.method import Method
from remask.training.optim import adamw, parameter_groups
from remask.training.runtime import Runtime
from remask.types import Images

LR, DECAY, BETAS = 1e-4, 0.05, (0.9, 0.95)


class Seconds(NamedTuple):
    """Process CPU time: forward and backward, the optimizer as this entrant has it, and the fused one."""

    compute: float
    usual: float
    fused: float

    @property
    def step(self) -> float:
        return self.compute + self.usual

    @property
    def step_fused(self) -> float:
        return self.compute + self.fused


@dataclass
class Entrant:
    """A model in training. `loss` draws new masks whenever it is called; `after` follows an update of the weights."""

    model: nn.Module
    loss: Callable[[], Tensor]
    optimizer: torch.optim.AdamW
    after: Callable[[], None] = lambda: None

    def seconds(self) -> Seconds:
        """One step; AdamW takes a second one in its fused form, so that both can be told from one another."""
        began = time.process_time()
        self.loss().backward()
        ended = time.process_time()
        usual = self._update()
        own = [group["fused"] for group in self.optimizer.param_groups]
        self._fuse([True] * len(own))
        fused = self._update()
        self._fuse(own)
        self.optimizer.zero_grad(set_to_none=True)
        return Seconds(ended - began, usual, fused)

    def _update(self) -> float:
        began = time.process_time()
        self.optimizer.step()
        self.after()
        return time.process_time() - began

    def _fuse(self, flags: Sequence[bool | None]) -> None:
        for group, fused in zip(self.optimizer.param_groups, flags, strict=True):
            group["fused"] = fused

    def saved_bytes(self) -> int:
        """What autograd keeps for the backward pass, each storage once, without parameters and buffers."""
        owned = [*self.model.parameters(), *self.model.buffers()]
        own = {tensor.untyped_storage()._cdata for tensor in owned}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no number is given twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss()
        return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


def row(name: str, values: Sequence[float], bar: float, unit: str = "x") -> dict[str, object]:
    """Median and spread of ratios, one a round."""
    spread = min(values), max(values)
    return {"name": name, "ratio": statistics.median(values), "spread": spread, "bar": bar, "unit": unit}


def ours(method: Method, images: Images, dtype: torch.dtype = torch.float32) -> Entrant:
    """A method as `remask pretrain` trains it."""
    runtime = Runtime(images.device, dtype)
    runtime.prepare(method)

    def loss() -> Tensor:
        views = method.draw(images)
        with runtime.autocast():
            return method(images, views)["total"]

    optimizer = adamw(parameter_groups(method.named_parameters(), DECAY), LR, BETAS)
    return Entrant(method, loss, optimizer, partial(method.after_step, 0.5))


def textbook(method: Method, images: Images, dtype: torch.dtype = torch.float32) -> Entrant:
    """The same method's weights in the textbook's composition."""
    reference, runtime = Reference(method).to(images.device), Runtime(images.device, dtype)
    prepared = reference.prepare(images)

    def loss() -> Tensor:
        views = method.draw(images)
        with runtime.autocast():
            return reference(prepared, views)["total"]

    return Entrant(reference, loss, reference.optimizer(LR, DECAY))


def hugging_face(pixels: Tensor, **sizes: int) -> Entrant:
    """`ViTMAEForPreTraining` of ViT-B/16 with its fused attention; sizes are those of its configuration."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(norm_pix_loss=True, mask_ratio=0.75, attn_implementation="sdpa", **sizes)
    model = ViTMAEForPreTraining(config).train()
    return Entrant(model, lambda: model(pixels).loss, torch_adamw(model))


class LightlyMAE(nn.Module):
    """MAE of lightly's parts, put together as its documentation shows, with the target normalised per patch."""

    def __init__(self, width: int, depth: int, heads: int, decoder: tuple[int, int, int], pixels: int) -> None:
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        sizes = {"embed_dim": width, "depth": depth, "num_heads": heads}
        net = VisionTransformer(pixels, 16, num_classes=0, global_pool="", **sizes)
        self.backbone, self.length = MaskedVisionTransformerTIMM(vit=net), net.patch_embed.num_patches + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it will be renamed in 1.7
            self.decoder = MAEDecoderTIMM(self.length - 1, 16, 3, width, *decoder)

    def forward(self, pixels: Tensor) -> Tensor:
        from lightly.models import utils

        rows = len(pixels)
        keep, masked = utils.random_token_mask((rows, self.length), mask_ratio=0.75, device=pixels.device)
        x = self.decoder.embed(self.backbone.encode(images=pixels, idx_keep=keep))
        filled = utils.repeat_token(self.decoder.mask_token, (rows, self.length))
        x = self.decoder.decode(utils.set_at_index(filled, keep, x.type_as(filled)))
        predicted = self.decoder.predict(utils.get_at_index(x, masked))
        target = utils.get_at_index(utils.patchify(pixels, 16), masked - 1)
        target = utils.normalize_mean_var(target)
        return nn.functional.mse_loss(predicted, target)


def lightly(pixels: Tensor, width: int = 768, depth: int = 12, heads: int = 12, decoder=(512, 8, 16)) -> Entrant:  # type: ignore[no-untyped-def]
    """ViT-B/16 unless told otherwise."""
    model = LightlyMAE(width, depth, heads, decoder, pixels.shape[-1]).train()
    return Entrant(model, lambda: model(pixels), torch_adamw(model))


def torch_adamw(model: nn.Module) -> torch.optim.AdamW:
    """As PyTorch makes it by default, which on a CPU is the for-loop."""
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY, betas=BETAS)


__all__ = ["Entrant", "Seconds", "hugging_face", "lightly", "ours", "row", "textbook"]
