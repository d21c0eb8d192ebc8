"""evaluation/tsne.py: classes that are apart stay apart, the same map twice, a panel a network, coordinates as CSV."""

import csv
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from remask.errors import UserError
from remask.evaluation.figures.tsne import (
    Map,
    choose_images,
    principal,
    separation,
    summary,
    table,
    tsne_figure,
    tsne_maps,
)

LABELS = torch.tensor([2, 5, 6])[torch.arange(90) % 3]


def clusters(width: int, apart: float) -> Tensor:
    """Three classes in directions of their own, or in none."""
    generator = torch.Generator().manual_seed(width)
    centres = torch.randn(3, width, generator=generator)
    return apart * centres[torch.arange(90) % 3] + torch.randn(90, width, generator=generator)


@pytest.fixture(scope="module")
def maps() -> dict[str, Map]:
    features = {"untrained": clusters(8, 0.0), "DMJD": clusters(70, 3.0)}
    return tsne_maps(features, LABELS, perplexity=10, k=7, iterations=300)


def test_separation_says_which_network_knows_the_classes(maps: dict[str, Map]) -> None:
    assert maps["DMJD"].knn_features > 95
    assert maps["DMJD"].knn_map > 95
    assert 10 < maps["untrained"].knn_features < 60
    assert 10 < maps["untrained"].knn_map < 60


def test_same_map_for_the_same_seed(maps: dict[str, Map]) -> None:
    again = tsne_maps({"DMJD": clusters(70, 3.0)}, LABELS, perplexity=10, k=7, iterations=300)
    assert torch.equal(again["DMJD"].points, maps["DMJD"].points)
    assert maps["DMJD"].points.shape == (90, 2)


def test_separation_leaves_the_image_itself_out() -> None:
    """Two far pairs of different classes: each image's nearest other is of the wrong class."""
    x, y = torch.tensor([[0.0], [1.0], [10.0], [11.0]]), torch.tensor([0, 1, 0, 1])
    assert separation(x, y, 1) == 0
    assert separation(x, torch.tensor([0, 0, 1, 1]), 1) == 100


def test_principal_components_against_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    x = clusters(70, 1.0).double()
    theirs = torch.from_numpy(PCA(5, svd_solver="full").fit_transform(x.numpy()))
    ours = principal(x, 5)
    torch.testing.assert_close(ours.abs(), theirs.abs())
    torch.testing.assert_close(principal(-x, 5), -ours)
    assert principal(x[:, :4], 5).shape == (90, 4)


def test_picture_has_a_panel_a_network_in_the_same_colours(maps: dict[str, Map]) -> None:
    one, two = (
        np.asarray(Image.open(io.BytesIO(tsne_figure(part, LABELS))).convert("RGB")).astype(int)
        for part in ({"DMJD": maps["DMJD"]}, maps)
    )
    assert two.shape[1] > 1.8 * one.shape[1]
    for half in (two[:, : two.shape[1] // 2], two[:, two.shape[1] // 2 :]):
        for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):
            assert (np.abs(half - colour).max(-1) < 60).sum() > 50


def test_more_classes_than_colours_of_their_own() -> None:
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    assert tsne_figure({"a": Map(points, 1.0, 2.0)}, torch.arange(60) % 30)[:4] == b"\x89PNG"


def test_table(maps: dict[str, Map]) -> None:
    names = [f"class {number}" for number in range(6)]
    paths = [f"a, b/{i}.png" for i in range(90)]
    rows = list(csv.DictReader(io.StringIO(table(maps, LABELS, range(100, 190), paths, names))))
    assert len(rows) == 180
    assert [row["run"] for row in rows[::90]] == ["untrained", "DMJD"]
    row = rows[90 + 4]
    assert (row["index"], row["path"], row["label"], row["class"]) == ("104", "a, b/4.png", "5", "class 5")
    assert rows[2]["class"] == "6"  # a class without a name
    x, y = maps["DMJD"].points[4].tolist()
    assert (float(row["x"]), float(row["y"])) == pytest.approx((x, y), rel=1e-5)


def test_summary(maps: dict[str, Map]) -> None:
    found = summary(maps, {"seed": 0, "k": 7})
    assert found["separation"]["DMJD"] == {"features": maps["DMJD"].knn_features, "map": maps["DMJD"].knn_map}
    assert found["protocol"]["k"] == 7
    assert "leave-one-out" in found["protocol"]["separation"]


def test_chosen_images() -> None:
    labels = [0] * 30 + [4] * 3 + [7] * 9 + [9] * 20
    numbers = choose_images(labels, 3, 5, seed=1)
    counts = torch.tensor(labels)[numbers].bincount()
    assert numbers == sorted(set(numbers)) == choose_images(labels, 3, 5, seed=1)
    assert len(counts[counts > 0]) == 3
    assert int(counts.max()) == 5
    assert choose_images(labels, 3, 5, seed=2) != numbers
    assert len(choose_images(labels, 99, 99, seed=0)) == len(labels)


@pytest.mark.parametrize(
    ("features", "labels", "keys", "message"),
    [
        (clusters(8, 1.0), None, {}, "no labels"),
        (clusters(8, 1.0), torch.full((90,), 2), {}, "of one class"),
        (clusters(8, 1.0)[:50], LABELS, {}, "features of 50 images and there are 90 labels"),
        (clusters(8, 1.0), LABELS, {"perplexity": 90}, "90 images are too few"),
        (clusters(8, 1.0)[:20], LABELS[:20], {}, "20 images are too few"),
        (clusters(8, 1.0)[:20], LABELS[:20], {"perplexity": 5, "k": 20}, "20 images are too few"),
    ],
)
def test_mistakes_are_one_line(features: Tensor, labels: Tensor | None, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tsne_maps({"run": features}, labels, **keys)
    assert "\n" not in str(caught.value)


def test_nothing_to_choose_from() -> None:
    with pytest.raises(UserError, match="no labels"):
        choose_images(None, 3, 5, 0)
    with pytest.raises(UserError, match="one class"):
        choose_images([1, 1], 3, 5, 0)
