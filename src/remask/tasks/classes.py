"""Fine-tuning: [data] → pictures of classes, [model] → Classifier, top-1 and a confusion matrix."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from remask.console import Watch
from remask.downstream import Task
from remask.evaluation.accuracy import confusion_picture, score
from remask.evaluation.classifier import Classifier
from remask.evaluation.mixing import Mixing
from remask.images import Loader, Source, Subset, iterate, open_source
from remask.images.augment import EvalCrop, TrainAugment
from remask.images.left_out import notes
from remask.images.sources import open_second
from remask.interop.start import constants
from remask.recipe.downstream import ClassesData, Finetune
from remask.runtime import Runtime, generator
from remask.tasks.network import freeze, gflops, network, workers
from remask.types import Size, UserError


def build_finetune(
    recipe: Finetune, runtime: Runtime, report: Callable[[str], None] | None = None, facts: Any = None
) -> Task:
    """See `build_task`."""
    data, augment = recipe.data, recipe.augment
    source, val = labelled(data, recipe.seed, bool(facts))
    names = facts["classes"] if facts else classes_of(source, val)
    classifier, size = classifier_of(recipe, names)
    backbone = classifier.backbone
    crop = TrainAugment(
        size, *constants(backbone), data.crop_scale, data.crop_ratio, data.flip,
        augment.randaugment or "off", augment.jitter, augment.erasing,
    )  # fmt: skip
    train = None if facts else Loader(
        source, crop, recipe.optim.batch_size, seed=recipe.seed, workers=workers(recipe.runtime, runtime),
        channels=backbone.channels, max_bad=data.max_bad, pin=runtime.device.type == "cuda", report=report,
    )  # fmt: skip

    def batches() -> Iterable[Any]:
        return iterate(
            val, EvalCrop(size, data.crop_pct), 256, channels=backbone.channels, max_bad=data.max_bad, report=report
        )

    found: dict[str, Any] = {}

    def test(tested: Classifier, watch: Watch) -> dict[str, Any]:
        found["scores"] = scores = score(
            tested, watch.over(batches(), len(val), "test"), runtime.device, runtime.autocast
        )
        protocol = {"data": data.source, "val": data.val or "a fifth of the source", "share": data.share or 1.0}
        summary = scores.summary(names)
        summary["bad_images"] = len(val) - summary["images"]
        return summary | {"protocol": protocol | {"images": len(source), "seed": recipe.seed}}

    def show(tested: Classifier, folder: Path) -> None:
        (folder / "confusion.png").write_bytes(confusion_picture(found["scores"].confusion, names))

    return Task(
        classifier,
        train,
        len(source),
        test,
        "top1",
        gflops(classifier, classifier.logits, size),
        show,
        {"classes": names},
        list(dict.fromkeys([*notes(source), *notes(val)])),
    )


def classifier_of(recipe: Finetune, names: Sequence[str]) -> tuple[Classifier, Size]:
    """[model] → the network with a head of these classes, and the size of its pictures."""
    model, augment = recipe.model, recipe.augment
    backbone, size = network(model, recipe.data.image_size)
    mixes = augment.mixup or augment.cutmix  # 0 and 0, the defaults, are no mixing
    mixing = Mixing(augment.mixup, augment.cutmix, augment.mix_prob, augment.switch_prob) if mixes else None
    classifier = Classifier(
        backbone, len(names), pool=model.pool, dropout=model.dropout, smoothing=model.smoothing,
        mixing=mixing, init_scale=model.init_scale,
    )  # fmt: skip
    freeze(classifier, model)
    return classifier, size


def labelled(data: ClassesData, seed: int, only_val: bool) -> tuple[Source, Source]:
    """Pictures to learn from and to test on; a random fifth is held out where no test pictures are given."""
    if data.val is None or not only_val:
        if data.source is None:
            raise UserError("no pictures to learn from: give --data DIR of class folders, parquet or tar shards")
        source = open_source(data.source, limit=data.limit, labelled=True, exclude=data.exclude)
        source, val = split(source, data.val, seed, data.exclude)
        return (some_of(source, data.share, seed) if data.share else source), val
    val = open_second(data.val, labelled=True, exclude=data.exclude)
    return val, val


def split(source: Source, val: str | None, seed: int, exclude: Sequence[str] = ()) -> tuple[Source, Source]:
    """Training and test pictures; without a test source, a random fifth is held out."""
    if val is not None:
        return source, open_second(val, labelled=True, exclude=exclude)
    order = torch.randperm(len(source), generator=generator(seed, "hold out")).tolist()
    cut = len(order) // 5
    return Subset(source, order[cut:]), Subset(source, order[:cut])


def some_of(source: Source, share: float, seed: int) -> Source:
    """A share of each class, at least one picture; the same for the same seed."""
    labels, kept = torch.tensor(source.labels), []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "share", label))
        kept += members[order[: max(1, math.ceil(share * len(members)))]].tolist()
    return Subset(source, sorted(kept))


def classes_of(source: Source, val: Source) -> list[str]:
    """The names of the classes by number. Raises UserError where the two sources do not mean the same by them."""
    assert source.labels is not None
    assert val.labels is not None
    count = max(source.labels) + 1
    if source.classes and val.classes and source.classes != val.classes:
        other = next((name for name in val.classes if name not in source.classes), None)
        why = f"{other!r} is not among the training pictures" if other else "the training pictures have others too"
        raise UserError(f"the classes of {val.name} are not those of {source.name}: {why}; both need the same")
    if (unknown := max(val.labels)) >= count:
        raise UserError(f"class {unknown} of {val.name} has no picture in {source.name}: both need the same classes")
    if len(set(source.labels)) < 2:
        raise UserError(f"all {len(source)} pictures of {source.name} are of one class: at least two are needed")
    return list(source.classes) if source.classes else [str(number) for number in range(count)]


__all__ = ["build_finetune", "classes_of", "classifier_of", "labelled", "some_of", "split"]
