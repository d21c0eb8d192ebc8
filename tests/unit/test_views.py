"""views.py: ids, rows and regions of a mask, against loops over rows."""

import pytest
import torch
from torch import Tensor

from remask.views import Views

MASK = torch.tensor(
    [
        [[1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0]],
        [[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 1]],
        [[1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0]],
    ],
    dtype=torch.bool,
)
GRID = (2, 3)


@pytest.fixture
def views() -> Views:
    return Views.of(MASK, GRID)


def test_ids_are_in_raster_order_row_by_row(views: Views) -> None:
    rows = [MASK[v, b] for v in range(3) for b in range(2)]
    assert views.masked.tolist() == [[i for i in range(6) if row[i]] for row in rows]
    assert views.visible.tolist() == [[i for i in range(6) if not row[i]] for row in rows]
    assert torch.equal(views.ids("masked"), views.masked)
    assert torch.equal(views.ids("visible"), views.visible)


def test_gather_takes_the_region_of_every_view(views: Views) -> None:
    x = torch.arange(2 * 6 * 2).reshape(2, 6, 2)
    for region, wanted in (("masked", MASK), ("visible", ~MASK)):
        by_hand = torch.stack([x[b][wanted[v, b]] for v in range(3) for b in range(2)])
        assert torch.equal(views.gather(x, region), by_hand)


def test_repeat_is_view_major(views: Views) -> None:
    x = torch.randn(2, 3, 5)
    repeated = views.repeat(x)
    assert all(torch.equal(repeated[v * 2 + b], x[b]) for v in range(3) for b in range(2))
    assert views.repeat(torch.arange(2)).tolist() == [0, 1] * 3


@pytest.mark.parametrize("unit", [(1, 1), (2, 3), (4, 2)])
def test_pixels_of_hidden_tokens(views: Views, unit: tuple[int, int]) -> None:
    hidden = views.pixels(unit)
    assert hidden.shape == (3, 2, 2 * unit[0], 3 * unit[1])
    for y in range(2 * unit[0]):
        for x in range(3 * unit[1]):
            assert torch.equal(hidden[:, :, y, x], MASK[:, :, y // unit[0] * 3 + x // unit[1]])


@pytest.mark.parametrize("parts", [1, 2])
def test_split_cuts_the_batch_as_images_are_cut(views: Views, parts: int) -> None:
    slices: list[Tensor] = [part.mask for part in views.split(parts)]
    assert torch.equal(torch.cat(slices, dim=1), MASK)
    assert [part.shape[1] for part in slices] == [len(x) for x in torch.arange(2).tensor_split(parts)]
    assert all(part.grid == GRID and part.hidden == 3 for part in views.split(parts))


def test_rates_are_realised_ones(views: Views) -> None:
    assert views.hidden == 3
    assert views.corruption_rate == 3 / 6
    unions = [len({i for v in range(3) for i in range(6) if MASK[v, b, i]}) for b in range(2)]
    assert views.prediction_rate == pytest.approx(sum(unions) / 2 / 6)


def test_one_view_predicts_what_it_hides() -> None:
    views = Views.of(MASK[:1], GRID)
    assert views.prediction_rate == views.corruption_rate


def test_rows_must_hide_equal_numbers() -> None:
    uneven = MASK.clone()
    uneven[1, 0, 0] = True
    with pytest.raises(ValueError, match="same number"):
        Views.of(uneven, GRID)


def test_mask_must_fit_the_grid() -> None:
    with pytest.raises(ValueError, match="6 tokens does not fit a grid of 2×4"):
        Views.of(MASK, (2, 4))


def test_views_move_to_a_device(views: Views) -> None:
    moved = views.to(torch.device("meta"))
    assert moved.mask.device.type == "meta"
    assert (moved.grid, moved.hidden) == (GRID, 3)


def test_colours_go_with_their_images(views: Views) -> None:
    coloured = Views(MASK, GRID, 3, torch.rand(2, 5))
    assert views.colours is None
    assert [part.colours for part in views.split(2)] == [None, None]
    parts = coloured.split(2)
    assert [len(part.colours) for part in parts] == [1, 1]  # type: ignore[arg-type]
    assert torch.equal(torch.cat([part.colours for part in parts]), coloured.colours)  # type: ignore[arg-type,misc]
    assert coloured.to(torch.device("meta")).colours.device.type == "meta"  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------ a part of the masked is predicted

PREDICT = torch.tensor(
    [
        [[0, 0, 0, 1, 1, 0], [0, 1, 0, 1, 0, 0]],
        [[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1]],
        [[1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 1, 0]],
    ],
    dtype=torch.bool,
)


def test_all_masked_tokens_are_predicted_unless_said_otherwise(views: Views) -> None:
    assert torch.equal(views.predicted, views.masked)
    assert torch.equal(views.masked_predicted_last, views.masked)
    assert views.predictions == views.hidden


def test_predicted_tokens_are_ids_in_raster_order_at_the_end_of_the_masked() -> None:
    views = Views.of(MASK, GRID, PREDICT)
    rows = [(MASK[v, b], PREDICT[v, b]) for v in range(3) for b in range(2)]
    predicted = [[i for i in range(6) if some[i]] for _, some in rows]
    others = [[i for i in range(6) if mask[i] and not some[i]] for mask, some in rows]
    assert views.predicted.tolist() == predicted
    assert views.masked_predicted_last.tolist() == [a + b for a, b in zip(others, predicted, strict=True)]
    assert views.masked.tolist() == [sorted(a + b) for a, b in zip(others, predicted, strict=True)]
    x = torch.randn(2, 6, 3)
    by_hand = torch.stack([x[b][PREDICT[v, b]] for v in range(3) for b in range(2)])
    assert torch.equal(views.gather(x, "predicted"), by_hand)
    assert views.prediction_rate == pytest.approx(float(PREDICT.any(0).float().mean()))


def test_predicted_tokens_follow_to_slices_and_devices() -> None:
    views = Views.of(MASK, GRID, PREDICT)
    slices = views.split(2)
    assert [part.predicted.tolist() for part in slices] == [views.predicted[row::2].tolist() for row in (0, 1)]
    assert torch.equal(views.to(torch.device("cpu")).predicted, views.predicted)


@pytest.mark.parametrize(
    ("predict", "why"), [(~MASK, "only masked tokens"), (PREDICT & (torch.arange(6) != 3), "predict must name")]
)
def test_what_cannot_be_predicted_is_refused(predict: Tensor, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Views.of(MASK, GRID, predict)


def test_grids_have_any_number_of_axes() -> None:
    assert Views.of(MASK, (6,)).masked.tolist() == Views.of(MASK, (1, 2, 3)).masked.tolist()
    with pytest.raises(ValueError, match="does not fit a grid of 2×2×2"):
        Views.of(MASK, (2, 2, 2))
