"""Augmentation for fine-tuning, on uint8: RandAugment (arXiv 1909.13719), colour jitter, random erasing (1708.04896).

The policy is timm's "rand-m9-mstd0.5-inc1", with which MAE, ConvMAE, DMJD, SimMIM and FastMIM fine-tune: its choice of
operations, magnitudes and chances, carried out by torchvision on tensors. All that is random comes from the generator.

# official: pictures are warped by Pillow's bicubic; here bilinear, which is all torchvision has for tensors.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeAlias

import torch
from jaxtyping import Num
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from remask.errors import UserError
from remask.images.levels import FULL, Levels
from remask.images.transforms import CentreCrop, RandomCropFlip
from remask.types import Size

Image: TypeAlias = Num[Tensor, "C H W"]
Operation: TypeAlias = Callable[[Tensor, float, tuple[float, ...]], Tensor]
"""(image, strength, fill) -> image. Strength -1..1 is the level, 0..1, with a sign; fill is a colour, 0..255."""

POLICY = "rand-m9-mstd0.5-inc1"
OFF = ("off", "none", "")
_TOP = 10.0
"""The magnitude at which an operation is at its strongest."""
_TRIES = 10
"""Draws of an erased box before the picture is left whole."""


def _sheared(image: Image, strength: float, fill: tuple[float, ...], axis: int) -> Image:
    shear = [0.0, 0.0]
    shear[axis] = math.degrees(math.atan(0.3 * strength))
    return tv.affine(image, 0.0, [0, 0], 1.0, shear, InterpolationMode.BILINEAR, list(fill), center=[0, 0])


def _translated(image: Image, strength: float, fill: tuple[float, ...], axis: int) -> Image:
    """Along x (axis 0) or y, by up to .45 of that side. Positive is to the left or up, as in Pillow's matrices."""
    move = [0.0, 0.0]
    move[axis] = -0.45 * strength * image.shape[-1 - axis]
    return tv.affine(image, 0.0, move, 1.0, [0.0, 0.0], InterpolationMode.BILINEAR, list(fill))


def _rotated(image: Image, strength: float, fill: tuple[float, ...]) -> Image:
    return tv.rotate(image, 30.0 * strength, InterpolationMode.BILINEAR, fill=list(fill))


def _posterized(image: Image, strength: float, fill: tuple[float, ...]) -> Image:
    return tv.posterize(image, 4 - int(4 * abs(strength)))


def _solarized(image: Image, strength: float, fill: tuple[float, ...]) -> Image:
    threshold = 256 - int(256 * abs(strength))
    return image if threshold > 255 else tv.solarize(image, float(threshold))


def _brightened_shadows(image: Image, strength: float, fill: tuple[float, ...]) -> Image:
    """SolarizeAdd: the darker half of the levels gains up to 110."""
    return torch.where(image < 128, image + int(110 * abs(strength)), image)


def _enhanced(image: Image, strength: float, fill: tuple[float, ...], adjust: Callable[..., Tensor]) -> Image:
    return adjust(image, max(0.1, 1 + 0.9 * strength))


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, strength, fill: tv.autocontrast(image),
    "Equalize": lambda image, strength, fill: tv.equalize(image),
    "Invert": lambda image, strength, fill: tv.invert(image),
    "Rotate": _rotated,
    "Posterize": _posterized,
    "Solarize": _solarized,
    "SolarizeAdd": _brightened_shadows,
    "Color": partial(_enhanced, adjust=tv.adjust_saturation),
    "Contrast": partial(_enhanced, adjust=tv.adjust_contrast),
    "Brightness": partial(_enhanced, adjust=tv.adjust_brightness),
    "Sharpness": partial(_enhanced, adjust=tv.adjust_sharpness),
    "ShearX": partial(_sheared, axis=0),
    "ShearY": partial(_sheared, axis=1),
    "TranslateX": partial(_translated, axis=0),
    "TranslateY": partial(_translated, axis=1),
}
"""timm's operations whose effect grows with the level, by the names of its paper."""


@dataclass(frozen=True)
class RandAugment:
    """`count` operations, each chosen evenly among all (the same one may come twice) and applied with `chance`.

    magnitude, deviation   the level is normal round magnitude / 10, drawn for each operation and clipped to 0..1
    fill                   colour of what a warp uncovers, 0..255 per channel
    """

    fill: tuple[float, ...]
    magnitude: float = 9.0
    deviation: float = 0.5
    count: int = 2
    chance: float = 0.5

    def __call__(self, image: Image, generator: Generator) -> Image:
        names = list(OPERATIONS)
        draws = torch.rand(self.count, 3, generator=generator, dtype=torch.float64).tolist()
        noise = torch.randn(self.count, generator=generator, dtype=torch.float64).tolist()
        for (which, applied, side), wide in zip(draws, noise, strict=True):
            level = min(max(self.magnitude + self.deviation * wide, 0.0), _TOP) / _TOP
            if applied < self.chance:
                strength = -level if side < 0.5 else level
                image = OPERATIONS[names[int(which * len(names))]](image, strength, self.fill)
        return image


def rand_augment(policy: str, fill: tuple[float, ...]) -> RandAugment | None:
    """What timm's text says, such as "rand-m9-mstd0.5-inc1"; None for "off". Raises UserError for other texts.

    m magnitude 0..10 · mstd deviation of it · n operations · p chance of each · inc1, which must be there: all
    operations grow with the magnitude.
    """
    if policy.lower() in OFF:
        return None
    first, *parts = policy.split("-")
    found = [re.fullmatch(r"(mstd|m|n|p|inc)(\d+(?:\.\d+)?)", part) for part in parts]
    given = {match[1]: float(match[2]) for match in found if match}
    if first != "rand" or not all(found) or len(given) != len(parts) or given.get("inc") != 1:
        raise UserError(f'augment.randaugment "{policy}" is not known: give "{POLICY}" with other numbers, or "off"')
    count, chance, magnitude = given.get("n", 2), given.get("p", 0.5), given.get("m", 10.0)
    if count % 1 or count < 1 or chance > 1 or magnitude > _TOP:
        raise UserError(f'augment.randaugment "{policy}": needs m of 0 to 10, a whole n of 1 or more, p of 0 to 1')
    return RandAugment(fill, magnitude, given.get("mstd", 0.0), int(count), chance)


@dataclass(frozen=True)
class PictureJitter:
    """Brightness, contrast and saturation, in random order, each by a factor of 1 - amount to 1 + amount."""

    amount: float

    def __call__(self, image: Image, generator: Generator) -> Image:
        draws = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        adjustments = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
        for which in torch.randperm(3, generator=generator).tolist():
            low, high = max(0.0, 1 - self.amount), 1 + self.amount
            image = adjustments[which](image, low + draws[which] * (high - low))
        return image


@dataclass(frozen=True)
class Erasing:
    """One box of a picture becomes noise, with `chance`: .02 to 1/3 of its area, .3 to 1/.3 as high as wide.

    mean, std   of the noise, per channel, of values 0..1: those that pictures are normalised by
    # official: standard normal noise per pixel and channel, after pictures are normalised ("pixel" mode); here the same
    # noise before it, so rounded to a level and clipped to 0..255, which with ImageNet's numbers clips 3 % of it.
    """

    chance: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = 0.3
    levels: Levels = FULL

    def __call__(self, image: Image, generator: Generator) -> Image:
        applied, row, column, *draws = torch.rand(3 + 2 * _TRIES, generator=generator, dtype=torch.float64).tolist()
        size = self._size(image.shape[-2], image.shape[-1], draws) if applied < self.chance else None
        if size is None:
            return image
        (height, width), mean, std = size, torch.tensor(self.mean), torch.tensor(self.std)
        top, left = int(row * (image.shape[-2] - height + 1)), int(column * (image.shape[-1] - width + 1))
        noise = torch.randn(len(image), height, width, generator=generator) * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
        erased = image.clone()
        erased[:, top : top + height, left : left + width] = self._values(noise, image.dtype)
        return erased

    def _values(self, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """Noise in 0..1 as values of a picture's type; integers are rounded and clipped."""
        low, high = self.levels.bounds(dtype)
        values = noise * (high - low) + low
        return values if dtype.is_floating_point else values.round().clamp(0, torch.iinfo(dtype).max).to(dtype)

    def _size(self, rows: int, columns: int, draws: list[float]) -> Size | None:
        """Height and width of the first box drawn that is smaller than the picture both ways."""
        spread = -math.log(self.aspect)
        for trial in range(_TRIES):
            area = rows * columns * (self.area[0] + draws[2 * trial] * (self.area[1] - self.area[0]))
            aspect = math.exp((2 * draws[2 * trial + 1] - 1) * spread)
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height < rows and width < columns:
                return height, width
        return None


@dataclass(frozen=True)
class TrainAugment:
    """Random crop and flip, RandAugment, colour jitter, random erasing, in this order; the defaults are MAE's.

    mean, std    the pictures' own, 0..1: warps fill with the mean, erasing draws its noise from both
    randaugment  timm's text; "off" or None: none
    jitter       amount of colour jitter, which RandAugment replaces, as in timm
    erasing      chance of it
    Raises UserError for numbers out of range, and for RandAugment or jitter of other than 1 or 3 channels.
    """

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    randaugment: str | None = POLICY
    jitter: float = 0.0
    erasing: float = 0.25
    levels: Levels = FULL
    crop: RandomCropFlip = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop", RandomCropFlip(self.size, self.scale, self.ratio, self.flip))
        if not (self.jitter >= 0 and 0 <= self.erasing <= 1):
            raise UserError(f"jitter {self.jitter:g}, erasing {self.erasing:g}: need 0 or more, and 0 to 1")
        coloured = any(not isinstance(step, Erasing) for step in self.steps)  # a policy not known is met here
        if coloured and len(self.mean) not in (1, 3):
            raise UserError(
                f"pictures of {len(self.mean)} channels: RandAugment and jitter know 1 or 3; "
                'set augment.randaugment to "off" and augment.jitter to 0'
            )

    @cached_property
    def steps(self) -> list[Callable[[Tensor, Generator], Tensor]]:
        """What follows the crop."""
        fill = tuple(float(min(255, round(255 * value))) for value in self.mean)
        policy = rand_augment(self.randaugment or "off", fill)
        jitter = PictureJitter(self.jitter) if self.jitter and policy is None else None
        erasing = Erasing(self.erasing, self.mean, self.std, levels=self.levels) if self.erasing else None
        return [step for step in (policy, jitter, erasing) if step is not None]

    def __call__(self, image: Image, generator: Generator) -> Num[Tensor, "C h w"]:
        image = self.crop(image, generator)
        for step in self.steps:
            image = step(image, generator)
        return image


@dataclass(frozen=True)
class EvalCrop:
    """The centre that is evaluated: `CentreCrop`, with MAE's choice of how much of a picture that is.

    crop_pct   share of the picture's tighter side; None = 224 / 256, and all of it where `size` is larger than 224
    """

    size: Size
    crop_pct: float | None = None

    def __call__(self, image: Image, generator: Generator | None = None) -> Num[Tensor, "C h w"]:
        ratio = self.crop_pct or (224 / 256 if max(self.size) <= 224 else 1.0)
        return CentreCrop(self.size, ratio)(image)


__all__ = [
    "OPERATIONS",
    "POLICY",
    "Erasing",
    "EvalCrop",
    "PictureJitter",
    "RandAugment",
    "TrainAugment",
    "rand_augment",
]
