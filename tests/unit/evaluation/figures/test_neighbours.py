"""neighbours and classes: the nearest are those of largest cosine, the share is counted, frames say what is right."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from remask.evaluation.figures.classes import Shown, classes_figure
from remask.evaluation.figures.lettering import png
from remask.evaluation.figures.neighbours import RIGHT, Near, Query, agreement, choose, nearest, neighbours_figure
from remask.evaluation.figures.sheet import canvas, place


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def plain(colour: tuple[int, int, int], side: int = 8) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).expand(side, side, 3)


def area(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((abs(picture - np.array(colour)).max(-1) <= 2).sum())


def test_nearest_by_cosine_and_in_order() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0], [-1.0, 0.0]])
    test = torch.tensor([[3.0, 0.1], [0.1, 0.2]])
    assert nearest(train, test, 3).tolist() == [[0, 2, 1], [2, 1, 0]]
    with torch.inference_mode():
        x = torch.randn(50, 7)
    assert nearest(x, x, 1).flatten().tolist() == list(range(50))


def test_agreement_is_the_share_of_the_own_class() -> None:
    near = torch.tensor([[0, 1], [2, 3]])
    assert agreement(near, torch.tensor([4, 4, 4, 9]), torch.tensor([4, 9])) == 75


def test_rows_are_of_different_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 50 + [2] * 2)
    chosen = choose(labels, 3, seed=1)
    assert labels[chosen].tolist() == [0, 1, 2]
    assert not torch.equal(chosen, choose(labels, 3, seed=2))
    assert len(choose(labels, 8, seed=1).unique()) == 8
    assert len(choose(labels[:2], 8, seed=1)) == 2


@pytest.mark.parametrize("right", [0, 1, 3])
def test_frames_are_around_those_of_the_own_class(right: int) -> None:
    blue, red = (20, 40, 220), (220, 30, 30)
    names = ["a $x^2$" if place < right else "b" for place in range(3)]
    near = Near([plain(red) for _ in names], names)
    frame = tuple(int(RIGHT[i : i + 2], 16) for i in (1, 3, 5))
    picture = opened(neighbours_figure([Query(plain(blue), "a $x^2$", [near, near])], ["one", "two"], ["a note"]))
    one = opened(neighbours_figure([Query(plain(blue), "a $x^2$", [Near([plain(red)], ["a $x^2$"])])], ["one"]))
    assert area(picture, red) > 5 * area(picture, blue)
    assert area(picture, frame) == pytest.approx(2 * right * area(one, frame), rel=0.2, abs=20)


@pytest.mark.parametrize("whole", [True, False])
def test_classes_show_their_pictures_and_the_whole(whole: bool) -> None:
    blue, red, portrait = (20, 40, 220), (220, 30, 30), (30, 200, 60)
    large = plain(portrait, 40) if whole else None
    cells = [Shown("a", [plain(blue)] * 4, large), Shown("b", [plain(red)] * 2, large)]
    picture = opened(classes_figure(cells, ["a note"]))
    assert area(picture, blue) == pytest.approx(2 * area(picture, red), rel=0.1)
    assert (area(picture, portrait) > 2 * area(picture, blue)) == whole
    assert opened(classes_figure(cells * 5)).shape[1] > 1.9 * picture.shape[1] - 100


@pytest.mark.parametrize(("rows", "columns", "wide", "high"), [(8, 8, 1, 1), (8, 16, 1, 0.5), (16, 8, 0.5, 1)])
def test_a_picture_keeps_its_proportions(rows: int, columns: int, wide: float, high: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2), dpi=100, facecolor="white")
    box = place(canvas(figure), plain((20, 40, 220), 16)[:rows, :columns], (0.5, 0.25, 1, 1))
    assert box == pytest.approx((1 - wide / 2, 0.75 - high / 2, wide, high))
    blue = abs(opened(png(figure)) - np.array((20, 40, 220))).max(-1) <= 2
    places = np.argwhere(blue)
    assert np.ptp(places, 0) + 1 == pytest.approx([100 * high, 100 * wide], abs=2)
    assert places.mean(0) == pytest.approx([124.5, 99.5], abs=2), "in the middle of the box; rows count from the top"
