"""DMJD's HOG target against the official one: gradients, histograms, the whitened target of a token."""

import math
import re

import pytest
import torch
from torch import Tensor

from remask.interop.mae import MEAN, STD
from remask.targets import Hog
from remask.targets.hog import central_gradient
from tests.golden.vectors import Entries, Folder, some

SYSTEM = "dmjd"


def hog_of(images: Tensor, cell: int = 8, bins: int = 9, patch: int | None = None) -> Hog:
    channels = images.shape[1]
    return Hog((patch or cell,) * 2, MEAN[:channels], STD[:channels], "central", cell, bins, "layer")


def hog_like(images: Tensor, cells: Tensor) -> Hog:
    """With the cells and bins of stored histograms [B, C, rows, columns, bins]."""
    return hog_of(images, cell=images.shape[-1] // cells.shape[3], bins=cells.shape[-1])


def pictures(stored: Entries, pattern: str) -> list[tuple[re.Match[str], Tensor]]:
    """Tensors whose names match, each with the picture of the same size, as integers [B, C, H, W]."""
    matches = some((found for key in stored if (found := re.fullmatch(pattern, key))), pattern)
    return [(found, stored[f"image{found[1]}_u8"].permute(0, 3, 1, 2).to(torch.uint8)) for found in matches]


def histograms(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-6)


def test_hog_gradients(folder: Folder) -> None:
    stored = folder.tensors("hog.safetensors")
    for found, images in pictures(stored, r"grad_row(\d+(?:x\d+)?)"):
        down, right = central_gradient(images.float())
        assert torch.equal(down, stored[found[0]])
        assert torch.equal(right, stored[f"grad_col{found[1]}"])


def test_hog_histograms(folder: Folder) -> None:
    stored = folder.tensors("hog.safetensors")
    for found, images in pictures(stored, r"hist(\d+(?:x\d+)?)(?:_o\d+_cell\d+)?"):
        histograms(hog_like(images, stored[found[0]]).histogram(images.float()).movedim(2, -1), stored[found[0]])


def test_hog_of_ramps(folder: Folder) -> None:
    stored = folder.tensors("hog.safetensors")
    for name in some((key for key in stored if key.startswith("ramps")), "ramps"):
        hog = hog_like(stored[name], stored[f"hist_{name}"])
        histograms(hog.histogram(stored[name]).movedim(2, -1), stored[f"hist_{name}"])


def test_hog_whitening(folder: Folder) -> None:
    stored = folder.tensors("hog.safetensors")
    for found, images in pictures(stored, r"whitened(\d+(?:x\d+)?)"):
        expected = stored[found[0]]
        tokens = hog_like(images, expected)(images).unflatten(-1, (expected.shape[-1], -1))
        histograms(tokens.movedim(-1, 1).unflatten(2, expected.shape[2:4]), expected)


def test_hog_target(folder: Folder) -> None:
    stored = folder.tensors("hog.safetensors")
    for found, images in pictures(stored, r"target(\d+(?:x\d+)?)_whitened_patch"):
        expected = stored[found[0]]
        patch = images.shape[-1] // math.isqrt(expected.shape[1])
        histograms(hog_of(images, patch=patch)(images), expected)


def test_hog_target_of_a_normalised_picture(folder: Folder) -> None:
    """The model's input is normalised; in its gradients the integers are found again."""
    stored = folder.tensors("inputs.safetensors")
    images, expected = stored["imgs_norm"], stored["target"]
    patch = images.shape[-1] // math.isqrt(expected.shape[1])
    histograms(hog_of(images, patch=patch)(images), expected)


@pytest.mark.parametrize("name", ["sqrt", "l2_unused_helper"])
def test_hog_variants_that_are_not_ours(name: str) -> None:
    pytest.skip(f"{name}: an option that the official target never uses")
