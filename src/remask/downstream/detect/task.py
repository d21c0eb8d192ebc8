"""Detection: [data] → pictures with boxes and masks, [model] → Detector, COCO's average precision and a sheet."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from remask.downstream.detect.average_precision import average_precision, detections
from remask.downstream.detect.boxes import BoxLoader, LargeScaleJitter, Letterbox
from remask.downstream.detect.coco import CocoSource, open_coco
from remask.downstream.detect.detector import Detector, on_image
from remask.downstream.detect.drawing import Drawing, sheet_of_boxes
from remask.downstream.inputs import NO_IMAGES, NO_TEST
from remask.downstream.network import check_all, fix_pixel_range, freeze, gflops, network, opened_of, workers
from remask.downstream.training import Task
from remask.errors import UserError
from remask.images.loading.image_cache import decoded
from remask.images.sources.files import printable
from remask.images.sources.labels import match
from remask.images.sources.left_out import notes
from remask.images.tools.measuring import FirstOf
from remask.recipe.downstream import BoxesData, Detect
from remask.training.progress import Watch
from remask.training.runtime import Runtime
from remask.types import Size

SHOWN = 8
"""Test pictures on the sheet."""


def build_detect(
    recipe: Detect, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None, begun: Any = None
) -> Task:
    """See `build_task`."""
    data = recipe.data
    source, val = opened(data, report, facts, begun)
    masks = facts["masks"] if facts else source.masks
    detector, size = detector_of(recipe, source.classes, masks)
    backbone = detector.backbone
    pixels, told_pixels = fix_pixel_range(backbone, FirstOf(source), data, facts or begun)
    scaling = backbone.normalise.scaling
    train = None if facts else BoxLoader(
        source, LargeScaleJitter(size, data.scale, data.flip), recipe.optim.batch_size, seed=recipe.seed,
        workers=workers(recipe.runtime, runtime), channels=backbone.channels, max_bad=data.max_bad,
        pin=runtime.device.type == "cuda", scaling=scaling, report=report,
    )  # fmt: skip
    kinds = ("bbox", "segm") if masks and val.masks else ("bbox",)
    usable = list[int]()

    def test(tested: Detector, watch: Watch) -> dict[str, Any]:
        loader = BoxLoader(
            val, Letterbox(size), 4, shuffle=False, channels=backbone.channels, max_bad=data.max_bad, scaling=scaling,
            report=report,
        )  # fmt: skip
        batches = watch.over(loader.epoch(0), len(val), "test")
        dtype = None if runtime.dtype == torch.float32 else runtime.dtype
        results = detections(tested, batches, val.categories, device=runtime.device, dtype=dtype)
        usable[:] = [i for i in range(len(val)) if i not in loader.unusable]
        found = average_precision(val.truth(usable), results, kinds, per_class=True)
        protocol = {"data": data.source, "val": data.val, "val_annotations": data.val_annotations, "size": list(size)}
        flat = {name: _percent(found["bbox"][name]) for name in ("AP", "AP50")} | found
        flat |= {"categories": dict(zip(val.categories, val.classes, strict=True)), "images": len(usable)}
        skipped = {"test": val.skipped()} | ({} if facts else {"train": source.skipped()})
        flat |= {"bad_images": len(loader.unusable), "skipped": skipped}
        flat |= {"detections": len(results), "files": {"detections.json": val.as_annotated(results)}}
        return flat | {"protocol": protocol | {"seed": recipe.seed}}

    def show(tested: Detector, folder: Path) -> None:
        (folder / "detections.png").write_bytes(_drawn(tested, val, usable, size, runtime))

    told = {"classes": source.classes, "masks": masks, **pixels}
    both = [val] if facts else [source, val]
    said = told_pixels + list(dict.fromkeys(line for one in both for line in [*notes(one), *one.notes()]))
    left_out = [line for one in both for line in one.all_skipped()]
    cost = gflops(detector, detector.detect, size)
    return Task(
        detector, train, len(source), test, "AP", cost, show, told, said, left_out, opened_of(data, source, val, facts)
    )


def _drawn(detector: Detector, val: CocoSource, usable: Sequence[int], size: Size, runtime: Runtime) -> bytes:
    """A PNG of some test pictures with what is found on them."""
    drawings, letterbox, channels = [], Letterbox(size), detector.backbone.channels
    for i in usable[:: max(1, len(usable) // SHOWN)]:
        encoded, target = val.read(i)
        scaling = detector.backbone.normalise.scaling
        original = decoded(encoded, channels, scaling)
        image, placed = letterbox(original, target)
        image = scaling.of_shades(image) if scaling else image
        found = on_image(detector.detect(image[None].to(runtime.device))[0], target["size"], placed["shown"])
        drawings.append(Drawing(original[:3].to(torch.uint8).expand(3, -1, -1), found, Path(val.where(i)).name))
    return sheet_of_boxes(drawings[:SHOWN], val.classes)


def _percent(share: float | None) -> float | None:
    """None where there is nothing to find."""
    return None if share is None else 100 * share


def detector_of(recipe: Detect, classes: Sequence[str], masks: bool) -> tuple[Detector, Size]:
    """[model] → the network with Mask R-CNN for these classes, and the size of its pictures."""
    model = recipe.model
    backbone, size = network(model, recipe.data.image_size)
    detector = Detector(
        backbone, len(classes), size, channels=model.width, masks=masks, anchor=model.anchor,
        score=recipe.test.score, detections=recipe.test.detections,
    )  # fmt: skip
    freeze(detector, model)
    return detector, size


NOTHING = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
"""The precision of a detector that finds nothing."""


def opened(
    data: BoxesData, report: Callable[[str], None] | None, facts: Any, begun: Any = None
) -> tuple[CocoSource, CocoSource]:
    """Pictures to learn from and to test on, by the same classes. COCO's splits are files: nothing is held out of one.

    facts, begun   as `build_task` has them
    """
    if data.val is None or data.val_annotations is None:
        raise UserError(NO_TEST)
    given: dict[str, Any] = {"skip_bad": data.skip_bad, "exif": data.exif, "exclude": data.exclude}
    val = open_coco(data.val, data.val_annotations, **given)
    if facts:
        val = by_categories(val, facts["classes"], data.val_annotations, "the run")
        return val, val
    if data.source is None or data.annotations is None:
        raise UserError(NO_IMAGES["detect"])
    source = open_coco(data.source, data.annotations, limit=data.limit, **given)
    if begun:
        check_all(begun["classes"], source.classes, data.annotations)
        source = by_categories(source, begun["classes"], data.annotations, "the run")
    return source, by_categories(val, source.classes, data.val_annotations, printable(data.annotations))


def by_categories(source: CocoSource, classes: Sequence[str], where: str, other: str) -> CocoSource:
    """The source with labels 1..C in the order of `classes`, its categories matched by name, whatever their ids.

    A class that the file does not list gets an id that the file does not use. Raises UserError for a category that has
    annotations and is none of the classes of `other`.
    """
    if source.classes == list(classes):
        return source
    used = {source.categories.index(a["category_id"]) for of_image in source.annotations for a in of_image}
    places = match(source.classes, classes, used, printable(where), other)
    order = sorted(places, key=lambda number: number in used)  # of two that are one class, the one with annotations
    ids, free = {places[number]: source.categories[number] for number in order}, count(max(source.categories) + 1)
    categories = [ids[place] if place in ids else next(free) for place in range(len(classes))]
    return replace(source, classes=list(classes), categories=categories)


__all__ = ["build_detect", "detector_of", "opened"]
