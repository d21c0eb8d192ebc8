"""masking.py for any grid, pattern, ratio, K and m_pred: exact counts, and what DM promises of every view."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from remask.errors import UserError
from remask.masking import Masking
from remask.masking.green import Green
from remask.masking.guided import MostAttended, hardest
from remask.masking.scores import Blocks, InverseBlocks, random
from remask.types import Grid

# The same examples on every run: a suite that fails at random is not believed when it fails.
FEW = settings(max_examples=40, derandomize=True, deadline=None)
BATCH = 4

PATTERNS = {
    "random": (random, 1), "cells": (random, 2), "blocks": (Blocks(), 1), "blocks of cells": (Blocks(), 2),
    "inverse blocks": (InverseBlocks(), 1), "inverse blocks of 2": (InverseBlocks(2), 1),
    "green noise": (Green(1.0), 1), "green noise of cells": (Green(1.5), 2),
    "attention": (MostAttended(0.5), 1), "attention of cells": (MostAttended(1.0, 0.1), 2),
    "loss": (hardest, 1), "loss of cells": (hardest, 2),
}  # fmt: skip
SIDES = st.integers(2, 16)
RATES = st.floats(0.02, 0.98)


@st.composite
def grids(draw: st.DrawFn, cell: int) -> Grid:
    return tuple(draw(SIDES.filter(lambda side: side % cell == 0)) for _ in range(2))  # type: ignore[return-value]


@st.composite
def maskings(draw: st.DrawFn, views: st.SearchStrategy[int]) -> tuple[Masking, Grid]:
    """Settings that a user may write; most fit their grid, some do not."""
    score, cell = PATTERNS[draw(st.sampled_from(sorted(PATTERNS)))]
    ratio = draw(RATES)
    prediction = draw(st.one_of(st.none(), st.just(1.0), st.floats(ratio, 1.0)))
    return Masking(ratio, score, cell, draw(views), prediction), draw(grids(cell))


def fits(masking: Masking, grid: Grid) -> bool:
    """False where drawing and counting both refuse with one line."""
    try:
        masking.counts(grid)
    except UserError:
        with pytest.raises(UserError, match=r"\A[^\n]+\Z"):
            drawn(masking, grid)
        return False
    return True


def drawn(masking: Masking, grid: Grid, seed: int = 0, batch: int = BATCH) -> Tensor:
    return masking(batch, grid, Generator().manual_seed(seed), guide=guide(masking, grid, seed, batch)).mask


def guide(masking: Masking, grid: Grid, seed: int, batch: int) -> Tensor | None:
    """Normal numbers where a pattern goes by a guide; half of the cells have none where it ranks losses."""
    if masking.score is not hardest and not isinstance(masking.score, MostAttended):
        return None
    numbers = torch.randn(batch, math.prod(grid) // masking.cell**2, generator=Generator().manual_seed(seed + 1))  # type: ignore[operator]
    return numbers.masked_fill(numbers < 0, -math.inf) if masking.score is hardest else numbers


@FEW
@given(maskings(st.integers(1, 6)))
def test_every_row_hides_exactly_as_many_whole_cells_as_counted(case: tuple[Masking, Grid]) -> None:
    masking, grid = case
    assume(fits(masking, grid))
    mask, counts = drawn(masking, grid), masking.counts(grid)
    assert mask.shape == (masking.views, BATCH, grid[0] * grid[1])
    assert (mask.sum(-1) == counts.hidden).all()
    assert 0 < counts.hidden < counts.tokens == grid[0] * grid[1]
    n = counts.tokens // masking.cell**2
    assert counts.hidden == (n - int(n * (1 - masking.ratio))) * masking.cell**2
    side = masking.cell
    cells = mask.reshape(masking.views, BATCH, grid[0] // side, side, grid[1] // side, side)
    assert torch.equal(cells.all((3, 5)), cells.any((3, 5)))


@FEW
@given(maskings(st.integers(2, 6)))
def test_disjoint_views_keep_their_promises(case: tuple[Masking, Grid]) -> None:
    """DMJD Eq. (3): the union is m_pred's, and every view covers new tokens, evenly."""
    masking, grid = case
    assume(masking.prediction is not None and fits(masking, grid))
    mask, counts = drawn(masking, grid), masking.counts(grid)
    assert (mask.any(0).sum(-1) == counts.predicted).all()
    assert counts.hidden < counts.predicted <= counts.tokens
    seen, shares = mask[0], []
    for view in mask[1:]:
        fresh = (view & ~seen).sum(-1)
        assert (fresh == fresh[0]).all()
        shares.append(int(fresh[0]))
        seen = seen | view
    assert min(shares) >= masking.cell**2
    assert max(shares) - min(shares) <= masking.cell**2
    assert counts.predicted / counts.tokens <= max(masking.prediction or 0, counts.hidden / counts.tokens) + 1 / (
        counts.tokens // masking.cell**2
    )


@pytest.mark.parametrize("grid", [(8, 8), (4, 10), (6, 8), (14, 14)])
@pytest.mark.parametrize("views", [1, 2, 3, 4])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_is_taken_by_disjoint_masking(name: str, views: int, grid: Grid) -> None:
    """The promises above for each pattern, for certain: exact counts, the union that is counted, fresh cells evenly."""
    score, cell = PATTERNS[name]
    for prediction in (1.0, 0.9):
        masking = Masking(0.55, score, cell, views, prediction)
        mask, counts = drawn(masking, grid), masking.counts(grid)
        assert (mask.sum(-1) == counts.hidden).all()
        assert (mask.any(0).sum(-1) == counts.predicted).all()
        earlier = mask.cumsum(0) - mask.long()
        fresh = (mask & (earlier == 0)).sum(-1)[1:]
        assert (fresh == fresh[:, :1]).all()
        assert views == 1 or 0 < int(fresh.min()) >= int(fresh.max()) - cell**2


@FEW
@given(maskings(st.just(2)))
def test_two_views_count_as_the_official_sampler(case: tuple[Masking, Grid]) -> None:
    """U units: int(U (1 - m)) stay visible, int(min(p - m, m) U) are newly masked; 0 of them repeats a view there."""
    masking, grid = case
    assume(masking.prediction is not None)
    units, m, p = grid[0] * grid[1] // masking.cell**2, masking.ratio, masking.prediction or 0
    visible, fresh = int(units * (1 - m)), int(min(p - m, m) * units)
    if not 0 < visible < units or fresh == 0:
        with pytest.raises(UserError):
            masking.counts(grid)
        return
    counts = masking.counts(grid)
    assert counts.hidden == (units - visible) * masking.cell**2
    assert counts.predicted == (units - visible + fresh) * masking.cell**2


@settings(FEW, max_examples=15)
@given(maskings(st.integers(1, 3)), st.integers(0, 2**32), st.integers(0, 2**32))
def test_equal_seeds_give_equal_masks_and_others_others(case: tuple[Masking, Grid], one: int, other: int) -> None:
    masking, grid = case
    assume(fits(masking, grid) and one != other)
    first, same, second = (drawn(masking, grid, seed, batch=24) for seed in (one, one, other))
    assert torch.equal(first, same)
    assert not torch.equal(first, second)  # so many images never agree by chance, on the smallest grid either


@settings(FEW, max_examples=40)
@given(RATES, st.floats(0, 1), st.integers(2, 6))
def test_a_union_smaller_than_a_view_is_refused(ratio: float, prediction: float, views: int) -> None:
    if prediction >= ratio:
        assert Masking(ratio, views=views, prediction=prediction).prediction == prediction
    else:
        with pytest.raises(UserError, match="cannot be smaller than one of them"):
            Masking(ratio, views=views, prediction=prediction)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("name", PATTERNS)
def test_every_token_is_equally_likely_to_be_hidden(name: str, views: int) -> None:
    """Border rows as the centre. official: mmpretrain's block-wise generator never hides the last row and column."""
    score, cell = PATTERNS[name]
    masking, grid, draws, batch = Masking(0.4, score, cell, views), (8, 6), 32, 128
    masks = torch.cat([drawn(masking, grid, seed, batch) for seed in range(draws)], dim=1).float()
    p = masking.counts(grid).hidden / 48
    rows = draws * batch
    deviation = math.sqrt(p * (1 - p) / rows)  # of one token's share over 4,096 independent images
    share = masks.mean(1)
    assert float((share - p).abs().max()) < 4.5 * deviation  # 48 tokens · 2 views beyond 4.5 σ: 1 in 1,500
    border = torch.ones(grid, dtype=torch.bool)
    border[cell:-cell, cell:-cell] = False
    assert abs(float(share[:, border.flatten()].mean()) - p) < 3 * deviation
