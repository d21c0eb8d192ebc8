"""tokens.py: patches, token rows and the position table against loops that spell the layout out."""

import math

import pytest
import torch

from remask.errors import UserError
from remask.tokens import divisible_grid, grid_of, patchify, scatter, sincos_positions, split_tokens, take, unpatchify


def test_grid_is_rows_then_columns() -> None:
    assert grid_of((96, 160), (16, 8)) == (6, 20)


def test_a_whole_grid_leaves_nothing_over() -> None:
    assert divisible_grid((96, 160), (16, 8)) == (6, 20)
    for size in ((97, 160), (96, 164)):
        with pytest.raises(UserError, match=rf"{size[0]}×{size[1]} px cannot be cut into patches of 16×8 px"):
            divisible_grid(size, (16, 8))


def test_patches_run_pixel_row_pixel_column_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 9).reshape(2, 3, 4, 9)
    patches = patchify(images, (2, 3))
    assert patches.shape == (2, 2 * 3, 2 * 3 * 3)
    for b in range(2):
        for row in range(2):
            for col in range(3):
                by_hand = [
                    int(images[b, c, row * 2 + y, col * 3 + x]) for y in range(2) for x in range(3) for c in range(3)
                ]
                assert patches[b, row * 3 + col].tolist() == by_hand


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_unpatchify_is_the_inverse(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (2, 5, 12, 8)).to(dtype)
    assert torch.equal(unpatchify(patchify(images, (4, 2)), (3, 4), (4, 2)), images)


@pytest.mark.parametrize("fine", [(1, 1), (2, 2), (3, 1), (2, 4)])
def test_finer_tokens_stand_in_raster_order(fine: tuple[int, int]) -> None:
    (rows, columns), (down, right), width = (2, 3), fine, 5
    coarse = torch.arange(2 * rows * columns * down * right * width).reshape(2, rows * columns, -1)
    cut = split_tokens(coarse, (rows, columns), fine)
    assert cut.shape == (2, rows * down * columns * right, width)
    for row in range(rows * down):
        for col in range(columns * right):
            token, part = row // down * columns + col // right, row % down * right + col % right
            by_hand = coarse[:, token, part * width : (part + 1) * width]
            assert torch.equal(cut[:, row * columns * right + col], by_hand)


def test_take_and_scatter_are_inverse() -> None:
    tokens = torch.randn(2, 6, 4)
    ids = torch.tensor([[5, 0, 3], [1, 2, 4]])
    taken = take(tokens, ids)
    assert all(torch.equal(taken[r, k], tokens[r, ids[r, k]]) for r in range(2) for k in range(3))
    empty = torch.full_like(tokens, -1)
    written = scatter(taken, ids, empty)
    assert torch.equal(take(written, ids), taken)
    assert int((written == -1).all(-1).sum()) == 2 * 3
    assert bool((empty == -1).all())


def test_positions_follow_the_published_formula() -> None:
    grid, width = (2, 3), 8
    table = sincos_positions(grid, width)
    assert table.shape == (6, 8)
    assert table.dtype == torch.float32
    for row in range(2):
        for col in range(3):
            rates = [10000 ** (-k / (width / 4)) for k in range(width // 4)]
            halves = [f(at * rate) for at in (col, row) for f in (math.sin, math.cos) for rate in rates]
            assert table[row * 3 + col].tolist() == pytest.approx(halves, abs=1e-7)


def test_positions_of_prefix_tokens_are_zero_and_come_first() -> None:
    table = sincos_positions((2, 2), 16, prefix=3)
    assert not table[:3].any()
    assert torch.equal(table[3:], sincos_positions((2, 2), 16))


def test_positions_need_a_width_of_four_parts() -> None:
    with pytest.raises(UserError, match="divisible by 4, not 30"):
        sincos_positions((2, 2), 30)
