"""Weighted k-nearest-neighbour classification of frozen features (Wu et al. 1805.01978, section 3.4; DINO's protocol).

The k training images of largest cosine similarity s vote for their class with weight exp(s / temperature).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from remask.errors import UserError

_CHUNK = 2**24
"""Maximum number of similarities computed at once, 64 MB."""


def weighted_knn(
    train_x: Float[Tensor, "n D"],
    train_y: Int[Tensor, "n"],
    test_x: Float[Tensor, "m D"],
    test_y: Int[Tensor, "m"],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent. Raises UserError if there are fewer training images than neighbours."""
    predicted = knn_classes(train_x, train_y, test_x, k, temperature)
    return 100 * float((predicted == test_y).double().mean())


def knn_classes(
    train_x: Float[Tensor, "n D"],
    train_y: Int[Tensor, "n"],
    test_x: Float[Tensor, "m D"],
    k: int = 20,
    temperature: float = 0.07,
) -> Int[Tensor, "m"]:
    """The predicted class of each test image; classes may be arbitrary integers.

    Raises UserError if there are fewer training images than neighbours.
    """
    if not 0 < k <= len(train_x):
        raise UserError(
            f"kNN with k = {k} needs at least as many labelled training images, and there are {len(train_x)}; "
            "lower k or give more images"
        )
    bank, queries = F.normalize(train_x, dim=1), F.normalize(test_x, dim=1)
    classes, numbers = train_y.unique(return_inverse=True)
    rows = max(1, _CHUNK // len(bank))
    return classes[torch.cat([_vote(bank, numbers, x, k, temperature, len(classes)) for x in queries.split(rows)])]


def _vote(
    bank: Float[Tensor, "n D"],
    labels: Int[Tensor, "n"],
    queries: Float[Tensor, "m D"],
    k: int,
    temperature: float,
    classes: int,
) -> Int[Tensor, "m"]:
    similarity, nearest = (queries @ bank.T).topk(k, dim=1)
    votes = queries.new_zeros(len(queries), classes)
    return votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp()).argmax(1)


__all__ = ["knn_classes", "weighted_knn"]
