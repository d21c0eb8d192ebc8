"""Segmentation as a `Task`: images and masks of [data], a Segmenter of [model], mIoU and figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remask.downstream.inputs import NO_IMAGES
from remask.downstream.network import check_all, fix_pixel_range, freeze, gflops, network, opened_of, workers
from remask.downstream.segment.frames import frames
from remask.downstream.segment.label_map import Declared
from remask.downstream.segment.mask_source import IGNORE, MaskFiles, open_masks
from remask.downstream.segment.pairs import PairBatch, PairLoader, ScaleCropFlip, full_pairs
from remask.downstream.segment.segmenter import Segmenter, evaluate
from remask.downstream.training import Task
from remask.errors import UserError
from remask.files.replacing import write_bytes
from remask.images.sources.files import printable
from remask.images.sources.hold_out import hold_out
from remask.images.sources.left_out import notes
from remask.images.tools.measuring import FirstOf
from remask.interop.start import constants
from remask.recipe.downstream import MasksData, Segment
from remask.seeds import generator
from remask.training.distributed import World
from remask.training.progress import Watch
from remask.training.runtime import Runtime
from remask.types import Size

SHOWN = 6
"""Number of test images in the figure."""


def build_segment(
    recipe: Segment, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None,
    begun: Any = None,
) -> Task:  # fmt: skip
    """The task of segmentation; arguments and errors as in `build_task`."""
    data, world = recipe.data, runtime.world
    source, val = pairs(data, recipe.seed, facts, begun)
    names, palette = source.classes, source.palette
    segmenter, size = segmenter_of(recipe, names, source.ignore)
    backbone = segmenter.backbone
    pixels, about = fix_pixel_range(backbone, FirstOf(source), data, facts or begun)
    scaling, usable = backbone.normalise.scaling, list[int]()
    fill = tuple(round(255 * value) for value in constants(backbone)[0])
    crop = ScaleCropFlip(size, data.scale, fill=fill, flip=data.flip, photometric=data.photometric)
    train = None if facts else PairLoader(
        source, crop, recipe.optim.batch_size, seed=recipe.seed, workers=workers(recipe.runtime, runtime),
        channels=backbone.channels, max_bad=data.max_bad, pin=runtime.device.type == "cuda", scaling=scaling,
        share=world.share, report=report,
    )  # fmt: skip
    step = max(1, round(size[0] * recipe.test.stride)), max(1, round(size[1] * recipe.test.stride))
    sliding: dict[str, Any] = {"size": size, "window": size, "stride": step, "flip": recipe.test.flip}

    def test(tested: Segmenter, watch: Watch) -> dict[str, Any]:
        usable.clear()
        batches = watch.over(_test_batches(val, backbone, data.max_bad, report, usable, world), len(val), "test")
        result = evaluate(tested, batches, names=names, device=runtime.device, dtype=_dtype(runtime), **sliding)
        usable[:] = sorted(i for of_one in world.gathered(usable) for i in of_one)
        result["bad_images"] = len(val) - result["images"]
        result["protocol"] |= {"data": data.source, "val": data.val or "a fifth of the source", "seed": recipe.seed}
        return result

    def show(tested: Segmenter, folder: Path) -> None:
        shown = min(SHOWN, len(usable))
        subset = val.subset([usable[i * len(usable) // shown] for i in range(shown)])
        images, truths, guesses = list[Tensor](), list[Tensor](), list[Tensor]()
        for batch in full_pairs(subset, channels=backbone.channels, scaling=scaling):
            with torch.inference_mode():
                guess = tested.predict(batch.images.to(runtime.device), **sliding).cpu()
            shown_ids = backbone.normalise.shown(batch.images.to(runtime.device)).cpu()
            images, truths, guesses = [*images, *shown_ids], [*truths, *batch.labels.long()], [*guesses, *guess]
        write_bytes(folder / "frames.png", frames(images, truths, guesses, palette, names, ignore=val.ignore))

    cost = gflops(segmenter, segmenter.logits, size)
    masks = source.said._asdict() if source.said.names else None
    stored = facts or {"classes": names, "none": source.none, "masks": masks, **pixels}
    lines = about + list(dict.fromkeys([*notes(source), *notes(val)]))
    return Task(
        segmenter, train, len(source), test, "mIoU", cost, show, stored, lines, (), opened_of(data, source, val, facts)
    )


def _test_batches(
    val: MaskFiles, backbone: Any, max_bad: float, report: Callable[[str], None] | None, usable: list[int], world: World
) -> Iterator[PairBatch]:
    """Yields batches of uncropped test pairs, this process's, and appends the numbers of usable ones to `usable`."""
    scaling = backbone.normalise.scaling
    for batch in full_pairs(
        val, 4, channels=backbone.channels, max_bad=max_bad, scaling=scaling, world=world, report=report
    ):
        usable.extend(batch.index.tolist())
        yield batch


def segmenter_of(recipe: Segment, names: Sequence[str], ignore: int = IGNORE) -> tuple[Segmenter, Size]:
    """The Segmenter of [model] for classes `names`, and the size (h, w) of a training crop."""
    model = recipe.model
    backbone, size = network(model, recipe.data.image_size)
    segmenter = Segmenter(
        backbone, len(names), head=model.head, width=model.width, aux=model.aux, norm=model.norm, ignore=ignore
    )
    freeze(segmenter, model)
    return segmenter, size


def pairs(data: MasksData, seed: int, facts: Any, begun: Any = None) -> tuple[MaskFiles, MaskFiles]:
    """Training and test pairs with the same classes; a random fifth is held out if data.val is not set.

    facts, begun   see `build_task`
    Test masks without a declaration of classes are read like the training masks.
    """
    if data.source is None and not (facts and data.val):
        raise UserError(NO_IMAGES["segment"])
    arguments: dict[str, Any] = {"classes": data.classes, "ignore": data.ignore, "reduce_zero": data.reduce_zero}
    arguments |= {"exif": data.exif, "exclude": data.exclude}
    run = facts or begun
    arguments["numbers"] = bool(begun) and "masks" not in begun  # runs of older versions read palettes by number
    declaration = said_by(run, data) if run else None
    if facts and data.val:
        val = open_masks(data.val, data.val_masks, otherwise=declaration, **arguments).by_classes(
            facts["classes"], "the run"
        )
        return val, val
    source = open_masks(str(data.source), data.masks, limit=data.limit, otherwise=declaration, **arguments)
    if begun:
        check_all(begun["classes"], source.classes, source.name)
    if run:
        source = source.by_classes(run["classes"], "the run")
    if data.val is None:
        order = torch.randperm(len(source), generator=generator(seed, "hold out")).tolist()
        held_out = hold_out(order)
        if not held_out.train:
            raise UserError(
                f"{printable(source.name)} has a single picture with a mask: none can be held out for the test; give "
                "more pictures, or test pictures with --val and --val-masks"
            )
        return source.subset(held_out.train), source.subset(held_out.test)
    val = open_masks(data.val, data.val_masks, otherwise=source.said, **arguments)
    return source, val.by_classes(source.classes, printable(source.name))


def said_by(run: Mapping[str, Any], data: MasksData) -> Declared | None:
    """The declaration of classes of a run's training masks, from its task.json; None if they had none."""
    if "masks" in run:
        stored = run["masks"]
        palette = stored and stored["palette"] and [(red, green, blue) for red, green, blue in stored["palette"]]
        return stored and Declared(stored["names"], stored["ignore"], palette, stored["numbers"])
    none, names = data.ignore if data.ignore is not None else run.get("none"), list(run["classes"])
    place = None if none is None else none - int(data.reduce_zero)
    if place is not None and 0 <= place <= len(names):  # an ignored class, which is removed again
        names.insert(place, "no class")
    return Declared(names, none)


def _dtype(runtime: Runtime) -> torch.dtype | None:
    return None if runtime.dtype == torch.float32 else runtime.dtype


__all__ = ["build_segment", "pairs", "segmenter_of"]
