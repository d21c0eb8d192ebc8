"""Colours of the student's view, changed on the device: MOMA (2302.02089) beside contrastive teachers, as in MoCo v3.

Brightness, contrast, saturation and hue are affine in a pixel's colour, so that all of them are one matrix an image.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

HUE, SHARE = 0.1, 0.8
"""Largest turn of the hue, in turns, and the share of images that are changed (MoCo v3, 2104.02057)."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class BatchColorJitter:
    """Colour jitter. Images with other than three channels have their brightness and contrast changed alone.

    strength    brightness, contrast and saturation are multiplied by 1 - strength to 1 + strength
    # official: torchvision draws the order of the four and clamps to 8 bits after each; here one order, rounded once.
    """

    strength: float

    def draw(self, batch: int, generator: Generator | None = None) -> Float[Tensor, "B 5"]:
        """Random numbers in 0..1 for each image of a batch: its four changes, and whether it is changed at all."""
        return torch.rand(batch, 5, generator=generator, device=generator.device if generator else None)

    def __call__(self, images: UInt8[Tensor, "B C H W"], draws: Float[Tensor, "B 5"]) -> UInt8[Tensor, "B C H W"]:
        """The images in other colours, a pure function of images and draws."""
        pixels, coloured = images.flatten(2).float(), images.shape[1] == 3
        change = torch.where(draws[:, 4:] < SHARE, 2 * draws[:, :4] - 1, 0.0)
        brightness, contrast, saturation = (1 + self.strength * change[:, :3]).reshape(-1, 3, 1, 1).unbind(1)
        luma = pixels.new_tensor(LUMA) if coloured else pixels.new_full((images.shape[1],), 1 / images.shape[1])
        matrix = torch.eye(images.shape[1], device=images.device).expand(len(images), -1, -1)
        if coloured:  # saturation, then hue, which leaves grey as it is
            matrix = saturation * turned(HUE * change[:, 3]) + (1 - saturation) * luma
        grey = (pixels.mean(2) * luma).sum(1).view(-1, 1, 1)
        shift = (1 - contrast) * brightness * grey
        # sums and no product of matrices, which autocast would round
        mixed = sum(matrix[:, :, k, None] * pixels[:, None, k] for k in range(images.shape[1]))
        return (contrast * brightness * mixed + shift).round().clamp(0, 255).to(torch.uint8).view_as(images)


def turned(turns: Float[Tensor, "B"]) -> Float[Tensor, "B 3 3"]:
    """Rotations of colours about grey: by a third of a turn red becomes green, green blue, and blue red."""
    angle = (2 * math.pi * turns).view(-1, 1, 1)
    identity = torch.eye(3, device=turns.device)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=turns.device) / math.sqrt(3)
    return angle.cos() * identity + angle.sin() * across + (1 - angle.cos()) / 3  # Rodrigues


__all__ = ["BatchColorJitter", "turned"]
