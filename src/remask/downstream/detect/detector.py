"""Detection and instance segmentation: Mask R-CNN (1703.06870) on a backbone's feature pyramid, as ViTDet (2203.16527).

Proposals, regions and their losses are torchvision's, without its resizing and normalising: the loader makes images of
one size, and the backbone normalises. Heads are ViTDet's: two convolutions for proposals, four and a linear layer for
boxes, four for masks, with LayerNorm (appendix A.2).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Generator, Tensor, nn

from remask.backbones import Backbone
from remask.downstream.detect.sampling import SeededSampler, over_all
from remask.downstream.finetune.classifier import prepared
from remask.downstream.pyramid import create_pyramid, maps_of
from remask.errors import UserError
from remask.evaluation.probing.features import evaluating
from remask.training.distributed import here
from remask.training.gathering import total
from remask.types import Images, Size

Found: TypeAlias = dict[str, Tensor]
"""Detected instances of one image, best first: boxes Float[n, 4] x0 y0 x1 y1 in pixels, labels Int[n] from 1,
scores Float[n], and masks if the detector has them."""

LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposals",
    "loss_classifier": "classes",
    "loss_box_reg": "boxes",
    "loss_mask": "masks",
}
"""torchvision's name → ours."""


class Boxed(Protocol):
    """A batch: images of one size, and the target of each."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> list[dict[str, Any]]: ...


class Targets(NamedTuple):
    """The targets of a step's images, and a seed for the anchors and regions of each; None: the global generator."""

    images: list[dict[str, Tensor]]
    seeds: list[int] | None = None

    def split(self, chunks: int) -> list["Targets"]:
        """Consecutive chunks, in the sizes of `Tensor.tensor_split`."""
        chunked = [chunk.tolist() for chunk in torch.arange(len(self.images)).tensor_split(chunks)]
        seeds = self.seeds
        return [Targets([self.images[i] for i in ids], seeds and [seeds[i] for i in ids]) for ids in chunked]


class Detector(nn.Module):
    """A backbone, its pyramid and Mask R-CNN, trained end to end. Changes the backbone in place (`prepared`).

    classes      number without background; labels are 1 to `classes`
    size         pixels (h, w) of the images, multiples of 32
    channels     of the pyramid and of all heads; the box head's linear layer is 4 times as wide
    masks        False: boxes only, for data without masks
    anchor       side of an anchor in cells of its map; None: 8, which is 32 to 512 pixels on strides 4 to 64, and
                 proportionally less for images below 512 pixels, whose objects are smaller
    regions      regions per image that train the box head, a quarter of them on objects; None: 2 · channels
    score        minimum score of a detection
    detections   maximum number of detections per image
    Raises UserError for no class, and for a backbone or size that no pyramid fits.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        size: Size,
        *,
        channels: int = 256,
        masks: bool = True,
        anchor: float | None = None,
        regions: int | None = None,
        score: float = 0.05,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if classes < 1:
            raise UserError("a detector needs at least one class, and the annotations name none")
        self.backbone = prepared(backbone, final_norm=True)
        self.depth, self.classes, self.masks = backbone.depth, classes, masks
        self.pyramid = create_pyramid(backbone, channels, size)
        cells = anchor or 8 * min(1.0, max(size) / 512)
        chunks = _mask_rcnn(channels, classes, self.pyramid.strides, masks, cells, regions or 2 * channels)
        self.rpn, self.roi_heads = chunks.rpn, chunks.roi_heads
        self.rpn.fg_bg_sampler = SeededSampler(256, 0.5, 0)  # as many as torchvision chooses of itself
        self.roi_heads.fg_bg_sampler = SeededSampler(regions or 2 * channels, 0.25, 1)
        self.roi_heads.score_thresh, self.roi_heads.detections_per_img = score, detections

    def draw(self, batch: Boxed, generator: Generator) -> Targets:
        """The targets of a batch, on the device of its images. Collective. Raises UserError for missing masks."""
        device = batch.images.device
        names = ("boxes", "labels", "masks") if self.masks else ("boxes", "labels")
        if self.masks and any("masks" not in label for label in batch.labels):
            raise UserError("the annotations have no masks, which Mask R-CNN learns from: give boxes alone a detector")
        images = int(total(torch.tensor(len(batch.labels))))
        seeds = torch.randint(2**62, (images,), generator=generator)[here().share(images)].tolist()
        return Targets([{n: label[n].to(device, non_blocking=True) for n in names} for label in batch.labels], seeds)

    def forward(self, images: Images, draw: Targets) -> dict[str, Float[Tensor, ""]]:
        """The losses of Mask R-CNN by the names in LOSSES, and their sum "total"; in training mode.

        Each is a mean over the anchors or regions chosen in the images of all processes.
        """
        features, shapes = self._features(images)
        anchors, regions = self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler
        anchors.seeds = regions.seeds = draw.seeds
        proposals, losses = self.rpn(shapes, features, draw.images)
        losses |= self.roi_heads(features, proposals, shapes.image_sizes, draw.images)[1]
        named = {name: losses[theirs] for theirs, name in LOSSES.items() if theirs in losses}
        counts = {"objectness": anchors.counts[1], "proposals": anchors.counts[1], "classes": regions.counts[1]}
        named = over_all(named, counts | {"boxes": regions.counts[1], "masks": regions.counts[0]}, len(images))
        return {**named, "total": torch.stack(list(named.values())).sum()}

    def detect(self, images: Images, normalised: bool = False) -> list[Found]:
        """Detected instances of each image, in its pixels; masks are probabilities [n, 1, 28, 28] inside the boxes.

        normalised   float images with values in 0..1 are normalised, see `Classifier.logits`
        """
        self.backbone.normalise.refuse_unnormalised(images, normalised)
        with torch.no_grad(), evaluating([self]):
            features, shapes = self._features(images)
            proposals, _ = self.rpn(shapes, features)
            found: list[Found] = self.roi_heads(features, proposals, shapes.image_sizes)[0]
        return found

    def param_depth(self, name: str) -> int:
        """Depth of a parameter `name` of `named_parameters()`: the backbone's, and depth + 1 for pyramid and heads."""
        network = "backbone.network."
        return self.backbone.param_depth(name.removeprefix(network)) if name.startswith(network) else self.depth + 1

    def _features(self, images: Images) -> tuple[dict[str, Float[Tensor, "B F _ _"]], Any]:
        """Maps by level, with an extra coarsest one for large proposals, and torchvision's ImageList."""
        from torchvision.models.detection.image_list import ImageList

        # float32: autocast would round anchors and boxes to 4 pixels in a thousand, for they take the maps' precision
        maps = [x.float() for x in self.pyramid(maps_of(self.backbone, images))]
        maps.append(maps[-1][..., ::2, ::2])  # ViTDet and FPN: every second cell of the coarsest map
        size = images.shape[-2], images.shape[-1]
        return OrderedDict((str(i), x) for i, x in enumerate(maps)), ImageList(images, [size] * len(images))


def on_image(found: Found, size: Size, shown: Size) -> Found:
    """Detections on a letterboxed image, converted to pixels of the original image.

    size    of the original image (h, w)     shown   rows and columns that it fills of the letterboxed one
    Boxes are clipped to the image, those outside removed; masks become Bool[n, H, W] of the full image.
    """
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    (height, width), (rows, columns) = size, shown
    boxes = found["boxes"].float() * found["boxes"].new_tensor([width / columns, height / rows] * 2)
    limits = boxes.new_tensor([width, height] * 2)
    inside = boxes.clamp(torch.zeros_like(limits), limits)
    keep = (inside[:, 2:] > inside[:, :2]).all(1)
    result = {"boxes": inside[keep], "labels": found["labels"][keep], "scores": found["scores"][keep]}
    if "masks" in found:
        pasted = paste_masks_in_image(found["masks"][keep].float(), boxes[keep], size)
        result["masks"] = pasted[:, 0] >= 0.5
    return result


class Exact(nn.Module):
    """A head with outputs converted to float32 under autocast, for boxes and losses are computed from them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Any) -> Any:
        return _exact(self.head(x))


def _exact(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) else type(x)(_exact(chunk) for chunk in x)


class _Width(nn.Module):
    """Placeholder for a backbone, for torchvision's constructors read only `out_channels`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


def _mask_rcnn(channels: int, classes: int, strides: Sequence[int], masks: bool, anchor: float, regions: int) -> Any:
    """torchvision's Mask R-CNN, or Faster R-CNN without masks, for its `rpn` and `roi_heads`."""
    from torchvision.models.detection import FasterRCNN, MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.ops import MultiScaleRoIAlign

    levels = [str(i) for i in range(len(strides))]
    sides = tuple((round(anchor * stride),) for stride in (*strides, 2 * strides[-1]))
    # FPN Eq. (1) sends a region of 224 pixels to stride 16: 28 cells of 8 pixels, here of the anchors' size
    scale = round(28 * anchor)
    predictor = FastRCNNPredictor(4 * channels, classes + 1)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):  # Fast R-CNN, section 2.3
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    common: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        "rpn_head": Exact(RPNHead(channels, 3, conv_depth=2)),
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2, canonical_scale=scale),
        "box_head": FastRCNNConvFCHead((channels, 7, 7), [channels] * 4, [4 * channels], LayerNorm2d),
        "box_predictor": Exact(predictor),
        "box_batch_size_per_image": regions,
        "rpn_post_nms_top_n_train": 1000,
        "rpn_post_nms_top_n_test": 1000,
    }
    if not masks:
        return FasterRCNN(_Width(channels), **common)
    return MaskRCNN(
        _Width(channels),
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2, canonical_scale=scale),
        mask_head=MaskRCNNHeads(channels, [channels] * 4, 1, LayerNorm2d),
        mask_predictor=Exact(MaskRCNNPredictor(channels, channels, classes + 1)),
        **common,
    )


__all__ = ["LOSSES", "Boxed", "Detector", "Found", "Targets", "on_image"]
