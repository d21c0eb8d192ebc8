"""Transforms of images with boxes and masks to the size of a batch: large-scale jitter for training, letterbox for
evaluation.

Large-scale jitter is Ghiasi et al.'s (2012.07177, section 3), as ViTDet uses it (2203.16527, appendix A.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Generator, Tensor

from remask.downstream.detect.coco import Target
from remask.errors import UserError
from remask.images.transforms import mirror, resize
from remask.types import Size

PAD = 128
"""Value of padding pixels (as in detectron2's FixedSizeCrop)."""


BoxTransform: TypeAlias = Callable[[Tensor, Target, Generator], tuple[Tensor, Target]]
"""(image, target, generator) -> image and target at the size of the batch."""


@dataclass(frozen=True)
class LargeScaleJitter:
    """Large-scale jitter: fits the image into a random multiple of `size`, then random crop or padding, and flip.

    size    pixels (h, w) of the batch, multiples of 32
    scale   range of the uniform multiple
    """

    size: Size
    scale: tuple[float, float] = (0.1, 2.0)
    flip: bool = True

    def __post_init__(self) -> None:
        _check(self.size)
        if not 0 < self.scale[0] <= self.scale[1] <= 16:
            raise UserError(f"scale {list(self.scale)}: needs 0 < low <= high <= 16")

    def __call__(
        self, image: Num[Tensor, "C H W"], target: Target, generator: Generator
    ) -> tuple[Num[Tensor, "C h w"], Target]:
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        share = self.scale[0] + draws[0] * (self.scale[1] - self.scale[0])
        size = image.shape[-2], image.shape[-1]
        resized = fitting(size, (self.size[0] * share, self.size[1] * share))
        corner = [int(draw * (max(a - b, 0) + 1)) for draw, a, b in zip(draws[1:3], resized, self.size, strict=True)]
        placed = Placed(size, resized, (corner[0], corner[1]), self.size)
        return placed(image, target, flip=self.flip and draws[3] < 0.5)


@dataclass(frozen=True)
class Letterbox:
    """Resizes the full image to fit in `size` pixels (h, w), then pads it; for evaluation."""

    size: Size

    def __post_init__(self) -> None:
        _check(self.size)

    def __call__(
        self, image: Num[Tensor, "C H W"], target: Target, generator: Generator | None = None
    ) -> tuple[Num[Tensor, "C h w"], Target]:
        size = image.shape[-2], image.shape[-1]
        return Placed(size, fitting(size, self.size), (0, 0), self.size)(image, target, flip=False)


class Placed(NamedTuple):
    """Placement of an image of `size` pixels on a canvas: resized to `resized`, then cropped from `corner` on."""

    size: Size
    resized: Size
    corner: Size
    canvas: Size

    def __call__(
        self, image: Num[Tensor, "C H W"], target: Target, *, flip: bool
    ) -> tuple[Num[Tensor, "C h w"], Target]:
        (top, left), (rows, columns) = self.corner, self.shown
        crop = resize(image, self.resized)[:, top : top + rows, left : left + columns]
        boxes, cut = self._boxes(target["boxes"])
        keep = (boxes[:, 2:] - boxes[:, :2]).amin(1) >= 1  # pixel
        masks = target["masks"][keep] if "masks" in target else None
        if masks is not None:
            masks = masks[:, self._under(0)][:, :, self._under(1)]
            keep[keep.clone()] = inside = (masks.flatten(1) > 0).any(1)
            masks = masks[inside]
        boxes, cut = boxes[keep], cut[keep]
        if masks is not None and cut.any():
            # official: boxes are recomputed from all masks; here only from masks that the crop cuts, others stay exact
            boxes[cut] = around(masks[cut])
        if flip:
            crop = mirror(crop)
            boxes[:, [0, 2]] = columns - boxes[:, [2, 0]]
        placed = {**target, "boxes": boxes, "labels": target["labels"][keep], "shown": (rows, columns)}
        if masks is not None:
            placed["masks"] = self._padded(masks.flip(-1) if flip else masks, 0)
        return self._padded(crop, PAD), placed

    @property
    def shown(self) -> Size:
        """Rows and columns of the canvas that the image fills."""
        (rows, columns), (top, left) = self.resized, self.corner
        return min(rows - top, self.canvas[0]), min(columns - left, self.canvas[1])

    def _boxes(self, boxes: Float[Tensor, "n 4"]) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, "n"]]:
        """Boxes on the canvas, clipped, and which of them were clipped."""
        (height, width), (rows, columns), (top, left) = self.size, self.resized, self.corner
        scale = torch.tensor([columns / width, rows / height] * 2)
        moved = boxes * scale - torch.tensor([left, top] * 2)
        limits = torch.tensor([self.shown[1], self.shown[0]] * 2, dtype=moved.dtype)
        inside = moved.clamp(torch.zeros(4), limits)
        return inside, ((moved - inside).abs() > 1e-3).any(1)

    def _under(self, axis: int) -> Int[Tensor, "n"]:
        """Row (axis 0) or column (1) of the image at the centre of each row or column of the canvas."""
        centres = torch.arange(self.shown[axis], dtype=torch.float64) + self.corner[axis] + 0.5
        return (centres * self.size[axis] / self.resized[axis]).long().clamp_(max=self.size[axis] - 1)

    def _padded(self, image: Num[Tensor, "_ _ _"], value: int) -> Num[Tensor, "_ _ _"]:
        (rows, columns), (height, width) = image.shape[-2:], self.canvas
        return F.pad(image, (0, width - columns, 0, height - rows), value=value).contiguous()


def around(masks: Num[Tensor, "n H W"]) -> Float[Tensor, "n 4"]:
    """The tightest boxes x0 y0 x1 y1, in pixels, around masks that are not empty."""
    sides = []
    for lit in (masks.amax(1), masks.amax(2)):
        sides += [lit.argmax(1), lit.shape[1] - lit.flip(1).argmax(1)]
    return torch.stack([sides[0], sides[2], sides[1], sides[3]], dim=1).float()


def fitting(size: Size, room: tuple[float, float]) -> Size:
    """The largest size (h, w) with the aspect ratio of `size` that fits in `room`, at least 1 pixel each."""
    scale = min(room[0] / size[0], room[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _check(size: Size) -> None:
    if min(size) < 32 or size[0] % 32 or size[1] % 32:
        raise UserError(
            f"image size {size[0]}x{size[1]}: detection needs multiples of 32, the coarsest stride of its pyramid"
        )


__all__ = ["PAD", "BoxTransform", "LargeScaleJitter", "Letterbox", "Placed", "around", "fitting"]
