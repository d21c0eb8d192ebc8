"""Which photograph does a crop come from? Crops of the photographs inside scikit-image and scikit-learn, from a seed.

A class is a photograph. Its left part gives the crops of `train`, the middle those of `val`, the right those of `test`,
and the gaps between them none: no pixel is in two splits, and no scene is seen from the same place.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from remask.errors import UserError
from remask.images.decoding import decode
from remask.images.transforms import resize

SIDE = 32
"""Pixels a side of a crop as it is given."""
SIDES = (24, 64)
"""Least and most pixels a side of a crop in its photograph."""
PLACES = 3
"""Places drawn for a crop, of which the one with the most contrast is taken: plain skies and walls are dull."""
JITTER = 0.4
"""Contrast and brightness are multiplied by 1 - JITTER to 1 + JITTER, as torchvision's ColorJitter draws them."""

PHOTOGRAPHS = {
    "astronaut": "skimage/data/astronaut.png", "brick": "skimage/data/brick.png",
    "camera": "skimage/data/camera.png", "cat": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg", "clock": "skimage/data/clock_motion.png",
    "coffee": "skimage/data/coffee.png", "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg", "grass": "skimage/data/grass.png",
    "gravel": "skimage/data/gravel.png", "hubble": "skimage/data/hubble_deep_field.jpg",
    "moon": "skimage/data/moon.png", "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg", "rocket": "skimage/data/rocket.jpg",
}  # fmt: skip
"""Photographs and textures by the names of their classes; drawings, scans and micrographs are left out."""


class Side(NamedTuple):
    """A split: its section of a photograph's width, 0..1, the number of its crops, and their seed."""

    begin: float
    end: float
    crops: int
    seed: int


SPLITS = {"train": Side(0, 0.52, 6400, 0), "val": Side(0.55, 0.74, 1280, 1), "test": Side(0.77, 1, 1280, 2)}


def crops(split: str, limit: int | None = None) -> tuple[UInt8[np.ndarray, "n 32 32"], list[int]]:
    """The first crops of a split, at most `limit`, and their classes; sixteen in a row are of sixteen classes."""
    side = SPLITS[split]
    count = side.crops if limit is None else min(limit, side.crops)
    # a row a crop, so that a smaller limit gives the first of the same crops
    draws = np.random.Generator(np.random.PCG64(side.seed)).random((count, 5 + 2 * PLACES))
    strips = [_strip(photograph(name, channels=1)[..., 0], side) for name in PHOTOGRAPHS]
    n = len(strips)
    labels = [(i + i // n) % n for i in range(count)]  # evenly spread numbers are of several classes
    return np.stack([_crop(strips[label], row) for label, row in zip(labels, draws, strict=True)]), labels


def photograph(name: str, channels: int = 3) -> UInt8[np.ndarray, "H W C"]:
    """A whole photograph. Raises UserError where the installed package lacks it."""
    package, _, inside = PHOTOGRAPHS[name].partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(f"crops: the installed {package} does not bring {inside}; reinstall it, or name other pictures")
    return decode(path.read_bytes(), channels).permute(1, 2, 0).numpy()


def portrait(name: str) -> UInt8[np.ndarray, "H W 3"]:
    """A whole photograph for a figure, darkened between the sections of `train` and of `test`."""
    image = photograph(name).copy()
    width = image.shape[1]
    middle = slice(round(SPLITS["train"].end * width), round(SPLITS["test"].begin * width))
    image[:, middle] //= 4
    return image


def _strip(grey: UInt8[np.ndarray, "H W"], side: Side) -> UInt8[np.ndarray, "H w"]:
    """The columns of a photograph that belong to a split."""
    return grey[:, round(side.begin * grey.shape[1]) : round(side.end * grey.shape[1])]


def _crop(strip: UInt8[np.ndarray, "H w"], draws: np.ndarray) -> UInt8[np.ndarray, "32 32"]:
    """A square of random size and place, scaled to 32 pixels, turned, mirrored, in other contrast and brightness."""
    side = SIDES[0] + int(draws[0] * (SIDES[1] - SIDES[0] + 1))
    places = (draws[5:].reshape(PLACES, 2) * (np.array(strip.shape) - side + 1)).astype(int)
    squares = [strip[top : top + side, left : left + side] for top, left in places]
    square = torch.from_numpy(max(squares, key=_variance).copy())
    grey = np.rot90(resize(square[None], (SIDE, SIDE))[0].numpy(), int(4 * draws[1]))
    grey = (grey[:, ::-1] if draws[2] < 0.5 else grey).astype(np.float64)
    contrast, brightness = 1 + JITTER * (2 * draws[3:5] - 1)
    grey = brightness * (grey.mean() + contrast * (grey - grey.mean()))
    return np.rint(grey).clip(0, 255).astype(np.uint8)


def _variance(square: UInt8[np.ndarray, "s s"]) -> int:
    """Variance times the squared number of pixels: an integer, so that every computer takes the same place."""
    values = square.astype(np.int64)
    return int(values.size * (values * values).sum() - values.sum() ** 2)


__all__ = ["JITTER", "PHOTOGRAPHS", "SIDE", "SIDES", "SPLITS", "Side", "crops", "photograph", "portrait"]
