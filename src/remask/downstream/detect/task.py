"""Detection as a `Task`: images and annotations of [data], a Detector of [model], COCO's AP, a figure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, count
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
from remask.files.replacing import write_bytes
from remask.images.loading.image_cache import decoded
from remask.images.sources.files import printable
from remask.images.sources.labels import match
from remask.images.sources.left_out import notes
from remask.images.tools.measuring import FirstOf
from remask.recipe.downstream import BoxesData, Detect
from remask.training.gathering import unusable_of_all
from remask.training.progress import Watch
from remask.training.runtime import Runtime
from remask.types import Size

SHOWN = 8
"""Number of test images in the figure."""


def build_detect(
    recipe: Detect, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None, begun: Any = None
) -> Task:
    """The task of detection; arguments and errors as in `build_task`."""
    data, world = recipe.data, runtime.world
    source, val = opened(data, report, facts, begun)
    masks = facts["masks"] if facts else source.masks
    detector, size = detector_of(recipe, source.classes, masks)
    backbone = detector.backbone
    pixels, about = fix_pixel_range(backbone, FirstOf(source), data, facts or begun)
    scaling, usable = backbone.normalise.scaling, list[int]()
    train = None if facts else BoxLoader(
        source, LargeScaleJitter(size, data.scale, data.flip), recipe.optim.batch_size, seed=recipe.seed,
        workers=workers(recipe.runtime, runtime), channels=backbone.channels, max_bad=data.max_bad,
        pin=runtime.device.type == "cuda", scaling=scaling, share=world.share, report=report,
    )  # fmt: skip
    kinds = ("bbox", "segm") if masks and val.masks else ("bbox",)

    def test(tested: Detector, watch: Watch) -> dict[str, Any]:
        loader = BoxLoader(
            val, Letterbox(size), 4 * world.size, shuffle=False, channels=backbone.channels, max_bad=data.max_bad,
            scaling=scaling, share=world.share, report=report,
        )  # fmt: skip
        batches = watch.over(loader.epoch(0), len(val), "test")
        dtype = None if runtime.dtype == torch.float32 else runtime.dtype
        mine = detections(tested, batches, val.categories, device=runtime.device, dtype=dtype)
        unusable_of_all(loader.loader)
        results = _in_order(val, world.gathered(mine))
        usable[:] = [i for i in range(len(val)) if i not in loader.unusable]
        ap = average_precision(val.truth(usable), results, kinds, per_class=True)
        protocol = {"data": data.source, "val": data.val, "val_annotations": data.val_annotations, "size": list(size)}
        scores = {name: _percent(ap["bbox"][name]) for name in ("AP", "AP50")} | ap
        scores |= {"categories": dict(zip(val.categories, val.classes, strict=True)), "images": len(usable)}
        skipped = {"test": val.skipped()} | ({} if facts else {"train": source.skipped()})
        scores |= {"bad_images": len(loader.unusable), "skipped": skipped}
        scores |= {"detections": len(results), "files": {"detections.json": val.as_annotated(results)}}
        return scores | {"protocol": protocol | {"seed": recipe.seed}}

    def show(tested: Detector, folder: Path) -> None:
        write_bytes(folder / "detections.png", _drawn(tested, val, usable, size, runtime))

    stored = {"classes": source.classes, "masks": masks, **pixels}
    sources = [val] if facts else [source, val]
    lines = about + list(dict.fromkeys(line for one in sources for line in [*notes(one), *one.notes()]))
    left_out = [line for one in sources for line in one.all_skipped()]
    cost = gflops(detector, detector.detect, size)
    return Task(
        detector, train, len(source), test, "AP", cost, show, stored, lines, left_out,
        opened_of(data, source, val, facts),
    )  # fmt: skip


def _in_order(val: CocoSource, results: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The results of all processes, in the order of their images in the source."""
    place = {image["id"]: number for number, image in enumerate(val.images)}
    return sorted(chain.from_iterable(results), key=lambda result: place[result["image_id"]])


def _drawn(detector: Detector, val: CocoSource, usable: Sequence[int], size: Size, runtime: Runtime) -> bytes:
    """A PNG of some test images with their detections."""
    drawings, letterbox, channels = [], Letterbox(size), detector.backbone.channels
    for i in usable[:: max(1, len(usable) // SHOWN)]:
        encoded, target = val.read(i)
        scaling = detector.backbone.normalise.scaling
        original = decoded(encoded, channels, scaling)
        image, placed = letterbox(original, target)
        image = scaling.of_shades(image) if scaling else image
        instances = on_image(detector.detect(image[None].to(runtime.device))[0], target["size"], placed["shown"])
        drawings.append(Drawing(original[:3].to(torch.uint8).expand(3, -1, -1), instances, Path(val.where(i)).name))
    return sheet_of_boxes(drawings[:SHOWN], val.classes)


def _percent(share: float | None) -> float | None:
    """The share in percent; None stays None."""
    return None if share is None else 100 * share


def detector_of(recipe: Detect, classes: Sequence[str], masks: bool) -> tuple[Detector, Size]:
    """The Detector of [model] for `classes`, and its image size in pixels (h, w)."""
    model = recipe.model
    backbone, size = network(model, recipe.data.image_size)
    detector = Detector(
        backbone, len(classes), size, channels=model.width, masks=masks, anchor=model.anchor,
        score=recipe.test.score, detections=recipe.test.detections,
    )  # fmt: skip
    freeze(detector, model)
    return detector, size


NOTHING = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
"""The average precision of a detector without detections."""


def opened(
    data: BoxesData, report: Callable[[str], None] | None, facts: Any, begun: Any = None
) -> tuple[CocoSource, CocoSource]:
    """Training and test images with the same classes. COCO's splits are files: no images are held out.

    facts, begun   see `build_task`
    """
    if data.val is None or data.val_annotations is None:
        raise UserError(NO_TEST)
    arguments: dict[str, Any] = {"skip_bad": data.skip_bad, "exif": data.exif, "exclude": data.exclude}
    val = open_coco(data.val, data.val_annotations, **arguments)
    if facts:
        val = by_categories(val, facts["classes"], data.val_annotations, "the run")
        return val, val
    if data.source is None or data.annotations is None:
        raise UserError(NO_IMAGES["detect"])
    source = open_coco(data.source, data.annotations, limit=data.limit, **arguments)
    if begun:
        check_all(begun["classes"], source.classes, data.annotations)
        source = by_categories(source, begun["classes"], data.annotations, "the run")
    return source, by_categories(val, source.classes, data.val_annotations, printable(data.annotations))


def by_categories(source: CocoSource, classes: Sequence[str], where: str, other: str) -> CocoSource:
    """The source with labels 1..C in the order of `classes`; its categories are matched by name, not by id.

    where, other   the file and the owner of `classes`, for errors
    A class that the file does not list gets an unused id. Raises UserError for a category that has annotations but is
    not in `classes`.
    """
    if source.classes == list(classes):
        return source
    used = {source.categories.index(a["category_id"]) for of_image in source.annotations for a in of_image}
    places = match(source.classes, classes, used, printable(where), other)
    order = sorted(places, key=lambda number: number in used)  # if two match one class, the one with annotations wins
    ids, free = {places[number]: source.categories[number] for number in order}, count(max(source.categories) + 1)
    categories = [ids[place] if place in ids else next(free) for place in range(len(classes))]
    return replace(source, classes=list(classes), categories=categories)


__all__ = ["build_detect", "detector_of", "opened"]
