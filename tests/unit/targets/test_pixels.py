"""targets/pixels.py: MAE's pixel targets against the formula, patch by patch."""

import cmath
import math
import statistics

import pytest
import torch

from remask.targets import Pixels
from remask.targets.pixels import low_passed

MEAN, STD = [0.5, 0.25], [0.25, 0.5]
PATCH = (2, 4)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 2, 4, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def patch(images: torch.Tensor, b: int, row: int, col: int) -> list[float]:
    """Normalised pixels of one patch: pixel row, pixel column, channel."""
    return [
        (int(images[b, c, row * 2 + y, col * 4 + x]) / 255 - MEAN[c]) / STD[c]
        for y in range(2)
        for x in range(4)
        for c in range(2)
    ]


def test_raw_pixels_are_the_normalised_image(images: torch.Tensor) -> None:
    target = Pixels(PATCH, MEAN, STD, per_patch=False)
    tokens = target(images)
    assert tokens.shape == (2, 4, target.width)
    assert target.width == 2 * 4 * 2
    for b in range(2):
        for i in range(4):
            assert tokens[b, i].tolist() == pytest.approx(patch(images, b, i // 2, i % 2), abs=1e-5)


def test_per_patch_norm_uses_the_unbiased_variance_of_all_channels(images: torch.Tensor) -> None:
    tokens = Pixels(PATCH, MEAN, STD)(images)
    for b in range(2):
        for i in range(4):
            values = patch(images, b, i // 2, i % 2)
            mean, variance = statistics.mean(values), statistics.variance(values)
            by_hand = [(value - mean) / math.sqrt(variance + 1e-6) for value in values]
            assert tokens[b, i].tolist() == pytest.approx(by_hand, abs=1e-4)


def test_a_float_image_is_taken_as_normalised(images: torch.Tensor) -> None:
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    normalised = (images / 255 - mean) / std
    for per_patch in (True, False):
        target = Pixels(PATCH, MEAN, STD, per_patch)
        assert torch.allclose(target(normalised), target(images), atol=1e-5)


def test_a_flat_patch_is_zero_not_nan() -> None:
    flat = torch.full((1, 1, 4, 8), 77, dtype=torch.uint8)
    assert not Pixels(PATCH, [0.5], [0.25])(flat).any()


def test_targets_carry_no_gradient(images: torch.Tensor) -> None:
    normalised = images.float().requires_grad_()
    assert not Pixels(PATCH, MEAN, STD)(normalised).requires_grad


def test_half_precision_images_give_full_precision_targets(images: torch.Tensor) -> None:
    assert Pixels(PATCH, MEAN, STD)(images.half()).dtype == torch.float32


def test_nothing_of_it_enters_a_checkpoint() -> None:
    assert Pixels(PATCH, MEAN, STD).state_dict() == {}


def test_words() -> None:
    assert [Pixels(PATCH, MEAN, STD, norm).describe() for norm in (True, False)] == [
        "pixels, normalised per patch",
        "pixels",
    ]


def by_hand(image: list[list[float]], radius: float) -> list[list[float]]:
    """A discrete Fourier transform in sums, the frequencies of a circle kept, and back."""
    rows, columns = len(image), len(image[0])
    shorter, kept = min(rows, columns), {}
    for u in range(rows):
        for v in range(columns):
            down, right = (u if u <= rows / 2 else u - rows), (v if v <= columns / 2 else v - columns)
            if (down / rows * shorter) ** 2 + (right / columns * shorter) ** 2 <= radius**2 + 1e-6:
                kept[u, v] = sum(
                    image[y][x] * cmath.exp(-2j * cmath.pi * (u * y / rows + v * x / columns))
                    for y in range(rows)
                    for x in range(columns)
                )
    back = [
        [
            sum(z * cmath.exp(2j * cmath.pi * (u * y / rows + v * x / columns)) for (u, v), z in kept.items())
            for x in range(columns)
        ]
        for y in range(rows)
    ]
    assert max(abs(z.imag) for row in back for z in row) < 1e-9
    return [[z.real / rows / columns for z in row] for row in back]


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0, 2.5])
def test_low_pass_is_a_fourier_transform_written_out(radius: float) -> None:
    for size in ((6, 6), (6, 8), (5, 7)):
        pixels = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
        expected = by_hand(pixels[0, 0].tolist(), radius)
        assert torch.allclose(low_passed(pixels, radius)[0, 0], torch.tensor(expected), atol=1e-5)


def test_low_pass_keeps_waves_within_the_circle_and_no_others() -> None:
    x = torch.arange(32) / 32 * 2 * math.pi
    for cycles, stays in ((0, True), (3, True), (6, True), (7, False), (16, False)):
        wave = torch.cos(cycles * x).expand(1, 1, 32, 32)
        found = low_passed(wave, 6.0)
        assert torch.allclose(found, wave if stays else torch.zeros_like(wave), atol=1e-5), cycles
    everything = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(low_passed(everything, 6.0), everything, atol=1e-6)


def test_a_low_passed_target_is_the_patches_of_the_filtered_image(images: torch.Tensor) -> None:
    """Normalised per patch behind the filter; of integers as of a normalised image."""
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    normalised = (images / 255 - mean) / std
    for per_patch in (True, False):
        target = Pixels(PATCH, MEAN, STD, per_patch, low_pass=1.0)
        plain = Pixels(PATCH, MEAN, STD, per_patch)
        assert torch.allclose(target(images), plain(low_passed(normalised, 1.0)), atol=1e-4)
        assert not torch.allclose(target(images), plain(images), atol=0.1)
    assert target.describe() == "pixels up to 1 cycles"
    assert Pixels(PATCH, MEAN, STD, low_pass=40).describe() == "pixels up to 40 cycles, normalised per patch"
