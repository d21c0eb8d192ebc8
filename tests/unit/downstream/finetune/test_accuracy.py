"""evaluation/accuracy.py: against counts by hand; the classifier's mode is kept; a picture; mistakes."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from remask.downstream.finetune.accuracy import Scores, confusion_figure, evaluate, score
from remask.downstream.finetune.classifier import Classifier
from remask.errors import UserError
from remask.images.loading.loader import Batch

CLASSES = 7


class Stored(Classifier):
    """Its logits are the first pixels of each picture."""

    def __init__(self, classes: int = CLASSES) -> None:
        nn.Module.__init__(self)
        self.classes, self.nothing = classes, nn.Parameter(torch.zeros(1))

    def logits(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1)[:, : self.classes].float()


def batches(n: int = 40, size: int = 16) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([torch.randperm(16, generator=generator) for _ in range(n)]).to(torch.uint8).view(n, 1, 4, 4)
    labels = torch.randint(0, CLASSES - 1, (n,), generator=generator)  # the last class has no image
    starts = range(0, n, size)
    return [Batch(images[i : i + size], labels[i : i + size], torch.arange(n)[i : i + size]) for i in starts]


def by_hand(given: list[Batch]) -> tuple[Counter, int, float]:
    pairs, top5, loss = Counter(), 0, 0.0
    for batch in given:
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            logits = image.flatten()[:CLASSES].float()
            order = sorted(range(CLASSES), key=lambda c: -float(logits[c]))
            pairs[label, order[0]] += 1
            top5 += label in order[:5]
            loss -= float(torch.log_softmax(logits, 0)[label])
    return pairs, top5, loss


def test_against_counts_by_hand() -> None:
    pairs, top5, loss = by_hand(batches())
    found = score(Stored(), batches())
    assert {(i, j): n for i, row in enumerate(found.confusion.tolist()) for j, n in enumerate(row) if n} == dict(pairs)
    assert (found.images, found.top5) == (40, top5)
    assert found.loss == pytest.approx(loss / 40, rel=1e-5)
    assert found.top1 == pytest.approx(100 * sum(n for (i, j), n in pairs.items() if i == j) / 40)


def test_summary_has_what_a_reader_asks_for() -> None:
    names = [f"class {i}" for i in range(CLASSES)]
    result = evaluate(Stored(), batches(), names=names)
    assert {"top1", "top5", "loss", "images", "classes", "per_class", "confusions", "confusion"} == set(result)
    assert sum(row["images"] for row in result["per_class"]) == 40
    assert [row["class"] for row in result["per_class"]] == names[:-1]  # a class without images has no accuracy
    assert sum(row["images"] * row["top1"] for row in result["per_class"]) / 40 == pytest.approx(result["top1"])
    wrong = sum(sum(row) for row in result["confusion"]) - sum(result["confusion"][i][i] for i in range(CLASSES))
    counts = [row["images"] for row in result["confusions"]]
    assert sum(counts) <= wrong
    assert counts == sorted(counts, reverse=True)
    assert all(row["class"] != row["taken_for"] for row in result["confusions"])


def test_mistaken_for_and_many_classes() -> None:
    confusion = torch.diag(torch.tensor([3, 0, 2])) + torch.tensor([[0, 1, 0], [0, 0, 4], [0, 0, 0]])
    rows = Scores(confusion, 9, 0.5).per_class(["a", "b", "c"])
    assert [row["mistaken_for"] for row in rows] == ["b", "c", None]
    assert [row["top1"] for row in rows] == [75, 0, 100]
    large = Scores(torch.eye(101, dtype=torch.long), 101, 0.0).summary()
    assert "confusion" not in large
    assert large["confusions"] == []


def test_fewer_than_five_classes_and_modes() -> None:
    classifier = Stored(3)
    classifier.train()
    few = [Batch(batch.images, batch.labels % 3, batch.index) for batch in batches()]
    assert evaluate(classifier, few)["top5"] == 100
    assert classifier.training


@pytest.mark.parametrize("classes", [3, 20, 40])
def test_picture_is_a_png(classes: int) -> None:
    confusion = torch.randint(0, 9, (classes, classes), generator=torch.Generator().manual_seed(0))
    confusion[1] = 0
    picture = confusion_figure(confusion, [f"a class with a long name {i}" for i in range(classes)])
    assert picture.startswith(b"\x89PNG")
    assert picture != confusion_figure(confusion.flip(0))


def test_mistakes() -> None:
    first = batches()[0]
    with pytest.raises(UserError, match="no image"):
        score(Stored(), [])
    with pytest.raises(UserError, match="needs labels"):
        score(Stored(), [first._replace(labels=None)])
    with pytest.raises(UserError, match=r"class number 5 .* 3 classes"):
        score(Stored(3), [first._replace(labels=torch.full_like(first.labels, 5))])
