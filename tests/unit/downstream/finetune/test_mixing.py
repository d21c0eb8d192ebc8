"""evaluation/mixing.py: timm's numbers for the same draw, the laws of the draws, exact soft targets."""

import numpy as np
import pytest
import timm.data.mixup as official
import torch
from torch import Generator, Tensor

from remask.downstream.finetune.mixing import Box, Mix, Mixing, cut, mixed, soft_targets
from remask.errors import UserError

SIZE = (24, 40)
LABELS = torch.tensor([0, 3, 3, 1, 2, 0])


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def pictures(batch: int = 6) -> Tensor:
    return torch.randn(batch, 3, *SIZE, generator=seeded(0))


def draws(mixing: Mixing, n: int = 2000) -> list[Mix]:
    generator = seeded(1)
    return [mixing.draw(SIZE, generator) for _ in range(n)]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mix", [Mix(0.3), Mix(0.875), cut(SIZE, 0.4, (0.9, 0.2)), cut(SIZE, 0.97, (0.5, 0.5))])
def test_pictures_and_targets_are_timms(mix: Mix, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = official.Mixup(0.8, 1.0, label_smoothing=smoothing, num_classes=5)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (mix.share, mix.box is not None))
    monkeypatch.setattr(official, "cutmix_bbox_and_lam", lambda *_, **__: (mix.box, mix.share))
    images = pictures()
    expected, targets = theirs(images.clone(), LABELS)
    ours = mixed(images, images.flip(0), mix.weights(SIZE))
    assert torch.allclose(ours, expected, atol=1e-6)
    assert torch.allclose(soft_targets(LABELS, 5, smoothing, mix.share), targets, atol=1e-7)
    if mix.box is not None:
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.777, 0.999])
def test_boxes_are_timms(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (0, 5, 12, 23):
        for column in (0, 7, 39):
            centres = iter((row, column))
            monkeypatch.setattr(np.random, "randint", lambda *_, **__: next(centres))  # noqa: B023
            expected, left = official.cutmix_bbox_and_lam((6, 3, *SIZE), share)
            mix = cut(SIZE, share, ((row + 0.5) / SIZE[0], (column + 0.5) / SIZE[1]))
            assert tuple(mix.box) == tuple(int(edge) for edge in expected)
            assert mix.share == pytest.approx(left, abs=1e-12)


def test_the_share_is_what_the_box_leaves() -> None:
    for mix in draws(Mixing(0.0, 1.0), 200):
        assert float(mix.weights(SIZE).mean()) == pytest.approx(mix.share, abs=1e-6)
        assert set(mix.weights(SIZE).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("alpha", [0.2, 0.8, 3.0])
def test_shares_of_mixup_follow_beta(alpha: float) -> None:
    shares = torch.tensor([mix.share for mix in draws(Mixing(alpha, 0.0))], dtype=torch.float64)
    assert all(0 <= share <= 1 for share in shares)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_how_often_and_which() -> None:
    found = draws(Mixing(0.8, 1.0, prob=0.6, switch_prob=0.25))
    mixes = [mix for mix in found if mix.share < 1]
    assert len(mixes) / len(found) == pytest.approx(0.6, abs=0.04)
    assert sum(mix.box is not None for mix in mixes) / len(mixes) == pytest.approx(0.25, abs=0.04)
    assert all(mix.box is None for mix in draws(Mixing(0.8, 0.0), 50))
    assert all(mix.box is not None for mix in draws(Mixing(0.0, 1.0), 50))
    assert all(mix == Mix(1.0) for mix in draws(Mixing(prob=0.0), 50))


def test_only_the_generator_decides() -> None:
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (Mixing().draw(SIZE, seeded(7)) for _ in range(2))
    assert first == second
    assert Mixing().draw(SIZE, seeded(8)) != first
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == legacy).all()
    used, unused = seeded(3), seeded(3)  # as many numbers, mixed or not
    Mixing().draw(SIZE, used)
    Mixing(prob=0.0).draw(SIZE, unused)
    assert torch.equal(used.get_state(), unused.get_state())


def test_soft_targets_by_hand() -> None:
    rows = soft_targets(torch.tensor([0, 2]), 4, 0.2, 0.75)
    assert rows.tolist() == [
        pytest.approx([0.75 * 0.85 + 0.25 * 0.05, 0.05, 0.75 * 0.05 + 0.25 * 0.85, 0.05]),
        pytest.approx([0.75 * 0.05 + 0.25 * 0.85, 0.05, 0.75 * 0.85 + 0.25 * 0.05, 0.05]),
    ]
    assert torch.allclose(soft_targets(LABELS, 7, 0.1, 0.4).sum(1), torch.ones(6))
    assert torch.equal(soft_targets(LABELS, 4), torch.eye(4)[LABELS])


def test_weights_of_a_box() -> None:
    weights = Mix(0.5, Box(1, 3, 0, 2)).weights((4, 3))
    assert weights.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    "keys", [{"mixup": 0.0, "cutmix": 0.0}, {"mixup": -0.1}, {"prob": 1.5}, {"switch_prob": -0.5}], ids=str
)
def test_mistakes(keys: dict[str, float]) -> None:
    with pytest.raises(UserError, match="mix"):
        Mixing(**keys)
