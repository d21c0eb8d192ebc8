"""evaluation/glyphs.py: histograms come back out of tokens, and strokes lie along edges."""

import pytest
import torch

from remask.evaluation.figures.glyphs import cells, edge_direction, magnitudes, stars
from remask.targets import Hog
from remask.targets.hog import Flavour


@pytest.mark.parametrize("flavour", ["central", "sobel"])
@pytest.mark.parametrize(("channels", "cell"), [(3, 4), (1, 8), (3, 2)])
def test_tokens_back_to_cells(flavour: Flavour, channels: int, cell: int) -> None:
    hog = Hog((8, 8), [0.5] * channels, [0.25] * channels, flavour, cell, norm="none")
    images = torch.randint(0, 256, (2, channels, 24, 40), dtype=torch.uint8)
    expected = hog.histogram(images.float())
    assert torch.equal(cells(hog, hog(images), (3, 5)), expected)
    torch.testing.assert_close(magnitudes(hog, hog(images), (3, 5)), expected.mean(1))


@pytest.mark.parametrize("flavour", ["central", "sobel"])
@pytest.mark.parametrize("vertical", [True, False])
def test_strokes_follow_the_edge(flavour: Flavour, vertical: bool) -> None:
    """A picture of one soft vertical edge gives strokes that are taller than wide, and the other way round."""
    ramp = (torch.arange(16) * 16).to(torch.uint8).expand(16, 16)
    image = (ramp if vertical else ramp.T).reshape(1, 1, 16, 16).contiguous()
    hog = Hog((16, 16), [0.5], [0.25], flavour, 16, norm="none")
    magnitude = magnitudes(hog, hog(image), (1, 1))
    picture = stars(magnitude, magnitude.flatten(1).amax(1), 31, flavour)[0]
    rows, columns = (picture.amax(1) > 0.5).sum(), (picture.amax(0) > 0.5).sum()
    assert (rows > 2 * columns) if vertical else (columns > 2 * rows)


def test_directions_are_perpendicular_to_the_gradient() -> None:
    for angle in (0.1, 1.0, 2.5):
        for flavour, gradient in (("central", (1, 0)), ("sobel", (0, 1))):
            sin, cos = torch.tensor(angle).sin(), torch.tensor(angle).cos()
            down, right = (sin, cos) if gradient == (1, 0) else (cos, sin)
            edge = edge_direction(angle, flavour)
            assert abs(float(down * edge[0] + right * edge[1])) < 1e-6


def test_stronger_is_longer_and_brighter_and_nothing_is_dark() -> None:
    magnitude = torch.zeros(1, 9, 1, 3)
    magnitude[0, 4] = torch.tensor([0.0, 0.3, 1.0])
    nothing, weak, strong = stars(magnitude, torch.ones(1), 20)[0].split(20, dim=1)
    assert float(nothing.sum()) == 0
    assert 0 < float(weak.sum()) < float(strong.sum())
    assert float(weak.max()) < float(strong.max()) <= 1
