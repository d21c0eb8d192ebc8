"""Teacher targets: the feature map of a frozen network on the whole image (MOMA 2302.02089; DMJD's CLIP target).

The network is no submodule of the module that uses it: none of its parameters reaches an optimizer and none of its
tensors a checkpoint. It only moves to the device with it. See docs/decisions/0008.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from remask.errors import UserError, setting
from remask.targets.hog import pixel_values
from remask.tokens import grid_of
from remask.types import Images, Size
from remask.views import Views


class Frozen(nn.Module):
    """A network that is used and never trained: always in eval mode, without gradients, in no state dict.

    It stands in a list and is no submodule: `_apply` passes `.to(device)` on to it, and `.train()` does not reach it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.networks = [network.eval().requires_grad_(False)]

    def _apply(self, fn: Any, recurse: bool = True) -> "Frozen":
        self.networks[0]._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return self.networks[0](images)


class MapTeacher(nn.Module):
    """A frozen network's feature map as target, [B, N, D]: the teacher sees the image that the student sees, whole.

    network         (images [B, C, H, W], normalised) -> feature map [B, D, h, w]
    patch           pixels of a student's token
    mean, std       constants by which float images were normalised; integers are pixel values
    teacher_mean/std  the teacher's own constants, of pixel values 0..1
    size            pixels that the teacher was made for: images are resized to them, bicubic and antialiased;
                    None leaves them as they are
    norm            "layer": LayerNorm without affine on each token (MOMA, DMJD), or "none"
    width, name     D, and the name in the printed equation

    A map of another grid is resized to the student's, bilinear and antialiased: a triangle filter as wide as the
    step, which averages when the map shrinks. Images with one channel are repeated for a teacher with three.
    Raises UserError where channels or width do not fit.
    """

    mean: Tensor
    std: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        patch: Size,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        teacher_mean: Sequence[float],
        teacher_std: Sequence[float],
        size: Size | None = None,
        norm: Literal["layer", "none"] = "layer",
        width: int,
        name: str,
    ) -> None:
        super().__init__()
        if len(mean) not in (1, len(teacher_mean)):
            raise UserError(
                f"the teacher {name} sees {len(teacher_mean)} channels, not {len(mean)}; "
                f"{setting('set data.channels', 'give images of as many')}"
            )
        self.network, self.patch, self.size, self.norm = Frozen(network), patch, size, norm
        self.width, self.name = width, name
        constants = {"mean": mean, "std": std, "shift": teacher_mean, "scale": teacher_std}
        for key, values in constants.items():
            self.register_buffer(key, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "B N D"]:
        grid = grid_of((images.shape[-2], images.shape[-1]), self.patch)
        pixels = pixel_values(images, self.mean, self.std)
        pixels = resized(pixels, self.size) if self.size else pixels
        features = self.network((pixels / 255 - self.shift) / self.scale).float()  # may be bf16, under autocast
        if features.shape[1] != self.width:
            raise UserError(f"the teacher {self.name} gives {features.shape[1]} channels, not {self.width}")
        if tuple(features.shape[-2:]) != grid:
            features = F.interpolate(features, grid, mode="bilinear", antialias=True)
        tokens = features.flatten(2).transpose(1, 2)
        return F.layer_norm(tokens, (self.width,)) if self.norm == "layer" else tokens

    def describe(self) -> str:
        return f"features of {self.name}" + (", LayerNorm" if self.norm == "layer" else "")


def resized(pixels: Float[Tensor, "B C H W"], size: Size) -> Float[Tensor, "B C h w"]:
    """A second view of the same crop, bicubic and antialiased, in the 256 steps that a resized image file has."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)


__all__ = ["Frozen", "MapTeacher", "resized"]
