"""evaluation/probe.py: the JSON that scripts read, that it tells knowledge from noise, and its mistakes."""

import json
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.evaluation.probing.fast_probe import DRAWS, draw_few, probe


class Some(NamedTuple):
    images: Tensor
    labels: Tensor | None


def backbone(seed: int) -> ViT:
    torch.manual_seed(seed)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    return create_vit("vit_micro", (8, 8), [0.5], [0.25], overrides=sizes)


def stripes(n: int, labels: tuple[int, ...] = (3, 7), seed: int = 0, labelled: bool = True) -> list[Some]:
    """Rows or columns of noise: two classes with the same pixel statistics, numbered with gaps."""
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randint(0, 256, (n, 1, 8, 1), generator=generator).expand(-1, -1, -1, 8)
    y = torch.arange(n) % len(labels)
    images = torch.where((y == 0)[:, None, None, None], lines, lines.transpose(2, 3)).to(torch.uint8)
    numbers = torch.tensor(labels)[y]
    return [
        Some(part, known if labelled else None) for part, known in zip(images.split(50), numbers.split(50), strict=True)
    ]


def run(train: list[Some], val: list[Some], **settings: Any) -> dict[str, Any]:
    networks = {"top1": backbone(1), "untrained": backbone(2)}
    return probe(networks, lambda: train, lambda: val, **settings)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return run(stripes(120), stripes(61, seed=1), few=4, k=10)


def test_keys(result: dict[str, Any]) -> None:
    kinds = {"top1", "untrained", "pixels"}
    assert set(result) == {"linear", "few_labels", "knn", "protocol"}
    assert set(result["linear"]) == kinds
    assert set(result["knn"]) == kinds | {"k"}
    assert set(result["few_labels"]) == kinds | {"per_class", "knn"}
    assert set(result["few_labels"]["knn"]) == kinds
    assert (result["few_labels"]["per_class"], result["knn"]["k"]) == (4, 10)
    assert json.loads(json.dumps(result)) == result


def test_accuracies_are_percent_with_two_decimals(result: dict[str, Any]) -> None:
    for table in (result["linear"], result["knn"], result["few_labels"], result["few_labels"]["knn"]):
        for kind in ("top1", "untrained", "pixels"):
            assert 0 <= table[kind] <= 100
            assert round(table[kind], 2) == table[kind]


def test_boards_and_planes_are_told_apart_and_noise_is_not() -> None:
    """So labels stay with their images, in every column of the table."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 60, (160, 1, 8, 8), generator=generator)
    y = torch.randint(0, 2, (160,), generator=generator)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 180
    images = (noise + board * y[:, None, None, None] + 90 * (1 - y[:, None, None, None])).to(torch.uint8)
    told = run([Some(images[:80], y[:80])], [Some(images[80:], y[80:])], few=10)
    lost = run([Some(images[:80], y[:80])], [Some(images[80:], y[80:].roll(7))], few=10)
    for table, other in ((told[x], lost[x]) for x in ("linear", "knn", "few_labels")):
        for kind in ("top1", "untrained", "pixels"):
            assert table[kind] > 90
            assert 25 < other[kind] < 75


def test_protocol_is_complete(result: dict[str, Any]) -> None:
    protocol = result["protocol"]
    assert protocol["features"] == {
        "layer": -1, "pool": "mean", "widths": {"top1": 16, "untrained": 16, "pixels": 64}
    }  # fmt: skip
    assert protocol["images"] == {"train": 120, "val": 61}
    assert protocol["classes"] == 2
    assert protocol["knn"]["temperature"] == 0.07
    assert set(protocol["linear"]["weight_decay"]) == {"top1", "untrained", "pixels"}
    assert protocol["linear"]["weight_decay"]["top1"] in protocol["linear"]["grid"]
    assert protocol["linear"]["held_out"] == 24
    few = protocol["few_labels"]
    assert (few["draws"], few["images_per_draw"], few["k"], len(set(few["seeds"]))) == (DRAWS, 8, 8, DRAWS)
    assert len(few["weight_decay"]["pixels"]) == DRAWS


def test_same_numbers_twice(result: dict[str, Any]) -> None:
    assert run(stripes(120), stripes(61, seed=1), few=4, k=10) == result


def test_few_labels_are_exactly_few() -> None:
    labels = torch.tensor([0] * 30 + [1] * 3 + [2] * 9)
    ids = draw_few(labels, 5, seed=0)
    assert labels[ids].bincount().tolist() == [5, 3, 5]
    assert len(ids.unique()) == len(ids)
    assert not torch.equal(ids, draw_few(labels, 5, seed=1))


def test_progress_is_told() -> None:
    lines: list[str] = []
    run(stripes(40), stripes(10, seed=1), few=2, k=5, progress=lines.append)
    assert any("40 training images" in line for line in lines)


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (stripes(40, labelled=False), stripes(10), "training images have no labels"),
        (stripes(40), stripes(10, labelled=False), "validation images have no labels"),
        (stripes(40, (3,)), stripes(10, (3,)), "one class"),
        (stripes(40), stripes(10, (3, 9)), "class 9 "),
        ([], stripes(10), "no image"),
    ],
)
def test_mistakes_are_one_line(train: list[Some], val: list[Some], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(train, val)
    assert "\n" not in str(caught.value)
