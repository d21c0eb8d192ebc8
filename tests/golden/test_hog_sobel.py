"""The HOG of MaskFeat and FastMIM against SlowFast's and mmpretrain's: cells, tokens, with and without the Gaussian."""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from remask.interop.mae import MEAN, STD
from remask.targets import Hog
from remask.targets.hog import gaussian_window
from tests.golden.vectors import Entries, Folder, some

SYSTEM = "maskfeat"


def hog_of(folder: Folder, patch: int | None = None, gaussian: bool = False) -> Hog:
    sizes = folder.config.part("hog")
    cell, bins = sizes["cell"], sizes["bins"]
    return Hog((patch or cell,) * 2, MEAN, STD, "sobel", cell, bins, "l2", gaussian)


def stored_as(stored: Entries, pattern: str) -> list[tuple[re.Match[str], Tensor, Tensor]]:
    """Tensors whose names match: the match, its images, the tensor."""
    found = some((match for key in stored if (match := re.fullmatch(pattern, key))), pattern)
    return [(match, stored[f"{match[1]}.images"], stored[match[0]]) for match in found]


def cells_of(hog: Hog, images: Tensor) -> Tensor:
    """[B, C, bins, h, w], as official code lays them out."""
    rows, cols = images.shape[-2] // hog.cell, images.shape[-1] // hog.cell
    return hog(images).view(len(images), rows, cols, images.shape[1], hog.bins).permute(0, 3, 4, 1, 2)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_cells(folder: Folder) -> None:
    for _, images, expected in stored_as(folder.tensors("hog.safetensors"), r"(\w+)\.slowfast_hog"):
        close(cells_of(hog_of(folder), images), expected)


def test_tokens(folder: Folder) -> None:
    for match, images, expected in stored_as(folder.tensors("hog.safetensors"), r"(\w+)\.slowfast_targets_p(\d+)"):
        close(hog_of(folder, int(match[2]))(images), expected)


def test_cells_with_the_gaussian(folder: Folder) -> None:
    for _, images, expected in stored_as(folder.tensors("hog.safetensors"), r"(\w+)\.slowfast_hog_gauss16"):
        close(cells_of(hog_of(folder, gaussian=True), images), expected)


def test_tokens_with_the_gaussian(folder: Folder) -> None:
    for _, images, expected in stored_as(folder.tensors("hog.safetensors"), r"(\w+)\.mmpretrain_targets_gauss16"):
        patch = images.shape[-1] // math.isqrt(expected.shape[1])
        close(hog_of(folder, patch, gaussian=True)(images), expected)


def test_gaussian(folder: Folder) -> None:
    torch.testing.assert_close(gaussian_window(), folder.tensors("hog.safetensors")["gauss_kernel_16_std8"])


def test_a_real_picture(folder: Folder) -> None:
    """On integer pixels all gradients are exact, and so is the target."""
    stored, hog = folder.tensors("hog_uint8.safetensors"), hog_of(folder)
    pixels, expected = stored["images_uint8"], stored["slowfast_hog_on_integer_pixels"]
    close(cells_of(hog, pixels.to(torch.uint8)), expected)
    close(F.normalize(hog.histogram(pixels), dim=2), expected)


def test_a_real_picture_as_official_code_sees_it_normalised(folder: Folder) -> None:
    """There rounding sends gradients of 0 to either side of a bin's edge, and ours to the same side."""
    stored, hog = folder.tensors("hog_uint8.safetensors"), hog_of(folder)
    expected = stored["slowfast_hog_on_normalised_fp32"]
    close(cells_of(hog, stored["images_normalised"]), expected)
    close(F.normalize(hog.histogram(stored["images_normalised"]), dim=2), expected)
    exact = cells_of(hog, stored["images_uint8"].to(torch.uint8))  # from which it differs, though not in the mean
    assert float((exact - expected).abs().mean()) < 5e-3
