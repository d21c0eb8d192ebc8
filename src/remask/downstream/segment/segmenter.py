"""Semantic segmentation on any backbone: maps, a head, cross-entropy per pixel; sliding windows and mIoU for tests."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from remask.backbones import Backbone
from remask.downstream.maps import Maps, Norm, padded
from remask.downstream.segment.mask_source import IGNORE
from remask.downstream.segment.miou import Confusion
from remask.downstream.segment.pairs import covering
from remask.downstream.segment.upernet import FcnHead, LinearHead, UperNet, scaled
from remask.errors import UserError
from remask.evaluation.probing.features import evaluating
from remask.images.transforms import resize
from remask.training.distributed import here
from remask.training.gathering import total
from remask.types import Images, Size


class Pixels(Protocol):
    """A batch of images with the classes of their pixels."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...


class PixelLabels(NamedTuple):
    """The labels of a batch, on its device. A step has no other draws: dropout uses the global generator.

    labelled   mean number of labelled pixels of an image of the whole batch, over all micro-batches and processes;
               None: of these images
    """

    labels: Int[Tensor, "B H W"]
    labelled: Float[Tensor, ""] | None = None

    def split(self, chunks: int) -> list["PixelLabels"]:
        """Consecutive chunks, in the sizes of `Tensor.tensor_split`."""
        return [PixelLabels(chunk, self.labelled) for chunk in self.labels.tensor_split(chunks)]


class Segmenter(nn.Module):
    """A backbone and a head that classifies every pixel.

    head     "upernet" on four maps, or "linear" on one: a plain network's last, a pyramid's last but one
    width    channels of UperNet; None: the backbone's width
    ignore   the label that is no class
    aux      weight of the auxiliary FCN head on the last map but one; 0: no such head. UperNet only
    norm     of neck and head: "batch", or "group", which also trains with one image at a time
    Images may have any size. Parameters on which the maps do not depend are frozen (`Maps`).
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        head: Literal["upernet", "linear"] = "upernet",
        width: int | None = 512,
        ignore: int = IGNORE,
        aux: float = 0.4,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if classes < 2:
            raise UserError(f"{classes} class: segmentation needs at least two to tell apart")
        self.backbone = backbone
        self.classes, self.ignore, self.aux, self.norm = classes, ignore, aux, norm
        self.maps = Maps(backbone, norm, single=head == "linear")
        channels = self.maps.channels
        self.head: UperNet | LinearHead = (
            LinearHead(channels[0], classes, norm)
            if head == "linear"
            else UperNet(channels, classes, width or backbone.width, norm)
        )
        second = channels[-2:][0]
        self.auxiliary = FcnHead(second, classes, norm=norm) if head == "upernet" and aux else None

    def draw(self, batch: Pixels, generator: Generator) -> PixelLabels:
        """The labels of a batch, on the device of its images. Collective."""
        labels = batch.labels.to(batch.images.device, non_blocking=True).long()
        labelled, images = total(torch.stack([(labels != self.ignore).sum(), labels.new_tensor(len(labels))]))
        return PixelLabels(labels, labelled.clamp(min=1) / images)  # a batch may have no labelled pixel

    def forward(self, images: Images, draw: PixelLabels) -> dict[str, Float[Tensor, ""]]:
        """Mean cross-entropy over labelled pixels: {"pixels": head, "auxiliary": other head, "total": weighted sum}.

        The mean is over those of the whole batch, in which an image counts by its labelled pixels, however it is cut.
        """
        if self.training and self.norm == "batch" and len(images) < 2 and here().alone:
            raise UserError(
                "batch norm cannot learn from one image at a time: raise optim.batch_size, or use group norm"
            )
        maps = self.maps(self.backbone, images)
        losses = {"pixels": self._loss(self._scores(maps), images, draw)}
        losses["total"] = losses["pixels"]
        if self.auxiliary is not None:
            losses["auxiliary"] = self._loss(self.auxiliary(maps[-2:][0]), images, draw)
            losses["total"] = losses["pixels"] + self.aux * losses["auxiliary"]
        return losses

    def logits(self, images: Images) -> Float[Tensor, "B classes H W"]:
        """Logits of every class at every pixel."""
        return self._full(self._scores(self.maps(self.backbone, images)), images)

    def slide(self, images: Images, crop: Size, stride: Size) -> Float[Tensor, "B classes H W"]:
        """Mean logits over windows of `crop` pixels, `stride` apart; the last ones are moved inwards to the border."""
        rows, columns = images.shape[-2:]
        if rows <= crop[0] and columns <= crop[1]:
            return self.logits(images)
        total = count = torch.zeros((), device=images.device)
        for top in _starts(rows, crop[0], stride[0]):
            for left in _starts(columns, crop[1], stride[1]):
                window = images[..., top : top + crop[0], left : left + crop[1]]
                around = (left, max(0, columns - left - crop[1]), top, max(0, rows - top - crop[0]))
                total = total + F.pad(self.logits(window), around)
                count = count + F.pad(torch.ones(window.shape[-2:], device=images.device), around)
        return total / count

    def predict(
        self,
        images: Images,
        *,
        size: Size | None = None,
        window: Size | None = None,
        stride: Size | None = None,
        flip: bool = False,
        normalised: bool = False,
    ) -> Int[Tensor, "B H W"]:
        """The most likely class of every pixel.

        size     of a training crop: images are first resized to just cover it, as in training at scale 1, and scores
                 are resized back; None: no resizing
        window, stride   see `slide`; None: the whole image at once, and two thirds of the window
        flip     average the probabilities with those of the mirrored image
        normalised   float images with values in 0..1 are normalised, see `Classifier.logits`
        """
        self.backbone.normalise.refuse_unnormalised(images, normalised)
        original = images.shape[-2:]
        times = 1.0 if size is None else covering((original[0], original[1]), size)
        target = max(1, round(original[0] * times)), max(1, round(original[1] * times))
        resized = torch.stack([resize(image, target) for image in images.cpu()]).to(images.device) if size else images
        step = stride or (window and two_thirds(window))

        def scores(view: Tensor) -> Tensor:
            result = self.slide(view, window, step) if window and step else self.logits(view)
            return scaled(result, original)

        result = scores(resized)
        if flip:
            result = result.softmax(1) + scores(resized.flip(-1)).flip(-1).softmax(1)
        return result.argmax(1)

    def param_depth(self, name: str) -> int:
        """Depth of a parameter `name` of `named_parameters()`: the backbone's, and depth + 1 for neck and heads."""
        inner = name.removeprefix("backbone.network.")
        return self.backbone.param_depth(inner) if inner != name else self.backbone.depth + 1

    def _scores(self, maps: list[Tensor]) -> Float[Tensor, "B classes h w"]:
        return self.head(maps[0] if isinstance(self.head, LinearHead) else maps)

    def _full(self, scores: Float[Tensor, "B classes h w"], images: Images) -> Float[Tensor, "B classes H W"]:
        """Scores resized to the padded images, then cropped to the images."""
        height, width = images.shape[-2:]
        return scaled(scores.float(), padded(self.backbone, (height, width)))[..., :height, :width]

    def _loss(self, scores: Float[Tensor, "B classes h w"], images: Images, draw: PixelLabels) -> Float[Tensor, ""]:
        # official: the mean is over all pixels, ignored ones count as 0; here over the labelled ones
        own = (draw.labels != self.ignore).sum().clamp(min=1)  # a crop may have no labelled pixel
        labelled = own if draw.labelled is None else draw.labelled * len(images)
        summed = F.cross_entropy(self._full(scores, images), draw.labels, ignore_index=self.ignore, reduction="sum")
        return summed / labelled


def two_thirds(window: Size) -> Size:
    """The default stride of a window, as in tests on ADE20K: 341 for 512."""
    return max(1, 2 * window[0] // 3), max(1, 2 * window[1] // 3)


def _starts(length: int, crop: int, stride: int) -> list[int]:
    """Start positions of windows along an axis."""
    count = -(-max(length - crop, 0) // stride) + 1
    return [max(0, min(number * stride, length - crop)) for number in range(count)]


def evaluate(
    segmenter: Segmenter,
    batches: Iterable[Pixels],
    *,
    names: Sequence[str] | None = None,
    size: Size | None = None,
    window: Size | None = None,
    stride: Size | None = None,
    flip: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """mIoU, mAcc and aAcc in percent, IoU and accuracy of every class, and how they were measured.

    batches   uncropped images and masks, a batch of one size (`full_pairs`); compared at that size
    names     of the classes
    size, window, stride, flip   see `Segmenter.predict`
    device    of the images; None: the model's
    dtype     of autocast; None: no autocast
    progress  called with the number of images done after every batch
    Returns `Confusion.scores` | {"images", "pixels": labelled ones, "protocol"}, of the images of all processes; the
    model is in evaluation mode during the test. Raises UserError if there is no image. Collective.
    """
    target_device = torch.device(device) if device is not None else next(segmenter.parameters()).device
    confusion, images = Confusion(segmenter.classes, segmenter.ignore), 0
    with torch.inference_mode(), evaluating([segmenter]):
        for batch in batches:
            with torch.autocast(target_device.type, dtype=dtype) if dtype else nullcontext():
                prediction = segmenter.predict(
                    batch.images.to(target_device), size=size, window=window, stride=stride, flip=flip
                )
            confusion.add(batch.labels.to(target_device), prediction)
            images += len(batch.images)
            if progress:
                progress(images)
    images = confusion.gather(images)
    if not images:
        raise UserError("there is no picture to test on: the source gave no batch")
    protocol = {
        "metric": "IoU of all test pixels together, mean over the classes that occur",
        "compared": "at the size of the masks",
        "picture": "its own size" if size is None else f"resized to just cover {size[0]}x{size[1]} (height x width)",
        "window": None if window is None else list(window),
        "stride": None if window is None else list(stride or two_thirds(window)),
        "flip": flip,
        "precision": str(dtype or torch.float32).removeprefix("torch."),
    }
    return {**confusion.scores(names), "images": images, "pixels": int(confusion.counts.sum()), "protocol": protocol}


__all__ = ["PixelLabels", "Segmenter", "evaluate", "two_thirds"]
