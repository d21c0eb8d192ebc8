"""Fine-tuning as a `Task`: labelled images of [data], a Classifier of [model], top-1 and a confusion matrix."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from remask.downstream.finetune.accuracy import confusion_figure, score
from remask.downstream.finetune.augment import EvalCrop, TrainAugment
from remask.downstream.finetune.classifier import Classifier
from remask.downstream.finetune.mixing import Mixing
from remask.downstream.inputs import NO_IMAGES
from remask.downstream.network import check_all, fix_pixel_range, freeze, gflops, network, opened_of, workers
from remask.downstream.training import Task
from remask.errors import UserError
from remask.files.replacing import write_bytes
from remask.images.levels import FULL
from remask.images.loading.loader import Loader, in_order
from remask.images.sources.files import printable
from remask.images.sources.hold_out import BY_CLASS, fifth, hold_out, split_source
from remask.images.sources.left_out import notes
from remask.images.sources.opening import Source, open_second, open_source
from remask.images.sources.subset import Subset, by_classes
from remask.interop.start import constants
from remask.recipe.downstream import ClassesData, Finetune
from remask.seeds import generator
from remask.training.gathering import unusable_of_all
from remask.training.progress import Watch
from remask.training.runtime import Runtime
from remask.types import Size


def build_finetune(
    recipe: Finetune, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None,
    begun: Any = None,
) -> Task:  # fmt: skip
    """The task of fine-tuning; arguments and errors as in `build_task`."""
    data, world = recipe.data, runtime.world
    source, val = labelled(data, recipe.seed, facts, begun)
    names = source.classes or []
    classifier, size = classifier_of(recipe, names)
    backbone = classifier.backbone
    pixels, range_lines = fix_pixel_range(backbone, source, data, facts or begun)
    scaling = backbone.normalise.scaling
    crop = _crop(recipe, backbone, size)
    train = None if facts else Loader(
        source, crop, recipe.optim.batch_size, seed=recipe.seed, workers=workers(recipe.runtime, runtime),
        channels=backbone.channels, max_bad=data.max_bad, pin=runtime.device.type == "cuda",
        scaling=scaling, share=world.share, report=report,
    )  # fmt: skip

    def batches() -> Iterator[Any]:
        loader = in_order(
            val, EvalCrop(size, data.crop_pct), 256 * world.size, channels=backbone.channels, max_bad=data.max_bad,
            scaling=scaling, share=world.share, report=report,
        )  # fmt: skip
        yield from loader.epoch(0)
        if not world.alone:
            unusable_of_all(loader)

    last: dict[str, Any] = {}

    def test(tested: Classifier, watch: Watch) -> dict[str, Any]:
        last["scores"] = scores = score(
            tested, watch.over(batches(), len(val), "test"), runtime.device, runtime.autocast
        )
        summary = scores.summary(names)
        summary["bad_images"] = len(val) - summary["images"]
        images = (sum(facts.get("pictures", [])) or None) if facts else len(source)
        protocol = _protocol(data, counted(val), names) | {"images": images, "seed": recipe.seed}
        return summary | {"protocol": protocol}

    def show(tested: Classifier, folder: Path) -> None:
        write_bytes(folder / "confusion.png", confusion_figure(last["scores"].confusion, names))

    stored_facts = facts or {**_facts(source, begun), **pixels}
    lines, cost = (
        [*range_lines, *dict.fromkeys([*notes(source), *notes(val)])],
        gflops(classifier, classifier.logits, size),
    )
    opened = opened_of(data, source, val, facts)
    return Task(classifier, train, len(source), test, "top1", cost, show, stored_facts, lines, (), opened)


def _crop(recipe: Finetune, backbone: Any, size: Size) -> TrainAugment:
    """The augmentation of [augment] and [data]. Raises UserError for steps that need 8 bits if images are deeper."""
    data, augment = recipe.data, recipe.augment
    if backbone.normalise.deep_set and ((augment.randaugment or "off") != "off" or augment.jitter):
        raise UserError(
            "augment.randaugment and augment.jitter change pictures of 8 bits, and these are deeper: set randaugment "
            'to "off" and jitter to 0, or data.range=byte'
        )
    return TrainAugment(
        size, *constants(backbone), data.crop_scale, data.crop_ratio, data.flip,
        augment.randaugment or "off", augment.jitter, augment.erasing, levels=backbone.normalise.levels or FULL,
    )  # fmt: skip


def _facts(source: Source, begun: Any) -> dict[str, Any]:
    """Content of task.json: {"classes", "pictures": images per class, "held_out"}; a resumed run keeps "held_out"."""
    held_out = {"held_out": BY_CLASS} if begun is None else {key: begun[key] for key in begun if key == "held_out"}
    return {"classes": source.classes or [], "pictures": counted(source)} | held_out


def _protocol(data: ClassesData, tested: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """The "protocol" of eval/finetune.json; `tested` counts the test images of each class, which may be 0."""
    protocol = {"data": data.source, "val": data.val or "a fifth of the source", "share": data.share or 1.0}
    untested = [name for name, images in zip(names, tested, strict=True) if not images]
    return protocol | ({"untested": untested} if untested else {})


def classifier_of(recipe: Finetune, names: Sequence[str]) -> tuple[Classifier, Size]:
    """The Classifier of [model] for classes `names`, and its image size in pixels (h, w)."""
    model, augment = recipe.model, recipe.augment
    backbone, size = network(model, recipe.data.image_size)
    mixes = augment.mixup or augment.cutmix  # both 0, the default: no mixing
    mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_prob, augment.switch_prob) if mixes else None
    classifier = Classifier(
        backbone, len(names), pool=model.pool, dropout=model.dropout, smoothing=model.smoothing,
        mixing=mixing, init_scale=model.init_scale,
    )  # fmt: skip
    freeze(classifier, model)
    return classifier, size


def labelled(data: ClassesData, seed: int, facts: Any = None, begun: Any = None) -> tuple[Source, Source]:
    """Training and test images, labelled by the same classes; a random fifth is held out if data.val is not set.

    facts   task.json of a run that is only tested: its classes number the test images
    begun   task.json of a run that is resumed: its classes number the training images, which must have them all
    Raises UserError for sources that do not have these classes, or do not exist.
    """
    if facts and data.val is not None:
        val = of_run(open_second(data.val, labelled=True, exclude=data.exclude, one_class=True), facts)
        return val, val
    if data.source is None:
        raise UserError(NO_IMAGES["finetune"])
    source = open_source(data.source, limit=data.limit, labelled=True, exclude=data.exclude)
    if facts or begun:
        source = of_run(source, facts or begun)
    before = facts or begun
    older = bool(before) and before.get("held_out") != BY_CLASS
    source, val = split(source, data.val, seed, data.exclude, older=older)
    source = some_of(source, data.share, seed) if data.share else source
    if not facts:
        check_classes(source, begun)
    return source, val


def split(
    source: Source, val: str | None, seed: int, exclude: Sequence[str] = (), *, older: bool = False
) -> tuple[Source, Source]:
    """Training and test images, labelled by the same classes; without a test source, a random fifth is held out.

    older   hold out regardless of classes, like runs of older versions
    Raises UserError for a class of the test source without training images, or too few images to hold out any.
    """
    if val is not None:
        test = open_second(val, labelled=True, exclude=exclude, one_class=True)
        return source, by_classes(test, source.classes or [], printable(source.name), source.labels)
    order = torch.randperm(len(source), generator=generator(seed, "hold out")).tolist()
    return split_source(source, fifth(order) if older else hold_out(order, source.labels), "test pictures with --val")


def some_of(source: Source, share: float, seed: int) -> Source:
    """A random subset with `share` of each class, at least one image per class; the same for the same seed."""
    labels, chosen = torch.tensor(source.labels), []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "share", label))
        chosen += members[order[: max(1, math.ceil(share * len(members)))]].tolist()
    return Subset(source, sorted(chosen))


def of_run(source: Source, facts: Mapping[str, Any]) -> Source:
    """A source labelled by the classes of a run's task.json. Raises UserError for a class that the run lacks."""
    classes, images = facts["classes"], facts.get("pictures")
    trained = None if images is None else [number for number, count in enumerate(images) if count]
    return by_classes(source, classes, "the run", trained)


def counted(source: Source) -> list[int]:
    """Number of images of each class."""
    counts = Counter(source.labels)
    return [counts[number] for number in range(len(source.classes or []))]


def check_classes(source: Source, begun: Any) -> None:
    """Raise UserError for images of a single class, or if a class of the resumed run (`begun`) has none."""
    counts = counted(source)
    if sum(map(bool, counts)) < 2:
        raise UserError(f"all {len(source)} pictures of {source.name} are of one class: at least two are needed")
    before = (begun or {}).get("pictures", [])  # absent in runs of older versions
    learned = [name for name, images in zip(source.classes or [], before, strict=False) if images]
    check_all(learned, [name for name, images in zip(source.classes or [], counts, strict=True) if images], source.name)


__all__ = ["build_finetune", "classifier_of", "labelled", "some_of", "split"]
