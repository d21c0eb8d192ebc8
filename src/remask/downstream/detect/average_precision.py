"""COCO's average precision of boxes and masks (1405.0312, section 5), counted by faster-coco-eval."""

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
"""COCO's names in papers and those of faster-coco-eval."""


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
    """What the detector finds, in the form of a COCO results file, on the original pictures.

    batches      of a `BoxLoader` with `Fit`: their labels say which picture an image shows, and at what size
    categories   COCO's id of label 1, of label 2, …
    device       where the images go; None = where the backbone is
    dtype        of autocast; None = none
    total        pictures that progress is told of
    """
    where = torch.device(device) if device is not None else next(detector.parameters()).device
    results: list[dict[str, Any]] = []
    done = 0
    for batch in batches:
        with torch.autocast(where.type, dtype=dtype) if dtype else nullcontext():
            found = detector.detect(batch.images.to(where))
        for one, label in zip(found, batch.labels, strict=True):
            results += coco_results(on_image(one, label["size"], label["shown"]), label["image_id"], categories)
        done += len(found)
        if progress:
            progress(done, total, "pictures searched")
    return results


def coco_results(found: Found, image_id: Any, categories: Sequence[Any]) -> list[dict[str, Any]]:
    """Instances on an original picture as COCO's results format has them: x y w h, and compressed run lengths."""
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
    """{"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl"}, "segm": …}, as shares of 1; None where no instance counts.


    truth     a COCO instances file, crowds and all: `CocoSource.truth`
    results   of these pictures, as a COCO results file
    per_class   under this name also the AP of every category, by its id: two may be of one name
    Mean over IoUs of .50 to .95, classes and 101 recalls; at most 100 instances a picture. Classes of which there is
    nothing to find are left out of the mean. Small is below 32² pixels, large from 96² on.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise UserError("average precision needs the package faster-coco-eval: pip install 'remask[dense]'") from None
    numbers = _numbers(truth)
    plain = _numbered({key: truth.get(key, []) for key in ("images", "categories", "annotations")}, numbers)
    told = [_renamed(r, numbers) for r in results]
    scores: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        # a mask's size is that of its own area, not of its box's, which COCO's loader would take if it saw one
        leave = "bbox" if kind == "segm" else "segmentation"
        known = COCO(plain, use_deepcopy=True)
        found = known.loadRes([{key: value for key, value in r.items() if key != leave} for r in told])
        counted = COCOeval_faster(known, found, kind, rle_iou_max_workers=1)
        counted.run()
        stats = counted.stats_as_dict
        scores[kind] = {name: _or_none(float(stats[theirs])) for name, theirs in NAMES.items()}
        if per_class:
            back = {number: own for own, number in numbers["category_id"].items()}
            scores[kind]["per_class"] = {back.get(i, i): value for i, value in _per_class(counted)}
    return scores


def _per_class(counted: Any) -> Iterator[tuple[int, float | None]]:
    """AP of every category by its id: the mean over IoUs and recalls, of all areas, at most 100 instances a picture."""
    precision = counted.eval["precision"]  # IoU, recall, category, area, number of instances
    for place, number in enumerate(counted.params.catIds):
        own = precision[:, :, place, 0, -1]
        yield int(number), float(own[own > -1].mean()) if (own > -1).any() else None


def _or_none(value: float) -> float | None:
    """None for COCO's -1: there is nothing to find."""
    return value if value > -1 else None


def _numbers(truth: Mapping[str, Any]) -> dict[str, dict[Any, int]]:
    """A number for each id of pictures and categories where some are text, which COCO's counting does not take."""
    found = {}
    for what, key in (("images", "image_id"), ("categories", "category_id")):
        ids = [entry["id"] for entry in truth.get(what, ())]
        found[key] = {} if all(type(i) is int for i in ids) else {own: n for n, own in enumerate(ids, 1)}
    return found


def _numbered(truth: dict[str, list[dict[str, Any]]], numbers: Mapping[str, Mapping[Any, int]]) -> dict[str, Any]:
    images, categories = numbers["image_id"], numbers["category_id"]
    return {
        "images": [{**image, "id": images.get(image["id"], image["id"])} for image in truth["images"]],
        "categories": [{**c, "id": categories.get(c["id"], c["id"])} for c in truth["categories"]],
        "annotations": [_renamed(a, numbers) for a in truth["annotations"]],
    }


def _renamed(entry: dict[str, Any], numbers: Mapping[str, Mapping[Any, int]]) -> dict[str, Any]:
    """An annotation or a result with numbers for ids."""
    return {**entry, **{key: own.get(entry[key], entry[key]) for key, own in numbers.items()}}


__all__ = ["average_precision", "coco_results", "detections"]
