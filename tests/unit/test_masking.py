"""masking.py: realised counts, patterns, and what DM promises; random settings are in tests/property."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from remask.errors import UserError
from remask.masking import Masking
from remask.masking.scores import Blocks, random
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
    assert tuple(masking.counts(GRID)) == (hidden, union, 196, hidden)
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
    masking = replace(Masking(0.6), views=2, prediction=None)
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
    changed = replace(masking, views=3, prediction=0.9)
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


# ------------------------------------------------------------------------------------ which masked tokens are predicted


@pytest.mark.parametrize(
    ("ratio", "prediction", "views", "cell", "grid"),
    [
        (0.75, 1.0, 2, 1, (14, 14)),
        (0.75, 1.0, 3, 1, (14, 14)),
        (0.75, 0.9, 3, 1, (7, 9)),
        (0.6, 1.0, 2, 2, (14, 14)),
        (0.34, 1.0, 3, 1, (10, 10)),
        (0.3, 1.0, 3, 1, (10, 10)),
        (0.5, 0.6, 3, 1, (10, 10)),
        (0.9, 1.0, 4, 1, (8, 14, 14)),
        (0.13, 1.0, 8, 1, (11, 9)),
        (0.36, 1.0, 3, 2, (10, 12)),
        (0.2, 0.99, 6, 1, (50,)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_predicted_once_each_token_is_predicted_by_one_view_that_hides_it(
    ratio: float, prediction: float, views: int, cell: int, grid: tuple[int, ...], seed: int
) -> None:
    masking = Masking(ratio, cell=cell, views=views, prediction=prediction, predicted="once")
    drawn, counts = draw(masking, 16, grid, seed), masking.counts(grid)
    predict = drawn.mask if drawn.predict is None else drawn.predict  # disjoint views: all that a view hides
    assert not (predict & ~drawn.mask).any()
    times = predict.sum(0)
    assert torch.equal(times > 0, drawn.mask.any(0)), "every hidden token, and no other"
    per_view = -(-int(counts.predicted) // views)
    assert counts.per_view == per_view
    assert (predict.sum(-1) == per_view).all()
    assert ((times - 1).clamp(min=0).sum(-1) == per_view * views - counts.predicted).all()
    assert per_view * views - counts.predicted <= views - 1


def test_cells_that_do_not_divide_are_predicted_in_views_of_the_largest_share() -> None:
    """29 cells of 4 tokens in three views: the last hides 10 cells anew, which is more than a third of the tokens."""
    masking = Masking(1 / 3 + 0.01, cell=2, views=3, predicted="once", count="maskfeat")
    for grid in ((10, 12), (6, 20), (4, 58)):
        drawn, counts = draw(masking, 8, grid), masking.counts(grid)
        predict = drawn.mask if drawn.predict is None else drawn.predict
        assert torch.equal(predict.any(0), drawn.mask.any(0))
        assert (predict.sum(-1) == counts.per_view).all()
        assert counts.predicted / 3 <= counts.per_view < counts.predicted / 3 + 4


def test_predicted_once_shares_tokens_out_at_random() -> None:
    """Of the 98 tokens that both views hide, each goes to either view in half of the images."""
    drawn = draw(Masking(0.75, views=2, predicted="once"), 4000)
    assert drawn.predict is not None
    both = drawn.mask.all(0)
    first = (drawn.predict[0] & both).sum(0) / both.sum(0)
    assert float((first - 0.5).abs().max()) < 0.06  # 4.5 deviations of a share of 2,000 images
    assert int((drawn.predict[0] & both).sum()) * 2 == int(both.sum())


@pytest.mark.parametrize(("share", "count"), [(0.25, 49), (0.75, 147), (0.1, 20), (0.0052, 1)])
def test_a_share_of_the_tokens_is_predicted_in_every_view(share: float, count: int) -> None:
    masking = Masking(0.75, views=2, predicted=share)
    drawn = draw(masking)
    assert masking.counts(GRID).per_view == count
    assert drawn.predicted.shape == (16, count)
    if drawn.predict is not None:
        assert not (drawn.predict & ~drawn.mask).any()
        assert not torch.equal(drawn.predicted, drawn.masked[:, :count]), "at random, not the first ones"


def test_what_is_predicted_changes_no_mask_and_is_alike_in_many_processes() -> None:
    for predicted in ("once", 0.3):
        masking = Masking(0.6, views=2, predicted=predicted)  # type: ignore[arg-type]
        drawn, plain = draw(masking, 6), draw(Masking(0.6, views=2), 6)
        assert torch.equal(drawn.mask, plain.mask)
        mine = masking(6, GRID, Generator().manual_seed(0), slice(2, 4))
        assert torch.equal(mine.mask, drawn.mask[:, 2:4])
        assert mine.predict is not None
        assert drawn.predict is not None
        assert torch.equal(mine.predict, drawn.predict[:, 2:4])


def test_one_view_predicts_all_that_it_hides_once() -> None:
    assert draw(Masking(0.6, predicted="once")).predict is None


def test_a_share_below_one_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"predicted 0.005 is less than one of 196 tokens"):
        Masking(0.75, predicted=0.005).counts(GRID)


@pytest.mark.parametrize("prediction", [1.0, 0.9, None])
@pytest.mark.parametrize(("views", "share"), [(1, 0.25), (2, 0.25), (3, 0.5), (4, 0.1), (2, 0.75)])
def test_the_number_predicted_over_all_views_is_the_expected_one(
    views: int, share: float, prediction: float | None
) -> None:
    masking = Masking(0.75, views=views, prediction=prediction, predicted=share)
    drawn, counts = draw(masking, 3000), masking.counts(GRID)
    assert counts.gain == counts.predicted / counts.hidden
    union = (drawn.mask if drawn.predict is None else drawn.predict).any(0).sum(-1).double()
    error = float(union.std()) / 3000**0.5
    assert abs(float(union.mean()) - counts.predicted) <= 4.5 * error + 1e-9
    assert drawn.prediction_rate == pytest.approx(float(union.mean()) / 196)
    if views == 1:  # CrossMAE: the rate is multiplied by γ / p
        assert counts.gain == pytest.approx(share / 0.75)


@pytest.mark.parametrize(
    ("masking", "why"),
    [
        ({"predicted": 0.7}, "predicted 0.7 is outside"),
        ({"predicted": 0.0}, "predicted 0.0 is outside"),
        ({"predicted": "once", "views": 2, "prediction": None}, "once in disjoint views"),
    ],
)
def test_shares_that_cannot_be_are_refused(masking: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        Masking(0.6, **masking)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- guides, and grids of any length


def highest_first(
    batch: int,
    grid: tuple[int, ...],
    generator: Generator | None,
    rows: slice = slice(None),
    guide: Tensor | None = None,
) -> Tensor:
    """A pattern that hides where its guide is highest."""
    assert guide is not None
    return -guide + 1e-3 * torch.rand(batch, guide.shape[1], generator=generator)[rows]


def test_a_guide_decides_which_cells_are_hidden() -> None:
    guide = torch.randn(2, 49)
    views = Masking(0.5, highest_first, cell=2)(8, GRID, Generator().manual_seed(0), slice(2, 4), guide)
    hidden = views.mask[0].unflatten(-1, GRID)[:, ::2, ::2].flatten(1)
    for row in range(2):
        assert guide[row][hidden[row]].min() > guide[row][~hidden[row]].max() - 2e-3


@pytest.mark.parametrize("score", PATTERNS, ids=["random", "blocks"])
def test_a_guide_is_refused_by_patterns_that_do_not_adapt(score: Blocks) -> None:
    with pytest.raises(UserError, match="does not adapt to a guide"):
        Masking(0.5, score)(2, GRID, guide=torch.zeros(2, 196))


def test_tubes_are_cells_as_long_as_the_clip() -> None:
    """A 2-D mask repeated over time (VideoMAE), on a grid of time, rows and columns."""
    views = draw(Masking(0.9, cell=(8, 1, 1), views=2), 4, (8, 14, 14))
    mask = views.mask.unflatten(-1, (8, 14, 14))
    assert (mask == mask[:, :, :1]).all()
    assert (mask[:, :, 0].flatten(2).sum(-1) == 177).all()
    assert views.hidden == 8 * 177


@pytest.mark.parametrize(("cell", "grid"), [(2, (3, 4, 4)), ((1, 2), (4, 4, 4)), (3, (9, 8))])
def test_cells_that_do_not_tile_a_grid_are_refused(cell: int | tuple[int, ...], grid: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="cannot be cut into masking cells"):
        Masking(0.5, cell=cell)(2, grid)


def test_blocks_are_of_rows_and_columns() -> None:
    with pytest.raises(UserError, match="this grid has 3 axes"):
        Masking(0.5, Blocks())(2, (4, 4, 4))
