"""Pixel targets: the normalised image in patches, raw or normalised per patch (MAE, arXiv 2111.06377, section 3).

Of an image without its fine detail in PixMIM (arXiv 2303.02416).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from remask.tokens import patchify
from remask.types import Images, Size
from remask.views import Views


class Pixels(nn.Module):
    """Each token's own pixels, [B, N, patch height · patch width · C], channel fastest.

    The image is normalised by `mean` and `std` (values of 0..1) unless it comes as float, already normalised.
    per_patch   each vector is brought to mean 0 and variance 1 over all its values together
    low_pass    radius in the frequency plane, in cycles per shorter side of the image: higher frequencies are left out
                first (PixMIM, 40 at 224 px)
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        patch: Size,
        mean: Sequence[float],
        std: Sequence[float],
        per_patch: bool = True,
        low_pass: float | None = None,
    ) -> None:
        super().__init__()
        self.low_pass = low_pass
        self.patch, self.per_patch, self.width = patch, per_patch, patch[0] * patch[1] * len(mean)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "B N P"]:
        target = patchify(self.compared(images), self.patch)
        if not self.per_patch:
            return target
        # official: the unbiased variance (n - 1); kept, since published losses and weights depend on it
        var, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (var + 1e-6).sqrt()

    def compared(self, images: Images) -> Float[Tensor, "B C H W"]:
        """The normalised image of which the patches are predicted."""
        pixels = images if images.is_floating_point() else (images.float() / 255 - self.mean) / self.std
        return pixels.float() if self.low_pass is None else low_passed(pixels.float(), self.low_pass)

    def describe(self) -> str:
        cut = "" if self.low_pass is None else f" up to {self.low_pass:g} cycles"
        return f"pixels{cut}{', normalised per patch' * self.per_patch}"


def low_passed(pixels: Float[Tensor, "B C H W"], radius: float) -> Float[Tensor, "B C H W"]:
    """The image without the frequencies beyond a circle: an ideal low-pass (PixMIM 2303.02416, section 4).

    radius   in cycles per shorter side; the mean, whose frequency is 0, is always kept
    # official: the circle lies around a point half a frequency beside 0, which leaves out one of two opposite
    # frequencies on its edge, and the modulus is taken of what is then complex; here the circle lies around 0
    """
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    down = torch.fft.fftfreq(height, device=pixels.device) * shorter
    right = torch.fft.rfftfreq(width, device=pixels.device) * shorter
    kept = down[:, None] ** 2 + right**2 <= radius**2 + 1e-3  # a circle through whole numbers holds them
    return torch.fft.irfft2(torch.fft.rfft2(pixels) * kept, s=(height, width))
