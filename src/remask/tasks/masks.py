"""Segmentation: [data] → pictures with masks, [model] → Segmenter, mIoU and painted frames."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remask.console import Watch
from remask.downstream import Task
from remask.evaluation.frames import frames
from remask.evaluation.segmenter import Segmenter, evaluate
from remask.images.left_out import notes
from remask.images.masks import IGNORE, MaskFiles, open_masks
from remask.images.paired import PairBatch, PairLoader, ScaleCropFlip, whole_pairs
from remask.interop.start import constants
from remask.recipe.downstream import MasksData, Segment
from remask.runtime import Runtime, generator
from remask.tasks.network import freeze, gflops, network, workers
from remask.types import Size, UserError

SHOWN = 6
"""Test pictures that are painted."""


def build_segment(
    recipe: Segment, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None
) -> Task:
    """See `build_task`."""
    data = recipe.data
    source, val = pairs(data, recipe.seed, facts)
    names, palette = source.classes, source.palette
    segmenter, size = segmenter_of(recipe, names, source.ignore)
    backbone = segmenter.backbone
    fill = tuple(round(255 * value) for value in constants(backbone)[0])
    crop = ScaleCropFlip(size, data.scale, fill=fill, flip=data.flip, photometric=data.photometric)
    train = None if facts else PairLoader(
        source, crop, recipe.optim.batch_size, seed=recipe.seed, workers=workers(recipe.runtime, runtime),
        channels=backbone.channels, max_bad=data.max_bad, pin=runtime.device.type == "cuda", report=report,
    )  # fmt: skip
    step = max(1, round(size[0] * recipe.test.stride)), max(1, round(size[1] * recipe.test.stride))
    asked: dict[str, Any] = {"size": size, "window": size, "stride": step, "flip": recipe.test.flip}

    usable = list[int]()

    def test(tested: Segmenter, watch: Watch) -> dict[str, Any]:
        usable.clear()
        batches = watch.over(_noted(val, backbone.channels, data.max_bad, report, usable), len(val), "test")
        result = evaluate(tested, batches, names=names, device=runtime.device, dtype=_dtype(runtime), **asked)
        result["bad_images"] = len(val) - result["images"]
        result["protocol"] |= {"data": data.source, "val": data.val or "a fifth of the source", "seed": recipe.seed}
        return result

    def show(tested: Segmenter, folder: Path) -> None:
        shown = min(SHOWN, len(usable))
        some = val.subset([usable[i * len(usable) // shown] for i in range(shown)])
        images, truths, guesses = list[Tensor](), list[Tensor](), list[Tensor]()
        for batch in whole_pairs(some, channels=backbone.channels):
            with torch.inference_mode():
                guess = tested.predict(batch.images.to(runtime.device), **asked).cpu()
            images, truths, guesses = [*images, *batch.images], [*truths, *batch.labels.long()], [*guesses, *guess]
        (folder / "frames.png").write_bytes(frames(images, truths, guesses, palette, names, ignore=val.ignore))

    cost = gflops(segmenter, segmenter.logits, size)
    facts = {"classes": names, "none": source.none}
    said = list(dict.fromkeys([*notes(source), *notes(val)]))
    return Task(segmenter, train, len(source), test, "mIoU", cost, show, facts, said)


def _noted(
    val: MaskFiles, channels: int, max_bad: float, report: Callable[[str], None] | None, usable: list[int]
) -> Iterator[PairBatch]:
    """Whole test pairs; the numbers of those that can be used are added to `usable`."""
    for batch in whole_pairs(val, 4, channels=channels, max_bad=max_bad, report=report):
        usable.extend(batch.index.tolist())
        yield batch


def segmenter_of(recipe: Segment, names: Sequence[str], ignore: int = IGNORE) -> tuple[Segmenter, Size]:
    """[model] → the network with a head of these classes, and the size of a training crop."""
    model = recipe.model
    backbone, size = network(model, recipe.data.image_size)
    segmenter = Segmenter(
        backbone, len(names), head=model.head, width=model.width, aux=model.aux, norm=model.norm, ignore=ignore
    )
    freeze(segmenter, model)
    return segmenter, size


def pairs(data: MasksData, seed: int, facts: Any) -> tuple[MaskFiles, MaskFiles]:
    """Pairs to learn from and to test on; of one folder alone a random fifth is held out."""
    if data.source is None and not (facts and data.val):
        raise UserError("no pictures to learn from: give --data DIR and --masks DIR")
    given: dict[str, Any] = {"classes": data.classes, "ignore": data.ignore, "reduce_zero": data.reduce_zero}
    given |= {"exif": data.exif, "exclude": data.exclude}
    val = open_masks(data.val, data.val_masks, **given) if data.val else None
    if facts and val:
        val = _alike(val, data, facts["classes"], facts.get("none"), given)
        _check(val.classes, facts["classes"], f"{data.val}", "the model")
        return val, val
    source = open_masks(str(data.source), data.masks, limit=data.limit, **given)
    if val is None:
        order = torch.randperm(len(source), generator=generator(seed, "hold out")).tolist()
        cut = max(1, len(order) // 5)
        return source.subset(order[cut:]), source.subset(order[:cut])
    val = _alike(val, data, source.classes, source.none, given)
    _check(val.classes, source.classes, f"{data.val}", f"{data.source}")
    return source, val


def _alike(
    val: MaskFiles, data: MasksData, classes: list[str], none: int | None, given: Mapping[str, Any]
) -> MaskFiles:
    """Test masks by the classes that are known, where no file declares theirs: they may lack the last ones."""
    if val.declared or val.classes == classes:
        return val
    none = data.ignore if data.ignore is not None else none
    place = None if none is None else none - int(data.reduce_zero)
    names = [*classes]
    if place is not None and 0 <= place <= len(names):  # it was struck from the list, and is struck again
        names.insert(place, "no class")
    return open_masks(str(data.val), data.val_masks, **{**given, "classes": names, "ignore": none})


def _check(classes: list[str], known: list[str], where: str, other: str) -> None:
    if classes != known:
        odd = [name for name in classes if name not in known] or [name for name in known if name not in classes]
        named = f" ({', '.join(odd[:3])}{', …' if len(odd) > 3 else ''} not in both)" if odd else ", in another order"
        raise UserError(
            f"{where} has {len(classes)} classes and {other} {len(known)}{named}: both need the same; "
            "declare them in a classes.json, or say how many with --classes"
        )


def _dtype(runtime: Runtime) -> torch.dtype | None:
    return None if runtime.dtype == torch.float32 else runtime.dtype


__all__ = ["build_segment", "pairs", "segmenter_of"]
