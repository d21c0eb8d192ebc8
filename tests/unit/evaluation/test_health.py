"""evaluation/health.py: features with a known rank and spread."""

import pytest
import torch

from remask.evaluation.health import deviation, rank_me


def test_rank_of_features_in_so_many_equal_directions() -> None:
    for rank in (1, 3, 8):
        features = torch.eye(8)[:rank].repeat(5, 1) * 3
        assert rank_me(features) == pytest.approx(rank)


def test_rank_by_the_papers_formula() -> None:
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = torch.linalg.eigvalsh(features.T @ features)
    shares = squares.sqrt() / squares.sqrt().sum()
    assert rank_me(features) == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())))


def test_features_that_are_alike_have_no_deviation_however_long() -> None:
    assert deviation(torch.ones(10, 4) * torch.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-7)
    assert rank_me(torch.zeros(10, 4) + 2) == pytest.approx(1)
    assert deviation(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(1)
    many = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert deviation(many) == pytest.approx(1, abs=0.01)
