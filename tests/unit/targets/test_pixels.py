"""targets/pixels.py: MAE's pixel targets against the formula, patch by patch."""

import math
import statistics

import pytest
import torch

from remask.targets import Pixels

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
