"""Mean intersection over union (mIoU) and pixel accuracies of predicted masks."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from remask.downstream.segment.mask_source import IGNORE
from remask.training.gathering import total


class Confusion:
    """Numbers of pixels by true and predicted class, without pixels whose truth is `ignore`.

    counts   int64 [C, C] on the CPU, rows are the truth
    """

    def __init__(self, classes: int, ignore: int = IGNORE) -> None:
        self.classes, self.ignore = classes, ignore
        self.counts: Int[Tensor, "C C"] = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, truth: Integer[Tensor, "*pixels"], prediction: Integer[Tensor, "*pixels"]) -> None:
        """Count pixels: class numbers 0..C-1 of the same shape, on one device; predictions are never `ignore`."""
        labelled = truth != self.ignore
        pairs = truth[labelled].long() * self.classes + prediction[labelled].long()
        counts = torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)
        self.counts += counts.cpu()

    def gather(self, images: int) -> int:
        """Add the counts of all processes; returns their `images` in all. Collective."""
        sums = total(torch.cat([self.counts.flatten(), torch.tensor([images])]))
        self.counts = sums[:-1].view_as(self.counts)
        return int(sums[-1])

    def scores(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """In percent: "mIoU" and "mAcc" (means over classes), "aAcc" (all pixels), "IoU" and "Acc" by class name.

        The IoU of a class in neither truth nor prediction is None, and so is the accuracy of one not in the truth; the
        means leave them out, as in mmsegmentation and scikit-learn's jaccard_score.
        """
        right, truth = self.counts.diagonal().double(), self.counts.sum(1).double()
        union = truth + self.counts.sum(0).double() - right
        iou, accuracy = 100 * right / union, 100 * right / truth  # 0 / 0 is nan: no such class
        known = names or [f"class {number}" for number in range(self.classes)]
        return {
            "mIoU": _mean(iou),
            "mAcc": _mean(accuracy),
            "aAcc": float(100 * right.sum() / truth.sum()) if truth.sum() else 0.0,
            "IoU": dict(zip(known, map(_number, iou.tolist()), strict=True)),
            "Acc": dict(zip(known, map(_number, accuracy.tolist()), strict=True)),
        }


def _mean(values: Tensor) -> float:
    mean = float(values.nanmean())
    return mean if mean == mean else 0.0


def _number(value: float) -> float | None:
    return value if value == value else None


__all__ = ["Confusion"]
