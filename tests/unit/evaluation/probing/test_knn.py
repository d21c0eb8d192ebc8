"""evaluation/knn.py: against a loop over images, and its one mistake."""

import math

import pytest
import torch
from torch import Tensor

from remask.errors import UserError
from remask.evaluation.probing import knn
from remask.evaluation.probing.knn import knn_classes, weighted_knn


def blobs(n: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    centres = torch.eye(3).repeat(1, 2)
    return centres[y] + spread * torch.randn(n, 6, generator=generator), y


def slow_class(x: Tensor, y: Tensor, asked: Tensor, k: int, temperature: float) -> int:
    similar = [(float(torch.cosine_similarity(row, asked, dim=0)), int(label)) for row, label in zip(x, y, strict=True)]
    votes = dict.fromkeys(range(3), 0.0)
    for similarity, label in sorted(similar, reverse=True)[:k]:
        votes[label] += math.exp(similarity / temperature)
    return max(votes, key=lambda label: votes[label])


@pytest.mark.parametrize("k", [1, 7, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_against_a_loop(k: int, temperature: float) -> None:
    (x, y), (asked, _) = blobs(60, 0), blobs(40, 1)
    expected = [slow_class(x, y, one, k, temperature) for one in asked]
    assert knn_classes(x, y, asked, k, temperature).tolist() == expected


def test_accuracy_is_in_percent() -> None:
    x, y = blobs(30, 0)
    assert weighted_knn(x, y, x, y, k=1) == 100
    assert weighted_knn(x, y, x, (y + 1) % 3, k=1) == 0


def test_length_of_a_vector_does_not_matter() -> None:
    (x, y), (asked, _) = blobs(50, 0), blobs(20, 1)
    scale = torch.linspace(0.1, 50, 50)[:, None]
    assert torch.equal(knn_classes(x, y, asked, 5), knn_classes(x * scale, y, asked * 3, 5))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), (asked, _) = blobs(50, 0), blobs(33, 1)
    whole = knn_classes(x, y, asked, 5)
    monkeypatch.setattr(knn, "_CHUNK", 4 * 50)
    assert torch.equal(knn_classes(x, y, asked, 5), whole)


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_images(k: int) -> None:
    x, y = blobs(10, 0)
    with pytest.raises(UserError, match=f"k = {k} .* 10"):
        weighted_knn(x, y, x, y, k=k)
