"""masking/green.py: against a convolution written out cell by cell, and how large the blobs are."""

import math
from itertools import product

import pytest
import torch
from torch import Generator, Tensor

from remask.errors import UserError
from remask.masking import Masking
from remask.masking.green import Green
from remask.masking.scores import random
from remask.recipe import load_recipe


def gaussian(offset: int, side: int, sigma: float) -> float:
    """On a ring: of all turns."""
    return sum(math.exp(-((offset + turn * side) ** 2) / (2 * sigma**2)) for turn in range(-9, 10))


def by_hand(noise: Tensor, sigma: float) -> Tensor:
    """The convolution of one image, cell by cell over all cells, weights divided by their sum."""
    blurred = torch.zeros_like(noise)
    for to in product(*map(range, noise.shape)):
        total = weights = 0.0
        for at in product(*map(range, noise.shape)):
            weight = math.prod(gaussian(a - b, n, sigma) for a, b, n in zip(to, at, noise.shape, strict=True))
            total, weights = total + weight * float(noise[at]), weights + weight
        blurred[to] = total / weights
    return blurred


@pytest.mark.parametrize("grid", [(6, 4), (8,), (3, 4, 2), (1, 6)])
@pytest.mark.parametrize("blob", [1.0, 1.7])
def test_it_is_the_difference_of_two_blurs_around_the_border(grid: tuple[int, ...], blob: float) -> None:
    score = Green(blob)(2, grid, Generator().manual_seed(0))
    noise = torch.randn(2, *grid, generator=Generator().manual_seed(0)).double()
    sigma = 2 / math.pi * math.sqrt(math.log(2) / 3) * blob
    for image in range(2):
        expected = by_hand(noise[image], sigma) - by_hand(noise[image], 2 * sigma)
        assert torch.allclose(score[image], expected.flatten(), atol=1e-9)


def blob_size(mask: Tensor, grid: tuple[int, int]) -> float:
    """Cells along a side of a blob: cells over changes from hidden to visible along rows and columns, half of each."""
    square = mask.reshape(-1, *grid)
    changes = sum((square != square.roll(1, axis)).double().mean() for axis in (1, 2)) / 2
    return float(1 / changes)


def test_larger_blobs_are_larger_and_of_about_the_size_that_is_given() -> None:
    """At half hidden a wave of two blobs changes twice, so that the mean run along a row is a blob or a little more."""
    grid, sizes = (24, 24), {}
    for blob in (1.0, 1.5, 2.0, 3.0, 4.0):
        mask = Masking(0.5, Green(blob))(64, grid, Generator().manual_seed(0)).mask[0]
        sizes[blob] = blob_size(mask, grid)
    assert list(sizes.values()) == sorted(sizes.values())
    for blob, size in sizes.items():
        assert 0.9 * blob < size < 1.7 * blob, sizes


def test_where_a_quarter_is_visible_blobs_of_two_are_larger_than_what_chance_makes() -> None:
    """And of one are smaller: such masks are more even than random ones. Cells along a run."""
    sizes = {
        name: blob_size(Masking(0.75, score)(256, (14, 14), Generator().manual_seed(0)).mask[0], (14, 14))
        for name, score in {"random": random, "1": Green(1.0), "2": Green(2.0), "3": Green(3.0)}.items()
    }
    assert sizes["1"] < 0.92 * sizes["random"]
    assert 1.08 * sizes["random"] < sizes["2"] < 0.8 * sizes["3"]


def test_there_are_neither_single_cells_nor_large_regions() -> None:
    """Against the same noise blurred once, whose regions grow without bound: green noise has one size."""
    grid = (32, 32)
    score = Green(3.0)(32, grid, Generator().manual_seed(0)).unflatten(-1, grid)
    power = torch.fft.rfft2(score).abs().square().mean(0)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None])
    ring = [float(power[(frequency - f).abs() < 1 / 64].mean()) for f in (1 / 32, 1 / 6, 1 / 2.2)]
    assert ring[1] > 3 * ring[0], "large regions"
    assert ring[1] > 3 * ring[2], "single cells"


def test_images_of_a_batch_have_noise_of_their_own_and_rows_the_same_as_all() -> None:
    masking = Masking(0.75, Green(2.0), views=2)
    whole = masking(6, (8, 6), Generator().manual_seed(1)).mask
    part = masking(6, (8, 6), Generator().manual_seed(1), slice(2, 5)).mask
    assert torch.equal(part, whole[:, 2:5])
    assert len({tuple(row.tolist()) for row in whole.flatten(0, 1)}) == 12


def test_a_guide_is_refused() -> None:
    with pytest.raises(UserError, match="green-noise masking does not adapt"):
        Green()(2, (4, 4), None, guide=torch.zeros(2, 16))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"masking.blob": 5.0},
            r"^masking.pattern green: masking.blob 5 is too large for 8×8 cells: .* at most 4, or smaller",
        ),
        ({"masking.blob": 0.5}, r"^masking.blob: must be at least 1"),
        ({"masking.blob": 3.0, "masking.cell": 2}, r"masking.blob 3 is too large for 4×4 cells: .* at most 2, or"),
        ({"masking.pattern": "random"}, "masking.blob has no use with masking.pattern random: it belongs to green"),
        (
            {"masking.share": 0.2},
            "masking.share has no use with masking.pattern green: it belongs to masks by loss",
        ),
        (
            {"masking.hints": 0.2},
            "masking.hints has no use with masking.pattern green: it belongs to masks by attention",
        ),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, object], why: str) -> None:
    from remask.build.pretraining import build_method

    with pytest.raises(UserError, match=why) as caught:
        build_method(load_recipe("mae-green-vit-micro-cifar", {"masking.blob": 1.5, **settings}, environment={}))
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_program() -> None:
    with pytest.raises(UserError, match=r"^blob 0.9 is below one cell"):
        Green(0.9)
    with pytest.raises(UserError, match=r"^blob 3 is too large for 4 cells: .* at most 2, or smaller cells$"):
        Masking(0.5, Green(3.0)).counts((4,))


def test_it_says_what_it_is() -> None:
    said = Masking(0.75, Green(1.5), cell=2).describe((8, 8))
    assert said.startswith("green-noise masking in blobs of 1.5 of cells of 2×2 patches, m_corr 0.75")
