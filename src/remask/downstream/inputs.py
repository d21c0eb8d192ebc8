"""Checks that a downstream recipe names all it needs, and that the paths exist. Free of torch."""

import os

from remask.errors import UserError, naming
from remask.files.escaping import printable
from remask.images.sources.addresses import check_second, check_source
from remask.recipe.downstream import Detect, DetectModel, Downstream, Finetune, FinetuneModel, Segment, SegmentModel
from remask.recipe.networks import check_encoder

NO_NETWORK = "no network to start from: give a RUN, or mae:FILE, timm:NAME, untrained:NAME"
NO_IMAGES = {
    "finetune": "no pictures to learn from: give --data DIR of class folders, parquet or tar shards",
    "segment": "no pictures to learn from: give --data DIR and --masks DIR",
    "detect": "no pictures to learn from: give --data DIR and --annotations JSON",
}
NO_TEST = "no pictures to test on: give --val DIR and --val-annotations JSON"


def check_task_recipe(recipe: Downstream, tested: bool = False) -> None:
    """Raise UserError, with the message of opening it, for a path or network of the recipe that does not exist.

    tested   a run is only tested: training images are not checked if there are test images
    """
    if isinstance(recipe, Finetune):
        _check_classes(recipe, tested)
    elif isinstance(recipe, Segment):
        _check_masks(recipe, tested)
    elif isinstance(recipe, Detect):
        _check_boxes(recipe, tested)
    check_network(recipe.model)  # type: ignore[attr-defined]


def check_network(model: FinetuneModel | SegmentModel | DetectModel) -> None:
    """Raise UserError if the recipe names no initial network, or one whose file does not exist."""
    if model.source is None:
        raise UserError(NO_NETWORK)
    with naming(stated_keys(model)):
        check_encoder(model.source)


def stated_keys(model: FinetuneModel | SegmentModel | DetectModel) -> list[str]:
    """The keys that are set of those that complete a file of weights: heads, normalise."""
    return [f"model.{key}" for key in ("heads", "normalise") if getattr(model, key)]


def masked_folder(path: str, what: str) -> str:
    """The folder of `what`, images or masks, with ~ expanded. Raises UserError if it does not exist."""
    path = os.path.expanduser(path).rstrip("/") or "/"
    if not os.path.isdir(path):
        raise UserError(f"there is no folder of {what} {printable(path)!r}")
    return path


def annotated_folder(images: str, annotations: str) -> str:
    """The folder of annotated images, with ~ expanded. Raises UserError if it does not exist."""
    folder = os.path.expanduser(images)
    if not os.path.isdir(folder):
        raise UserError(f"{printable(images)} is no folder: give the one that holds the pictures of {annotations}")
    return folder


def unreadable_annotations(path: str, error: OSError) -> UserError:
    """The error for an annotation file that cannot be opened."""
    return UserError(f"cannot read the annotations {printable(path)}: {error.strerror}")


def _check_classes(recipe: Finetune, tested: bool) -> None:
    data = recipe.data
    if not (tested and data.val is not None):
        if data.source is None:
            raise UserError(NO_IMAGES["finetune"])
        check_source(data.source, data.limit, data.exclude)
    check_second(data.val, data.exclude)


def _check_masks(recipe: Segment, tested: bool) -> None:
    data = recipe.data
    if not (tested and data.val):
        if data.source is None:
            raise UserError(NO_IMAGES["segment"])
        masked_folder(data.source, "images")
        _check_masks_of(data.masks)
    if data.val is not None:
        masked_folder(data.val, "images")
        _check_masks_of(data.val_masks)


def _check_masks_of(masks: str | None) -> None:
    """Raise UserError unless `masks` is a folder, a panoptic JSON file, or a folder with that file beside it."""
    if masks is not None:
        path = os.path.expanduser(masks).rstrip("/")
        if not any(file.endswith(".json") and os.path.isfile(file) for file in (path, path + ".json")):
            masked_folder(path, "masks")


def _check_boxes(recipe: Detect, tested: bool) -> None:
    data = recipe.data
    if data.val is None or data.val_annotations is None:
        raise UserError(NO_TEST)
    _check_annotated(data.val, data.val_annotations)
    if tested:
        return
    if data.source is None or data.annotations is None:
        raise UserError(NO_IMAGES["detect"])
    _check_annotated(data.source, data.annotations)


def _check_annotated(images: str, annotations: str) -> None:
    annotated_folder(images, annotations)
    try:
        with open(os.path.expanduser(annotations), "rb"):
            pass
    except OSError as error:
        raise unreadable_annotations(annotations, error) from None


__all__ = [
    "NO_IMAGES", "NO_NETWORK", "NO_TEST", "annotated_folder", "check_network", "check_task_recipe", "masked_folder",
    "stated_keys", "unreadable_annotations",
]  # fmt: skip
