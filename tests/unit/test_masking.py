"""masking.py: realised counts, patterns, and what DM promises; random settings are in tests/property."""

import pytest
import torch
from torch import Generator, Tensor

from remask.errors import UserError
from remask.masking import Blocks, Masking, disjoint, random
from remask.views import Views

GRID = (14, 14)
PATTERNS = [random, Blocks()]


def draw(masking: Masking, batch: int = 8, grid: tuple[int, int] = GRID, seed: int = 0) -> Views:
    return masking(batch, grid, Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("ratio", "cell", "hidden", "union"),
    [(0.75, 1, 147, 196), (0.6, 1, 118, 196), (0.6, 2, 120, 196), (0.3, 1, 59, 117), (0.5, 1, 98, 196)],
)
@pytest.mark.parametrize("score", PATTERNS, ids=["random", "blocks"])
def test_two_views_hide_what_the_official_sampler_hides(
    score: Blocks, ratio: float, cell: int, hidden: int, union: int
) -> None:
    masking = Masking(ratio, score, cell, views=2)
    views = draw(masking)
    assert (views.mask.sum(-1) == hidden).all()
    assert (views.mask.any(0).sum(-1) == union).all()
    assert tuple(masking.counts(GRID)) == (hidden, union, 196)
    assert masking.counts(GRID).gain == union / hidden


def test_full_prediction_leaves_no_token_visible_twice() -> None:
    first, second = draw(Masking(0.6, views=2)).mask
    assert not (~first & ~second).any()


def test_prediction_between_the_bounds_is_realised() -> None:
    # 118 hidden by the first view, int(.2 · 196) = 39 more by the second
    views = draw(Masking(0.6, views=2, prediction=0.8))
    assert (views.mask.any(0).sum(-1) == 118 + 39).all()


def test_equal_prediction_and_ratio_would_repeat_a_view_and_is_refused() -> None:
    # official: two identical views, silently
    with pytest.raises(UserError, match="only 0 of 196 cells are left"):
        draw(Masking(0.6, views=2, prediction=0.6))


def test_later_views_share_the_new_tokens_evenly() -> None:
    views = draw(Masking(0.6, views=4))
    seen = views.mask[0]
    shares = []
    for view in views.mask[1:]:
        fresh = (view & ~seen).sum(-1)
        assert (fresh == fresh[0]).all()
        shares.append(int(fresh[0]))
        seen = seen | view
    assert shares == [26, 26, 26]


def test_independent_views_meet_their_expected_union() -> None:
    masking = disjoint(Masking(0.6), views=2, prediction=None)
    views = draw(masking, batch=512)
    assert (views.mask.sum(-1) == 118).all()
    expected = masking.counts(GRID).predicted
    assert expected == pytest.approx(196 * (1 - (1 - 118 / 196) ** 2))
    # one image's union deviates by √(n·p·(1-p)) ≈ 5 at most: the mean of 512 by .2
    assert float(views.mask.any(0).sum(-1).float().mean()) == pytest.approx(expected, abs=1.0)
    assert not torch.equal(views.mask[0], views.mask[1])


def test_one_view_needs_no_prediction() -> None:
    masking = Masking(0.75, views=1, prediction=0.1)
    assert masking.counts(GRID).gain == 1
    assert draw(masking).mask.shape == (1, 8, 196)


def test_cells_are_hidden_whole() -> None:
    mask = draw(Masking(0.6, cell=2, views=2)).mask.reshape(2, 8, 7, 2, 7, 2)
    assert torch.equal(mask.all((3, 5)), mask.any((3, 5)))


@pytest.mark.parametrize("score", PATTERNS, ids=["random", "blocks"])
def test_a_seed_decides(score: Blocks) -> None:
    masking = Masking(0.4, score, views=2)
    assert torch.equal(draw(masking, seed=3).mask, draw(masking, seed=3).mask)
    assert not torch.equal(draw(masking, seed=3).mask, draw(masking, seed=4).mask)


@pytest.mark.parametrize("score", PATTERNS, ids=["random", "blocks"])
def test_images_of_a_batch_are_masked_differently(score: Blocks) -> None:
    mask = draw(Masking(0.4, score)).mask[0]
    assert len({tuple(row.tolist()) for row in mask}) == len(mask)


@pytest.mark.parametrize("score", PATTERNS, ids=["random", "blocks"])
def test_without_a_generator_the_global_one_is_used(score: Blocks) -> None:
    masking = Masking(0.4, score)
    torch.manual_seed(5)
    first = masking(2, GRID).mask
    torch.manual_seed(5)
    assert torch.equal(masking(2, GRID).mask, first)


def edges(mask: Tensor) -> float:
    """Sides between a hidden and a visible token, mean over images."""
    grid = mask.reshape(-1, *GRID)
    across, down = grid[:, :, 1:] != grid[:, :, :-1], grid[:, 1:] != grid[:, :-1]
    return float(across.sum((1, 2)).float().mean() + down.sum((1, 2)).float().mean())


def test_blocks_are_compact() -> None:
    blocks, scattered = draw(Masking(0.4, Blocks()), 64), draw(Masking(0.4), 64)
    assert edges(blocks.mask) < 0.4 * edges(scattered.mask)


def test_the_first_block_lies_inside_the_size_and_aspect_it_may_have() -> None:
    # one block alone: the cells it covers are the lowest scores, all below 1
    n = GRID[0] * GRID[1]
    covered = (Blocks(steps=1)(256, GRID, Generator().manual_seed(0)) < 1 + 1e-4).sum(-1)
    assert int(covered.min()) >= 10  # 16 of 196, sides rounded
    assert int(covered.max()) <= 90  # 75 of 196, sides rounded
    assert n * 16 / 196 < float(covered.float().mean()) < n * 75 / 196


def test_disjoint_changes_views_and_prediction_only() -> None:
    masking = Masking(0.4, Blocks(), 2)
    changed = disjoint(masking, 3, 0.9)
    assert (changed.ratio, changed.score, changed.cell) == (0.4, masking.score, 2)
    assert (changed.views, changed.prediction) == (3, 0.9)
    assert masking.views == 1


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5])
def test_a_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"outside \(0, 1\)"):
        Masking(ratio)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"views": 0}, "at least one view"),
        ({"cell": 0}, "cells of one patch"),
        ({"views": 2, "prediction": 0.4}, r"prediction 0.4 is outside \[0.6, 1\]"),
        ({"views": 2, "prediction": 1.1}, r"prediction 1.1 is outside"),
    ],
)
def test_settings_that_contradict_are_refused(keys: dict[str, float], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Masking(0.6, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("masking", "grid", "line"),
    [
        (Masking(0.6, cell=2), (7, 8), "7×8 patches cannot be cut into masking cells of 2×2"),
        (Masking(0.99), (2, 2), "hides 4 of 4 cells: nothing is left to see"),
        (Masking(0.75, views=51), (14, 14), "51 views are more than the tokens allow"),
        (Masking(0.6, views=2), (1, 1), "nothing is left to see"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused(masking: Masking, grid: tuple[int, int], line: str) -> None:
    for call in (lambda: masking.counts(grid), lambda: masking(2, grid)):
        with pytest.raises(UserError, match=line) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_as_many_views_as_tokens_allow() -> None:
    views = draw(Masking(0.75, views=50))
    seen = views.mask[0]
    for view in views.mask[1:]:
        assert ((view & ~seen).sum(-1) == 1).all()
        seen = seen | view
    assert seen.all()


@pytest.mark.parametrize("masking", [Masking(0.75), Masking(0.6, cell=2, views=2), Masking(0.4, Blocks())])
def test_a_part_of_the_batch_has_what_it_has_in_the_whole(masking: Masking) -> None:
    whole = masking(7, (8, 8), torch.Generator().manual_seed(2))
    for part in (slice(0, 4), slice(4, 7)):
        mine = masking(7, (8, 8), torch.Generator().manual_seed(2), part)
        assert torch.equal(mine.mask, whole.mask[:, part])
