"""distances.py: each against its formula in plain Python, row by row."""

import math
from functools import partial

import pytest
import torch

from remask.distances import (
    Distance,
    across_batch,
    cosine,
    cross_entropy,
    described,
    is_across_batch,
    l1,
    l1_unit,
    pair_ranking,
    smooth_l1,
    smooth_l1_with,
    squared,
    squared_unit,
    uniformity,
)

A = [[0.5, -3.0, 2.0, 1.0], [1.0, 1.0, 0.0, -4.0]]
B = [[0.0, 3.0, 2.5, -1.0], [1.0, 0.0, 0.5, 2.0]]


def smooth(d: float, beta: float) -> float:
    return d * d / (2 * beta) if abs(d) < beta else abs(d) - beta / 2


def mean_of(f: object) -> list[float]:
    return [sum(f(a - b) for a, b in zip(x, y, strict=True)) / len(x) for x, y in zip(A, B, strict=True)]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("distance", "by_hand"),
    [
        (squared, mean_of(lambda d: d * d)),
        (l1, mean_of(abs)),
        (smooth_l1, mean_of(lambda d: smooth(d, 2.0))),
        (smooth_l1_with(0.5), mean_of(lambda d: smooth(d, 0.5))),
    ],
    ids=["squared", "l1", "smooth_l1", "smooth_l1 at .5"],
)
def test_formula(distance: Distance, by_hand: list[float]) -> None:
    assert distance(torch.tensor(A), torch.tensor(B)).tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize(("distance", "power"), [(l1_unit, 1), (squared_unit, 2)])
def test_vectors_may_be_brought_to_unit_length_first(distance: Distance, power: int) -> None:
    by_hand = [
        sum(abs(a / math.hypot(*x) - b / math.hypot(*y)) ** power for a, b in zip(x, y, strict=True)) / len(x)
        for x, y in zip(A, B, strict=True)
    ]
    assert distance(torch.tensor(A), torch.tensor(B)).tolist() == pytest.approx(by_hand)
    assert distance(5 * torch.tensor(A), 0.1 * torch.tensor(B)).tolist() == pytest.approx(by_hand)


def test_cosine_is_one_minus_the_cosine_of_the_angle() -> None:
    by_hand = [
        1 - sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
        for x, y in zip(A, B, strict=True)
    ]
    assert cosine(torch.tensor(A), torch.tensor(B)).tolist() == pytest.approx(by_hand)
    assert cosine(torch.tensor(A), 3 * torch.tensor(A)).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("distance", [squared, l1, smooth_l1, cosine, l1_unit, squared_unit])
def test_rows_are_independent_and_nothing_is_nothing(distance: Distance) -> None:
    x, y = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 5)
    both = distance(x, y)
    assert both.shape == (2, 3)
    assert torch.allclose(both[1, 2], distance(x[1, 2], y[1, 2]))
    assert torch.allclose(distance(x, x), torch.zeros(2, 3), atol=1e-6)


def test_smooth_l1_bends_at_two() -> None:
    d = torch.tensor([[0.5], [1.9], [2.1], [-10.0]], requires_grad=True)
    smooth_l1(d, torch.zeros_like(d)).sum().backward()
    assert d.grad is not None
    assert d.grad.flatten().tolist() == pytest.approx([0.25, 0.95, 1.0, -1.0])


def test_cross_entropy_is_minus_the_log_of_the_probability_of_the_id() -> None:
    ids = torch.tensor([[2], [0]])
    by_hand = [math.log(sum(math.exp(a) for a in row)) - row[int(i)] for row, i in zip(A, ids.flatten(), strict=True)]
    assert cross_entropy(torch.tensor(A), ids).tolist() == pytest.approx(by_hand)
    assert cross_entropy(torch.tensor(A), ids.to(torch.int32)).tolist() == pytest.approx(by_hand)


def test_cross_entropy_keeps_its_rows_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 3, 5, generator=generator), torch.randint(0, 5, (2, 3, 1), generator=generator)
    logits.requires_grad_()
    both = cross_entropy(logits, ids)
    assert both.shape == (2, 3)
    assert torch.allclose(both[1, 2], cross_entropy(logits[1, 2], ids[1, 2]))
    both[0, 1].backward()
    assert logits.grad is not None
    softmax = logits[0, 1].detach().softmax(0)
    softmax[ids[0, 1, 0]] -= 1
    assert torch.allclose(logits.grad[0, 1], softmax, atol=1e-6)
    assert not logits.grad[1].any()


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_pair_ranking_is_the_papers_sum_over_pairs(rows: int) -> None:
    """HPM: two loops over the tokens of a view, losses of which two are equal."""
    generator = torch.Generator().manual_seed(0)
    p, loss = (torch.randn(3, rows, generator=generator) for _ in range(2))
    loss[:, -1] = loss[:, 0]
    expected = torch.zeros(3, rows)
    for view in range(3):
        for i in range(rows):
            for j in range(rows):
                sigma = 1 / (1 + math.exp(-float(p[view, i] - p[view, j])))
                if loss[view, i] > loss[view, j]:
                    expected[view, i] -= math.log(sigma)
                if loss[view, i] < loss[view, j]:
                    expected[view, i] -= math.log(1 - sigma)
    found = pair_ranking(p.unsqueeze(-1), loss.unsqueeze(-1))
    assert torch.allclose(found, expected / max(rows - 1, 1), atol=1e-6)


def test_pair_ranking_falls_where_the_order_is_right() -> None:
    loss = torch.tensor([[0.1, 3.0, 2.0]]).unsqueeze(-1)
    right, wrong = (pair_ranking(sign * loss, loss).mean() for sign in (1, -1))
    assert right < math.log(2) < wrong
    assert pair_ranking(1e4 * loss, loss).mean() == 0
    assert pair_ranking(-1e4 * loss, loss).isfinite().all()


def test_uniformity_is_the_mean_squared_cosine_of_pairs_in_each_view() -> None:
    rows = torch.randn(2, 4, 1, 5, generator=torch.Generator().manual_seed(0))
    found = uniformity(rows, rows[..., :0])
    assert found.shape == (2, 4)
    for v in range(2):
        pairs = []
        for i in range(4):
            for j in range(4):
                a, b = rows[v, i, 0].tolist(), rows[v, j, 0].tolist()
                cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
                pairs += [cosine**2] if i != j else []
        assert found[v].mean().item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


def test_uniformity_of_like_of_unlike_and_of_single_pictures() -> None:
    same, nothing = torch.ones(1, 3, 1, 4), torch.zeros(1, 3, 1, 0)
    assert uniformity(same, nothing).tolist() == [pytest.approx([1.0] * 3)]
    assert uniformity(torch.eye(3)[None, :, None], nothing).tolist() == [[0.0] * 3]
    alone = torch.ones(2, 1, 1, 4, requires_grad=True)
    assert uniformity(alone, nothing[:, :1].expand(2, -1, -1, -1)).tolist() == [[0.0], [0.0]]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a product in bf16 would be off by 1e-3
        rows = torch.randn(1, 6, 1, 8, generator=torch.Generator().manual_seed(1))
        halved = uniformity(rows, nothing[:, :1].expand(1, 6, 1, 0))
    assert torch.allclose(halved, uniformity(rows, rows[..., :0]), atol=1e-6)


def test_a_mark_says_what_looks_across_the_batch() -> None:
    @across_batch
    def contrast(prediction: torch.Tensor, target: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
        return prediction

    assert [is_across_batch(d) for d in (uniformity, contrast, partial(contrast, temperature=0.1))] == [True] * 3
    assert not any(is_across_batch(d) for d in (squared, smooth_l1_with(1.0), cross_entropy))
    assert described(partial(contrast, temperature=0.1)) == "contrast temperature=0.1"
