"""Augmentation for fine-tuning: timm's RandAugment (arXiv 1909.13719) and random erasing (1708.04896), colour jitter.

MAE, ConvMAE, DMJD, SimMIM and FastMIM fine-tune with timm's policy "rand-m9-mstd0.5-inc1". timm draws from
generators that the process shares; here it gets generators seeded per image, so that results depend on that seed alone.
"""

import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Num
from PIL import Image as Pillow
from timm.data import auto_augment, random_erasing
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as tv

from remask.errors import UserError
from remask.images.levels import FULL, Levels
from remask.images.transforms import CentreCrop, RandomCropFlip
from remask.types import Size

Image: TypeAlias = Num[Tensor, "C H W"]

POLICY = "rand-m9-mstd0.5-inc1"
OFF = ("off", "none", "")
KNOWN = r"rand(-(m(\d|10)|mstd\d+(\.\d+)?|n[1-9]|p(0(\.\d+)?|1(\.0+)?)|inc1))*"
"""Pattern of valid policies. timm ignores a missing number and clips a magnitude above 10 without an error."""
STRONGEST = 9.99
"""Upper limit of magnitudes.
# official: 10, at which "posterize" keeps 0 bits; here just below, because Pillow 13 refuses 0 bits.
"""
_TIMM = threading.Lock()


@contextmanager
def timm_draws(seed: int) -> Iterator[None]:
    """Context in which timm's augmentations draw from a generator with this seed.

    All threads share Python's global generator, and another one may draw in between. So it is not seeded: timm's two
    modules get another generator under the name `random`, one thread at a time.
    """
    with _TIMM:
        auto_augment.random = random_erasing.random = random.Random(seed)
        try:
            yield
        finally:
            auto_augment.random = random_erasing.random = random


def drawn_seed(generator: Generator) -> int:
    """A random seed, 0 to 2^32 - 1, for generators of Python and NumPy."""
    return int(torch.randint(1 << 32, (), generator=generator))


@dataclass(frozen=True)
class RandAugment:
    """timm's RandAugment of an image of 1 or 3 channels; images of more than 8 bits are converted to 8 bits.

    policy   timm's text: m magnitude 0..10 · mstd deviation of it · n operations · p chance of each · inc1, which is
             required: the effect of all operations increases with the magnitude
    fill     colour of the pixels that a warp uncovers, 0..255 per channel
    Raises UserError for other policies.
    """

    policy: str
    fill: tuple[int, ...]
    levels: Levels = FULL

    def __post_init__(self) -> None:
        if not re.fullmatch(KNOWN, self.policy) or "-inc1" not in self.policy:
            raise UserError(
                f'augment.randaugment "{self.policy}" is not known: give "{POLICY}" with other numbers (m of 0 to 10, '
                'n of 1 to 9, p of 0 to 1), or "off"'
            )

    @cached_property
    def transform(self) -> Any:
        """timm's transform of Pillow images, configured as in MAE's fine-tuning: warps interpolate bicubically."""
        hparams = {"img_mean": self.fill, "interpolation": Pillow.Resampling.BICUBIC, "magnitude_max": STRONGEST}
        return auto_augment.rand_augment_transform(self.policy, hparams)

    def __call__(self, image: Image, generator: Generator) -> Image:
        if image.dtype != torch.uint8:
            image = (self.levels.unit(image) * 255).round().clamp(0, 255).to(torch.uint8)
        pil_image, seed = tv.to_pil_image(image), drawn_seed(generator)
        # the same choice as in timm, which draws from NumPy's global generator
        operations = np.random.RandomState(seed).choice(self.transform.ops, self.transform.num_layers)
        with timm_draws(seed):
            for operation in operations:
                pil_image = operation(pil_image)
        return tv.pil_to_tensor(pil_image)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation, in random order, each by a factor of 1 - amount to 1 + amount.

    torchvision's ColorJitter draws from torch's global generator, from which the network in another thread draws too.
    """

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
    """timm's random erasing in its "pixel" mode: with probability `chance` one box of an image becomes noise.

    mean, std   of the noise, per channel, for values 0..1: those that normalise images
    # official: standard normal noise per pixel and channel, after normalisation; here the same noise before
    # it, so rounded to a level and clipped to 0..255, which with ImageNet's numbers clips 3 % of it.
    """

    chance: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: Levels = FULL

    def __call__(self, image: Image, generator: Generator) -> Image:
        with timm_draws(drawn_seed(generator)):  # erasing an image of ones with zeros shows the box
            box = random_erasing.RandomErasing(self.chance, device="cpu")(torch.ones(1, *image.shape[-2:]))[0] == 0
        low, high = self.levels.bounds(image.dtype)
        mean, std = (torch.tensor(values)[:, None] for values in (self.mean, self.std))
        noise = torch.randn(len(image), int(box.sum()), generator=generator) * std + mean
        noise = noise * (high - low) + low
        if not image.dtype.is_floating_point:
            noise = noise.round().clamp(0, torch.iinfo(image.dtype).max)
        erased = image.to(torch.float32, copy=True)  # exact for every type; torch supports few assignments in uint16
        erased[:, box] = noise
        return erased.to(image.dtype)


@dataclass(frozen=True)
class TrainAugment:
    """Random crop and flip, RandAugment, colour jitter, random erasing, in this order; the defaults are MAE's.

    size         pixels (h, w) of the crop
    mean, std    of the images, 0..1: warps fill with the mean, erasing draws its noise from both
    randaugment  timm's policy; "off" or None: none
    jitter       amount of colour jitter; ignored with RandAugment, as in timm
    erasing      probability of random erasing
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
        coloured = any(not isinstance(step, Erasing) for step in self.steps)  # raises for an unknown policy
        if coloured and len(self.mean) not in (1, 3):
            raise UserError(
                f"pictures of {len(self.mean)} channels: RandAugment and jitter know 1 or 3; "
                'set augment.randaugment to "off" and augment.jitter to 0'
            )

    @cached_property
    def steps(self) -> list[Callable[[Tensor, Generator], Tensor]]:
        """The operations after the crop."""
        fill = tuple(min(255, round(255 * value)) for value in self.mean)
        off = (self.randaugment or "").lower() in OFF
        policy = None if off else RandAugment(self.randaugment or "", fill, self.levels)
        jitter = ColorJitter(self.jitter) if self.jitter and policy is None else None
        erasing = Erasing(self.erasing, self.mean, self.std, levels=self.levels) if self.erasing else None
        return [step for step in (policy, jitter, erasing) if step is not None]

    def __call__(self, image: Image, generator: Generator) -> Num[Tensor, "C h w"]:
        image = self.crop(image, generator)
        for step in self.steps:
            image = step(image, generator)
        return image


@dataclass(frozen=True)
class EvalCrop:
    """The centre crop for evaluation: `CentreCrop`, with MAE's default share of the image.

    crop_pct   share of the image's tighter side; None: 224 / 256, or 1 if `size` is larger than 224
    """

    size: Size
    crop_pct: float | None = None

    def __call__(self, image: Image, generator: Generator | None = None) -> Num[Tensor, "C h w"]:
        ratio = self.crop_pct or (224 / 256 if max(self.size) <= 224 else 1.0)
        return CentreCrop(self.size, ratio)(image)


__all__ = [
    "POLICY",
    "ColorJitter",
    "Erasing",
    "EvalCrop",
    "RandAugment",
    "TrainAugment",
    "drawn_seed",
    "timm_draws",
]
