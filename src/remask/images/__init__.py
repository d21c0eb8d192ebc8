"""x of the equation: pictures from anywhere as uint8 batches, in an order that a seed decides."""

from remask.images.decoding import BadImage, decode
from remask.images.jitter import Jitter
from remask.images.loader import Batch, Loader, TooManyBad, iterate
from remask.images.sources import Source, open_source
from remask.images.subset import Subset, by_classes
from remask.images.transforms import CentreCrop, RandomCropFlip, Transform, resize

__all__ = [
    "BadImage",
    "Batch",
    "CentreCrop",
    "Jitter",
    "Loader",
    "RandomCropFlip",
    "Source",
    "Subset",
    "TooManyBad",
    "Transform",
    "by_classes",
    "decode",
    "iterate",
    "open_source",
    "resize",
]
