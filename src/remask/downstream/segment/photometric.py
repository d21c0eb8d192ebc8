"""SSD's photometric distortion of one image, with random numbers from the caller."""

import torch
from jaxtyping import Float, Num
from torch import Tensor

COLOURS = 9
"""Number of random numbers that `distorted` takes."""


def distorted(image: Num[Tensor, "C H W"], draws: list[float]) -> Num[Tensor, "C H W"]:
    """SSD's photometric distortion (1512.02325), each operation with probability one half.

    Brightness by up to ±32 levels, contrast by .5 to 1.5 (before or after saturation and hue, with equal probability),
    saturation by .5 to 1.5 and hue by up to ±18 of 180; the last two on 3 channels only.
    draws   nine numbers in 0..1: whether and how much of each operation, and when contrast is applied
    # official: rounded down to integers after each operation, here rounded once at the end
    """
    x, contrast = image.float(), 0.5 + draws[3] if draws[2] < 0.5 else 1.0
    if draws[0] < 0.5:
        x = (x + (64 * draws[1] - 32)).clamp(0, 255)
    if draws[4] < 0.5:
        x = (x * contrast).clamp(0, 255)
    if len(image) == 3 and draws[5] < 0.5:
        x = _saturated(x, 0.5 + draws[6])
    if len(image) == 3 and draws[7] < 0.5:
        from torchvision.transforms.v2.functional import adjust_hue

        x = adjust_hue(x / 255, (36 * draws[8] - 18) / 180) * 255
    if draws[4] >= 0.5:
        x = (x * contrast).clamp(0, 255)
    return x if image.is_floating_point() else x.round().to(torch.uint8)


def _saturated(x: Float[Tensor, "3 H W"], times: float) -> Float[Tensor, "3 H W"]:
    """HSV's saturation (V - min) / V times a factor, at most 1: channels move from V = max in proportion."""
    low, high = torch.aminmax(x, dim=0)
    most = high / (high - low).clamp(min=1e-6)
    return high - (high - x) * most.clamp(max=times)


__all__ = ["COLOURS", "distorted"]
