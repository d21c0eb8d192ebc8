"""masking/guided.py: what is hidden first, what stays random, and what no guide decides."""

import math

import pytest
import torch
from torch import Generator, Tensor

from remask.errors import UserError
from remask.masking import Masking
from remask.masking.guided import MostAttended, hardest

GRID = (6, 4)


def guide(batch: int) -> Tensor:
    return torch.randn(batch, 24, generator=Generator().manual_seed(7))


def drawn(score: object, given: Tensor, seed: int = 0, **settings: object) -> Tensor:
    masking = Masking(0.5, score, **settings)  # type: ignore[arg-type]
    return masking(len(given), GRID, Generator().manual_seed(seed), guide=given).mask


def test_the_most_attended_are_hidden_in_as_many_images_as_the_coin_says() -> None:
    given = guide(2000)
    top = torch.zeros(2000, 24, dtype=torch.bool).scatter(1, given.topk(12).indices, True)
    for probability in (0.0, 0.3, 1.0):
        share = float((drawn(MostAttended(probability), given)[0] == top).all(1).double().mean())
        assert share == pytest.approx(probability, abs=0.05)  # five deviations of a share of 2,000


def test_where_the_coin_falls_the_other_way_masks_are_random() -> None:
    """Every cell in half of the images, whatever is attended to."""
    given = guide(1).expand(4000, -1)
    share = drawn(MostAttended(0.0), given)[0].double().mean(0)
    assert float((share - 0.5).abs().max()) < 0.04


def test_hints_are_some_of_the_most_attended() -> None:
    """A sixth of 24 cells is 4: drawn from the 8 most attended, they stay visible; the next take their place."""
    given = guide(500)
    order = given.argsort(1, descending=True)
    mask = drawn(MostAttended(1.0, hints=1 / 6), given)[0].gather(1, order)
    assert ((~mask[:, :8]).sum(1) == 4).all()
    assert mask[:, 8:16].all()
    assert not mask[:, 16:].any()
    shown = (~mask[:, :8]).double().mean(0)
    assert float((shown - 0.5).abs().max()) < 0.12, "each of the 8 as often as another"


def test_cells_with_a_guide_come_first_and_the_rest_is_random() -> None:
    given = guide(3000)
    given = given.masked_fill(given < given.topk(5).values[:, -1:], -math.inf)
    mask = drawn(hardest, given)[0]
    assert mask[given > -math.inf].all()
    rest = mask & (given == -math.inf)
    assert (rest.sum(1) == 7).all()
    share = rest.sum(0) / (given == -math.inf).sum(0)
    assert float((share - 7 / 19).abs().max()) < 0.05


def test_without_any_guide_left_it_is_random_masking() -> None:
    given = torch.full((4, 24), -math.inf)
    random = Masking(0.5)(4, GRID, Generator().manual_seed(0)).mask
    assert torch.equal(drawn(hardest, given), random)


@pytest.mark.parametrize("score", [MostAttended(0.5, 0.1), hardest], ids=["attention", "loss"])
def test_rows_have_what_they_have_in_the_whole(score: object) -> None:
    given = guide(7).masked_fill(guide(7) < 0.3, -math.inf) if score is hardest else guide(7)
    masking = Masking(0.5, score, views=2)  # type: ignore[arg-type]
    whole = masking(7, GRID, Generator().manual_seed(2), guide=given).mask
    for rows in (slice(0, 4), slice(4, 7)):
        mine = masking(7, GRID, Generator().manual_seed(2), rows, given[rows]).mask
        assert torch.equal(mine, whole[:, rows])


@pytest.mark.parametrize("score", [MostAttended(0.5), hardest], ids=["attention", "loss"])
def test_a_guide_is_needed(score: object) -> None:
    with pytest.raises(UserError, match="masking needs a guide: make the method with guided_by_"):
        Masking(0.5, score)(2, GRID)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"probability": 1.1}, {"probability": -0.1}, {"hints": 1.5}, {"hints": -1}])
def test_shares_outside_their_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"^{next(iter(settings))} .* is outside \[0, 1\]"):
        MostAttended(**settings)


def test_views_share_the_guide_and_throw_their_own_coins() -> None:
    given = guide(400)
    first, second = drawn(MostAttended(0.5), given, views=2, prediction=None)
    top = torch.zeros(400, 24, dtype=torch.bool).scatter(1, given.topk(12).indices, True)
    both = (first == top).all(1).double().mean(), (second == top).all(1).double().mean()
    assert min(both) > 0.4
    assert 0.15 < float(((first == top).all(1) & (second == top).all(1)).double().mean()) < 0.35
