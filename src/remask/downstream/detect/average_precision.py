"""COCO's average precision of boxes and masks (1405.0312, section 5), computed by faster-coco-eval."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from remask.downstream.detect.coco import encode_mask
from remask.downstream.detect.detector import Boxed, Detector, Found, on_image
from remask.errors import UserError
from remask.evaluation.probing.features import Progress

NAMES = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
}
"""Name in papers → name in faster-coco-eval."""


def detections(
    detector: Detector,
    batches: Iterable[Boxed],
    categories: Sequence[Any],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> list[dict[str, Any]]:
    """The detections on the original images, as the entries of a COCO results file (see `coco_results`).

    batches      of a `BoxLoader` with `Letterbox`, whose labels hold the original size and the place of each image
    categories   COCO's ids of labels 1, 2, …
    device       of the images; None: the detector's
    dtype        of autocast; None: no autocast
    progress     called as progress(done, total, text) after each batch
    """
    target_device = torch.device(device) if device is not None else next(detector.parameters()).device
    results: list[dict[str, Any]] = []
    done = 0
    for batch in batches:
        with torch.autocast(target_device.type, dtype=dtype) if dtype else nullcontext():
            found = detector.detect(batch.images.to(target_device))
        for instances, label in zip(found, batch.labels, strict=True):
            results += coco_results(on_image(instances, label["size"], label["shown"]), label["image_id"], categories)
        done += len(found)
        if progress:
            progress(done, total, "pictures searched")
    return results


def coco_results(found: Found, image_id: Any, categories: Sequence[Any]) -> list[dict[str, Any]]:
    """Instances on an original image as COCO results: {"image_id", "category_id", "bbox", "score", "segmentation"}.

    Boxes are x y w h in pixels; "segmentation", in compressed run lengths, is absent without masks.
    """
    boxes = found["boxes"].cpu().double()
    boxes[:, 2:] -= boxes[:, :2]
    results: list[dict[str, Any]] = [
        {"image_id": image_id, "category_id": categories[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(
            found["labels"].tolist(), boxes.tolist(), found["scores"].double().tolist(), strict=True
        )
    ]
    for result, mask in zip(results, found.get("masks", ()), strict=False):
        result["segmentation"] = encode_mask(mask.to(torch.uint8))
    return results


def average_precision(
    truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    kinds: Sequence[str] = ("bbox", "segm"),
    *,
    per_class: bool = False,
) -> dict[str, dict[str, Any]]:
    """{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl"}, "segm": …}, in 0..1; None without any true instance.

    truth       content of a COCO instances file, with crowds: `CocoSource.truth`
    results     of the same images, as in a COCO results file
    per_class   add "per_class", {category id: AP}
    Mean over IoUs of .50 to .95, classes and 101 recalls; at most 100 instances per image. Classes without true
    instances are left out of the mean. Small is below 32² pixels, large from 96² on.
    Raises UserError if faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UserError("average precision needs the package faster-coco-eval: pip install 'remask[dense]'") from None
    numbers = _numbers(truth)
    numbered_truth = _numbered({key: truth.get(key, []) for key in ("images", "categories", "annotations")}, numbers)
    numbered_results = [_renamed(r, numbers) for r in results]
    scores: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        # sizes of masks are by their own area; COCO's loader would take the box's area if there were a box
        excluded = "bbox" if kind == "segm" else "segmentation"
        expected = COCO(numbered_truth, use_deepcopy=True)
        detected = expected.loadRes(
            [{key: value for key, value in r.items() if key != excluded} for r in numbered_results]
        )
        evaluation = COCOeval_faster(expected, detected, kind, rle_iou_max_workers=1)
        evaluation.run()
        stats = evaluation.stats_as_dict
        scores[kind] = {name: _or_none(float(stats[theirs])) for name, theirs in NAMES.items()}
        if per_class:
            original = {number: original_id for original_id, number in numbers["category_id"].items()}
            scores[kind]["per_class"] = {original.get(i, i): value for i, value in _per_class(evaluation)}
    return scores


def _per_class(evaluation: Any) -> Iterator[tuple[int, float | None]]:
    """(category id, AP): the mean over IoUs and recalls, for all areas and at most 100 instances per image."""
    precision = evaluation.eval["precision"]  # IoU, recall, category, area, number of instances
    for index, number in enumerate(evaluation.params.catIds):
        values = precision[:, :, index, 0, -1]
        yield int(number), float(values[values > -1].mean()) if (values > -1).any() else None


def _or_none(value: float) -> float | None:
    """The value, or None for COCO's -1, which means no true instance."""
    return value if value > -1 else None


def _numbers(truth: Mapping[str, Any]) -> dict[str, dict[Any, int]]:
    """{"image_id", "category_id": {id: number}}; {} unless some ids are text, which faster-coco-eval does not take."""
    numbers = {}
    for what, key in (("images", "image_id"), ("categories", "category_id")):
        ids = [entry["id"] for entry in truth.get(what, ())]
        numbers[key] = (
            {} if all(type(i) is int for i in ids) else {original_id: n for n, original_id in enumerate(ids, 1)}
        )
    return numbers


def _numbered(truth: dict[str, list[dict[str, Any]]], numbers: Mapping[str, Mapping[Any, int]]) -> dict[str, Any]:
    images, categories = numbers["image_id"], numbers["category_id"]
    return {
        "images": [{**image, "id": images.get(image["id"], image["id"])} for image in truth["images"]],
        "categories": [{**c, "id": categories.get(c["id"], c["id"])} for c in truth["categories"]],
        "annotations": [_renamed(a, numbers) for a in truth["annotations"]],
    }


def _renamed(entry: dict[str, Any], numbers: Mapping[str, Mapping[Any, int]]) -> dict[str, Any]:
    """An annotation or a result with its ids replaced by numbers."""
    return {**entry, **{key: table.get(entry[key], entry[key]) for key, table in numbers.items()}}


__all__ = ["average_precision", "coco_results", "detections"]
