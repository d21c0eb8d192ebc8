"""Map-style datasets as sources: torchvision's, Hugging Face's, or any with a length and items by number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from remask.errors import UserError
from remask.images.decoding import BadImage

IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels", "fine_label")
"""Columns of a Hugging Face dataset; the first that it has is used."""
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B")
"""Pillow's modes of more than 8 bits, whose values are taken as they are."""


class FromDataset:
    """A dataset as a `Source`; items are read when a batch needs them. Made by `from_dataset`."""

    def __init__(self, dataset: Any, name: str, labels: list[int] | None, classes: list[str] | None) -> None:
        self.dataset, self.name, self.labels, self.classes = dataset, name, labels, classes
        self.left_out: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, i: int) -> np.ndarray:
        """Pixels [H, W, C] or [H, W] of an item. Raises BadImage where it is no image."""
        return pixels_of(_image_of(self.dataset[i]))

    def where(self, i: int) -> str:
        return f"{self.name}[{i}]"


def from_dataset(dataset: Any, *, labels: Sequence[int] | None = None, name: str | None = None) -> FromDataset:
    """A source of the images of any map-style dataset, for `Loader` and everything that takes a source.

    dataset   len(dataset), and dataset[i] an image, a tuple that begins with one, or a dict with one under "image"
              (also "img"). Images are Pillow's, arrays [H, W, C] or [H, W], or tensors [C, H, W]: uint8, uint16, or
              floats in 0..1. They are taken before any crop or normalisation: leave those to the loader
    labels    a class number for each item; from dataset.targets, dataset.labels or a column "label" unless given
    name      of the source in messages; the dataset's class unless given
    Raises UserError where dataset has no length or no items by number, or not one label for each item.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UserError(
            f"{type(dataset).__name__} is no map-style dataset: it needs len(dataset) and dataset[i]; list(dataset) "
            "makes one of an iterable that fits in memory"
        )
    values = _labels_of(dataset) if labels is None else labels
    numbers = None if values is None else [int(label) for label in values]
    if numbers is not None and len(numbers) != len(dataset):
        raise UserError(f"{len(numbers)} labels are not one for each of {len(dataset)} items")
    if numbers is not None and min(numbers, default=0) < 0:
        raise UserError("labels are class numbers from 0 on; leave out items without one")
    classes = None if numbers is None else _classes_of(dataset, max(numbers, default=-1) + 1)
    return FromDataset(dataset, name or type(dataset).__name__, numbers, classes)


def _labels_of(dataset: Any) -> Sequence[int] | None:
    for attribute in ("targets", "labels"):
        values = getattr(dataset, attribute, None)
        if values is not None and not callable(values) and len(values) == len(dataset):
            return list(values)
    for key in LABEL_KEYS:
        if key in (getattr(dataset, "column_names", None) or ()):
            return list(dataset[key])
    return None


def _classes_of(dataset: Any, count: int) -> list[str]:
    """Class names by number: the dataset's own, or the numbers as text."""
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        names = next((getattr(features[key], "names", None) for key in LABEL_KEYS if key in features), None)
    if names is None or len(names) < count:
        names = range(count)
    return [str(name) for name in names]


def _image_of(item: Any) -> Any:
    if isinstance(item, Mapping):
        key = next((key for key in IMAGE_KEYS if key in item), None)
        if key is None:
            raise BadImage(f"an item with {', '.join(map(str, item))} has no image under {' or '.join(IMAGE_KEYS)}")
        return item[key]
    return item[0] if isinstance(item, tuple | list) else item


def pixels_of(image: Any) -> np.ndarray:
    """Pixels [H, W, C] or [H, W] of an image in Pillow's, NumPy's or PyTorch's form. BadImage for anything else."""
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        plain = image if image.mode in ("L", "RGB", "RGBA", *DEEP_MODES) else image.convert("RGB")
        return np.asarray(plain)
    if isinstance(image, torch.Tensor):
        if image.ndim not in (2, 3):
            raise BadImage(f"a tensor of shape {tuple(image.shape)} is no image [C, H, W]")
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).contiguous().numpy()
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        raise BadImage(f"a {type(image).__name__} is no image")
    if image.dtype.kind not in "uif":
        raise BadImage(f"pixels of type {image.dtype} are no image")
    if image.dtype.kind == "f" and image.size and float(np.nanmin(image)) < 0:
        raise BadImage("pixels below 0 look normalised: give them before normalisation")
    return image


__all__ = ["FromDataset", "from_dataset"]
