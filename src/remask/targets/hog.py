"""HOG targets in their two flavours: DMJD's (2301.00230) and MaskFeat's (2112.09133, also FastMIM's 2212.06593).

Both hash every pixel's gradient, per channel, into unsigned orientation bins without interpolation and sum the
magnitudes over cells. They differ in the gradient, in the scale of a cell and in the order of a token's vector:

    central   next - previous, zero on the border; mean magnitude of a cell; cell row, cell column, bin, channel
    sobel     3×3 Sobel, border reflected; sum over a cell; channel, bin, cell row, cell column

Gradients of exactly 0 sit on a bin edge, so rounding moves whole pixels between bins: HOG is computed in fp32, and on
integer pixel values, where there are any, both gradients are exact. A float image is taken as given: gradients are
linear, so they are scaled from the normalised image to pixel values, and no image is turned back, which would round
every pixel once more and make ±1e-6 of the zeros.

A cell is a bag of pixels and a pixel is a row of bins, so a histogram is one `embedding_bag`: no axis of bins over the
whole image is ever written. The gradients of 8-bit images are integers, few enough for tables: an image becomes
one number per pixel, and no angle or root is taken of it. See docs/decisions/0008.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor, nn

from remask.errors import UserError, setting
from remask.types import Images, Size
from remask.views import Views

Flavour = Literal["central", "sobel"]
Norm = Literal["none", "l2", "layer"]

REACH: dict[Flavour, int] = {"central": 255, "sobel": 1020}
"""Largest gradient of 8-bit pixels, either way."""

Kernel: TypeAlias = tuple[tuple[int, int, int], ...]
SOBEL_DOWN: Kernel = ((1, 2, 1), (0, 0, 0), (-1, -2, -1))
SOBEL_RIGHT: Kernel = ((1, 0, -1), (2, 0, -2), (1, 0, -1))

WINDOW, WINDOW_STD = 16, 8.0
"""Side and standard deviation in pixels of mmpretrain's Gaussian."""


class Hog(nn.Module):
    """Histograms of oriented gradients, [B, N, C · bins · cells of a patch].

    patch    pixels of a patch, a multiple of `cell` both ways
    mean/std constants by which float images were normalised; gradients do not depend on the mean; integers are 0..255
    flavour  "central" (DMJD) or "sobel" (MaskFeat, FastMIM)
    cell     side of a cell in pixels; 8 as published unless given, half of a patch below 8
    norm     over the bins of each cell and channel: "layer" (LayerNorm without affine, DMJD), "l2" (MaskFeat), "none"
    gaussian weigh magnitudes by a 16×16 Gaussian tiled over the image (mmpretrain's MaskFeat; SlowFast's has none)
    """

    mean: Tensor
    scale: Tensor
    bank: Tensor
    rows: Tensor | None
    codes: Tensor | None
    lengths: Tensor | None
    window: Tensor | None

    def __init__(
        self,
        patch: Size,
        mean: Sequence[float],
        std: Sequence[float],
        flavour: Flavour = "central",
        cell: int | None = None,
        bins: int = 9,
        norm: Norm = "layer",
        gaussian: bool = False,
    ) -> None:
        super().__init__()
        cell = cell or (8 if min(patch) >= 8 else max(min(patch) // 2, 1))
        if patch[0] % cell or patch[1] % cell:
            raise UserError(
                f"a HOG cell of {cell} px does not divide a patch of {patch[0]}×{patch[1]} px; "
                f"change {setting('the cell of the target', 'cell')}"
            )
        self.patch, self.flavour, self.cell, self.bins, self.norm = patch, flavour, cell, bins, norm
        self.width = len(mean) * bins * (patch[0] // cell) * (patch[1] // cell)
        codes, lengths = gradient_table(flavour, bins)
        # whole rows where they are few: 5 MB in the central flavour, 75 in the other
        rows = bin_rows(bins)[codes] * lengths.unsqueeze(1) if flavour == "central" and not gaussian else None
        buffers = {
            "mean": torch.tensor(mean).view(-1, 1, 1),
            "scale": 255 * torch.tensor(std).view(-1, 1, 1),
            "bank": bin_rows(bins),
            "rows": rows,
            "codes": codes if rows is None else None,
            "lengths": lengths if rows is None else None,
            "window": gaussian_window() if gaussian else None,
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    @torch.no_grad()
    def forward(self, images: Images, views: Views | None = None) -> Float[Tensor, "B N P"]:
        normalised = images.is_floating_point()
        cells = self._summed(images.float() if normalised else images, self.scale if normalised else None)
        if self.norm == "l2":  # fp32 also under autocast, which lowers none of these ops
            cells = F.normalize(cells, dim=-1)
        elif self.norm == "layer":
            cells = F.layer_norm(cells, (self.bins,))
        return self._tokens(cells)

    def histogram(self, pixels: Num[Tensor, "B C H W"]) -> Float[Tensor, "B C bins h w"]:
        """Magnitude per orientation bin of each cell and channel, h = H / cell, w = W / cell; not normalised.

        pixels   values 0..255, as integers or floats
        """
        return self._summed(pixels).movedim(-1, 2)

    def _summed(self, pixels: Num[Tensor, "B C H W"], scale: Tensor | None = None) -> Float[Tensor, "B C h w bins"]:
        """Magnitudes of the gradients, times `scale` per channel, by cell and bin."""
        b, c, h, w = pixels.shape
        if self.rows is not None and pixels.dtype == torch.uint8:
            sums = F.embedding_bag(gradient_cells(pixels, self.flavour, self.cell), self.rows, mode="sum")
        else:
            bins, magnitude = self._measured(pixels, scale)
            if self.window is not None:
                magnitude = magnitude * self._tiled((h, w), len(magnitude))
            sums = F.embedding_bag(bins, self.bank, mode="sum", per_sample_weights=magnitude)
        cells = sums.view(b, c, h // self.cell, w // self.cell, self.bins)
        return cells / self.cell**2 if self.flavour == "central" else cells

    def _measured(
        self, pixels: Num[Tensor, "B C H W"], scale: Tensor | None = None
    ) -> tuple[Int[Tensor, "cells pixels"], Float[Tensor, "cells pixels"]]:
        """Row of the bank and magnitude of each pixel: looked up for 8-bit pixels, computed for others."""
        if self.codes is not None and self.lengths is not None and pixels.dtype == torch.uint8:
            index = gradient_cells(pixels, self.flavour, self.cell)
            flat = index.flatten()
            return self.codes.index_select(0, flat).view_as(index), self.lengths.index_select(0, flat).view_as(index)
        both = gradient(pixels.float(), self.flavour)
        if scale is not None:
            both = both[0] * scale, both[1] * scale
            # official: DMJD measures integers, so the integers that a normalised image came from are found again in its
            # gradients; MaskFeat and FastMIM measure the normalised image itself, and so does Sobel's form
            both = (integer_steps(both[0]), integer_steps(both[1])) if self.flavour == "central" else both
        down, right = (in_cells(chunk, self.cell) for chunk in both)
        return orientation(down, right, self.flavour, self.bins), length(down, right)

    def _tiled(self, size: Size, count: int) -> Float[Tensor, "cells pixels"]:
        """The Gaussian tiled over the image, a row for each cell, repeated over images and channels: `count` rows."""
        assert self.window is not None
        tiled = self.window.repeat(*(-(-side // WINDOW) for side in size))[: size[0], : size[1]]
        weights = in_cells(tiled[None, None], self.cell)
        return weights.repeat(count // weights.shape[0], 1)

    def _tokens(self, cells: Float[Tensor, "B C h w bins"]) -> Float[Tensor, "B N P"]:
        """Cells grouped into tokens, in the order of the flavour's official code."""
        a, z = self.patch[0] // self.cell, self.patch[1] // self.cell
        b, c, h, w, bins = cells.shape
        tokens = cells.reshape(b, c, h // a, a, w // z, z, bins)
        order = (0, 2, 4, 3, 5, 6, 1) if self.flavour == "central" else (0, 2, 4, 1, 6, 3, 5)
        return tokens.permute(order).reshape(b, (h // a) * (w // z), self.width)

    def describe(self) -> str:
        norm = {"none": "", "l2": ", l2", "layer": ", LayerNorm"}[self.norm]
        window = ", Gaussian" if self.window is not None else ""
        return f"HOG {self.flavour} {self.cell} px{window}{norm}"


def pixel_values(images: Images, mean: Float[Tensor, "C 1 1"], std: Float[Tensor, "C 1 1"]) -> Float[Tensor, "B C H W"]:
    """Pixel values 0..255 as floats. A normalised image is turned back, and rounded if all of it came from integers."""
    if not images.is_floating_point():
        return images.float()
    pixels = (images.float() * std + mean) * 255
    nearest = pixels.round()
    integral = (pixels - nearest).abs().amax((1, 2, 3), keepdim=True) < 1e-2
    return torch.where(integral, nearest, pixels)


def gradient(pixels: Num[Tensor, "B C H W"], flavour: Flavour) -> tuple[Tensor, Tensor]:
    """(down, right) of a flavour."""
    return central_gradient(pixels) if flavour == "central" else sobel_gradient(pixels)


def central_gradient(pixels: Num[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
    """(down, right) as next - previous, without the half; zero on the first and last row (column)."""
    down, right = torch.zeros_like(pixels), torch.zeros_like(pixels)
    down[..., 1:-1, :] = pixels[..., 2:, :] - pixels[..., :-2, :]
    right[..., 1:-1] = pixels[..., 2:] - pixels[..., :-2]
    return down, right


def sobel_gradient(pixels: Num[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
    """(down, right) of the 3×3 Sobel operator, previous - next as in MaskFeat, border reflected."""
    x = torch.cat([pixels[..., 1:2, :], pixels, pixels[..., -2:-1, :]], dim=-2)  # F.pad reflects no integers
    x = torch.cat([x[..., 1:2], x, x[..., -2:-1]], dim=-1)
    if pixels.is_floating_point():
        return _correlated(x, SOBEL_DOWN), _correlated(x, SOBEL_RIGHT)
    smooth_cols = (x[..., :-2] + x[..., 2:]).add(x[..., 1:-1], alpha=2)
    smooth_rows = (x[..., :-2, :] + x[..., 2:, :]).add(x[..., 1:-1, :], alpha=2)
    return smooth_cols[..., :-2, :] - smooth_cols[..., 2:, :], smooth_rows[..., :-2] - smooth_rows[..., 2:]


def _correlated(x: Float[Tensor, "B C H W"], kernel: Kernel) -> Float[Tensor, "B C h w"]:
    """The 3×3 kernel at every pixel, its terms added in raster order as official code's convolution adds them: the
    rounding error of a gradient of 0 decides its bin.
    """
    rows, cols = x.shape[-2] - 2, x.shape[-1] - 2
    terms = [(k, x[..., i : i + rows, j : j + cols]) for i, row in enumerate(kernel) for j, k in enumerate(row) if k]
    (_, total), *rest = terms  # both kernels begin with 1
    for weight, term in rest:
        total = total.add(term, alpha=weight)
    return total


def integer_steps(gradients: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Gradients, rounded in each image whose gradients all lie within 0.01 of integers that are not all 0."""
    nearest = gradients.round()
    on_edge = (gradients - nearest).abs().amax((1, 2, 3), keepdim=True) < 1e-2
    return torch.where(on_edge & (nearest != 0).any(1, True).any(2, True).any(3, True), nearest, gradients)


def length(down: Float[Tensor, "*any"], right: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Magnitude. Squares of integers are exact in fp32 and roots are rounded alike everywhere, which hypot is not."""
    return (down.square() + right.square()).sqrt()


def orientation(
    down: Float[Tensor, "*any"], right: Float[Tensor, "*any"], flavour: Flavour, bins: int
) -> Int[Tensor, "*any"]:
    """Row of `bin_rows`: the angle in bins, from -bins to bins, plus `bins`. Sobel's runs from the vertical."""
    across, along = (down, right) if flavour == "central" else (right, down)
    angle = torch.atan2(across, along) / math.pi * bins
    # half a millionth of a bin: 45 degrees, which integers hit exactly, then fall alike on every device. Not beside 0
    # and 180, where the rounding error of a 0 in a float image has a sign, which official code sees too
    inner = (angle.abs() - bins / 2).abs() < (bins - 1) / 2
    return (angle + 5e-7 * inner).masked_fill(across == 0, 0.0).floor().to(torch.int32) + bins


def bin_rows(bins: int) -> Float[Tensor, "rows bins"]:
    """Row i is 1 in bin i modulo `bins`: opposite directions share a bin, and 180 degrees is 0."""
    return torch.eye(bins).repeat(3, 1)[: 2 * bins + 1]


def in_cells(x: Num[Tensor, "B C H W"], cell: int) -> Num[Tensor, "cells pixels"]:
    """One row of pixels per whole cell, cells in raster order; pixels outside of whole cells are left out."""
    return blocks(x, cell).flatten(-2).flatten(0, -2)


def blocks(x: Num[Tensor, "B C H W"], cell: int) -> Num[Tensor, "B C h w cell cell"]:
    """The whole cells, as a view of `x`."""
    rows, cols = x.shape[-2] // cell, x.shape[-1] // cell
    x = x[..., : rows * cell, : cols * cell].unflatten(-1, (cols, cell)).unflatten(-3, (rows, cell))
    return x.transpose(-3, -2)


def gradient_index(pixels: UInt8[Tensor, "B C H W"], flavour: Flavour) -> Int[Tensor, "B C H W"]:
    """Entry of `gradient_table` for each pixel: |(2 · reach + 1) · down + right|, one of two opposite directions."""
    down, right = gradient(pixels.to(torch.int16), flavour)
    return down.to(torch.int32).mul_(2 * REACH[flavour] + 1).add_(right).abs_()


def gradient_cells(pixels: UInt8[Tensor, "B C H W"], flavour: Flavour, cell: int) -> Int[Tensor, "cells pixels"]:
    """`gradient_index`, a row for each cell. On a CPU it is a custom op: loops over integers with a border that the
    compiler makes itself take 7 times as long."""
    if pixels.device.type == "cpu":
        return _gradient_cells_cpu(pixels, flavour, cell)
    return in_cells(gradient_index(pixels, flavour), cell)


@torch.library.custom_op("remask::gradient_cells", mutates_args=(), device_types="cpu")
def _gradient_cells_cpu(pixels: Tensor, flavour: str, cell: int) -> Tensor:
    b, c, h, w = pixels.shape
    cells = pixels.new_empty((b, c, h // cell, w // cell, cell, cell), dtype=torch.int32)
    for chunk, out in zip(pixels.split(2), cells.split(2), strict=True):  # few: intermediate results stay in the cache
        out.copy_(blocks(gradient_index(chunk, cast(Flavour, flavour)), cell))
    return cells.view(-1, cell * cell)


def _empty_cells(pixels: Tensor, flavour: str, cell: int) -> Tensor:
    b, c, h, w = pixels.shape
    return pixels.new_empty((b * c * (h // cell) * (w // cell), cell * cell), dtype=torch.int32)


_gradient_cells_cpu.register_fake(_empty_cells)  # the shape, for the compiler


def gradient_table(flavour: Flavour, bins: int) -> tuple[Int[Tensor, "entries"], Float[Tensor, "entries"]]:
    """Row of `bin_rows` and magnitude of every gradient that 8-bit pixels can have, opposite ones being one."""
    reach = REACH[flavour]
    span = 2 * reach + 1
    index = torch.arange(reach * span + reach + 1)
    down = (index + reach) // span
    right = (index - down * span).float()
    return orientation(down.float(), right, flavour, bins), length(down.float(), right)


def gaussian_window() -> Float[Tensor, "16 16"]:
    """A Gaussian of standard deviation 8 in the middle of 16×16 pixels, its values adding up to 1."""
    axis = torch.exp(-(((torch.arange(float(WINDOW)) - (WINDOW - 1) / 2) / WINDOW_STD) ** 2) / 2)
    window = axis[:, None] * axis
    return window / window.sum()
