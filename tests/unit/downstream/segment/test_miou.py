"""miou: by hand, against scikit-learn, and with pixels that count for nothing."""

import pytest
import torch
from sklearn.metrics import jaccard_score, recall_score
from torch import Generator, Tensor

from remask.downstream.segment.miou import Confusion


def confusion(truth: Tensor, guess: Tensor, classes: int) -> Confusion:
    found = Confusion(classes)
    found.add(truth, guess)
    return found


def test_by_hand() -> None:
    truth = torch.tensor([[0, 0, 0, 1], [1, 2, 255, 255]], dtype=torch.uint8)
    guess = torch.tensor([[0, 0, 1, 1], [0, 2, 3, 0]])
    found = confusion(truth, guess, 5)
    assert found.counts.tolist()[:3] == [[2, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0]]
    scores = found.scores(list("abcde"))
    assert scores["IoU"] == {
        "a": pytest.approx(50), "b": pytest.approx(100 / 3), "c": pytest.approx(100), "d": None, "e": None,
    }  # fmt: skip
    assert scores["Acc"] == {
        "a": pytest.approx(200 / 3), "b": pytest.approx(50), "c": pytest.approx(100), "d": None, "e": None,
    }  # fmt: skip
    assert scores["mIoU"] == pytest.approx((50 + 100 / 3 + 100) / 3)
    assert scores["aAcc"] == pytest.approx(400 / 6)
    assert scores["mAcc"] == pytest.approx((200 / 3 + 50 + 100) / 3)


@pytest.mark.parametrize("seed", [0, 1])
def test_as_scikit_learn(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    truth = torch.randint(0, 6, (3, 20, 30), generator=generator)
    guess = torch.where(
        torch.rand(3, 20, 30, generator=generator) < 0.6, truth, torch.randint(0, 8, (3, 20, 30), generator=generator)
    )
    whole = confusion(truth, guess, 9).scores()
    flat = truth.flatten().numpy(), guess.flatten().numpy()
    each = jaccard_score(*flat, labels=list(range(8)), average=None, zero_division=0)
    assert list(whole["IoU"].values())[:8] == pytest.approx((100 * each).tolist())
    assert whole["IoU"]["class 8"] is None
    assert whole["mIoU"] == pytest.approx(100 * jaccard_score(*flat, average="macro"))
    assert whole["mAcc"] == pytest.approx(100 * recall_score(*flat, labels=list(range(6)), average="macro"))
    parts = Confusion(9)
    for one, other in zip(truth, guess, strict=True):
        parts.add(one, other)
    assert parts.scores() == whole, "images may come one by one"


def test_nothing_labelled_and_everything_right() -> None:
    nothing = confusion(torch.full((4,), 255), torch.zeros(4, dtype=torch.int64), 2).scores()
    assert (nothing["mIoU"], nothing["aAcc"], nothing["IoU"]) == (0.0, 0.0, {"class 0": None, "class 1": None})
    right = confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), 2).scores()
    assert (right["mIoU"], right["mAcc"], right["aAcc"]) == (100.0, 100.0, 100.0)
