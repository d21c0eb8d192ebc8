"""evaluation/linear.py: against scikit-learn, at the minimum, and blind to the test images."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from remask.errors import UserError
from remask.evaluation.probing.logistic_regression import Weights, fit, linear_probe, spanned, standardised, stratified


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    features, labels = torch.tensor(x).float()[order], torch.tensor(y).long()[order]
    return features[:1200], labels[:1200], features[1200:], labels[1200:]


def test_digits_as_accurate_as_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    train_x, train_y, test_x, test_y = digits()
    ours = linear_probe(train_x, train_y, test_x, test_y)
    x, asked = standardised(train_x, test_x)
    theirs = LogisticRegression(C=1 / (ours.weight_decay * len(x)), max_iter=2000, tol=1e-6).fit(x, train_y)
    assert abs(ours.accuracy - 100 * theirs.score(asked, test_y)) <= 0.5
    assert ours.accuracy > 94


@pytest.mark.parametrize("decay", [1.0, 1e-3])
def test_fit_is_at_the_minimum(decay: float) -> None:
    """The gradient vanishes, although the features are all but collinear."""
    train_x, train_y, *_ = digits()
    x, _ = standardised(train_x, train_x)
    x = torch.cat([x, x[:, ::2] + 1e-2 * torch.randn(len(x), 32, generator=torch.Generator().manual_seed(0))], 1)
    x = x - x.mean(0)
    found = fit(x, train_y, Weights(torch.zeros(10, 96), torch.zeros(10)), decay)
    matrix, bias = found.matrix.requires_grad_(), found.bias.requires_grad_()
    loss = F.cross_entropy(F.linear(x, matrix, bias), train_y) + decay / 2 * matrix.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert matrix.grad is not None
    assert float(matrix.grad.abs().max()) < 2e-3
    assert float(loss.detach()) < 2.3


def test_same_result_twice() -> None:
    data = digits()
    first, second = linear_probe(*data), linear_probe(*data)
    assert first == second


def test_test_labels_choose_nothing() -> None:
    train_x, train_y, test_x, test_y = digits()
    honest = linear_probe(train_x, train_y, test_x, test_y)
    shuffled = linear_probe(train_x, train_y, test_x, test_y.flip(0))
    assert shuffled.weight_decay == honest.weight_decay
    assert shuffled.protocol == honest.protocol


def test_protocol_says_what_was_tried() -> None:
    train_x, train_y, test_x, test_y = digits()
    result = linear_probe(train_x, train_y, test_x, test_y, grid=[1e-3, 1.0])
    assert result.protocol["grid"] == [1.0, 1e-3]
    assert set(result.protocol["held_out_accuracy"]) == {"1", "0.001"}
    assert 200 <= result.protocol["held_out"] <= 280


@pytest.mark.parametrize("seed", range(5))
def test_span_of_few_images_is_exact(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, asked = torch.randn(20, 50, generator=generator), torch.randn(7, 50, generator=generator)
    y = torch.arange(20) % 2
    x = x - x.mean(0)
    small, small_asked = spanned(x, asked)
    assert small.shape == (20, 20)
    long = fit(x, y, Weights(torch.zeros(2, 50), torch.zeros(2)), 0.1)
    short = fit(small, y, Weights(torch.zeros(2, 20), torch.zeros(2)), 0.1)
    assert abs(minimum(long, x, y) - minimum(short, small, y)) < 5e-6
    # each is as near the minimum as its gradient of 1e-4 tells; the loss, which is flat there, is much nearer
    torch.testing.assert_close(long.logits(asked), short.logits(small_asked), atol=2e-2, rtol=0)


def minimum(found: Weights, x: Tensor, y: Tensor) -> float:
    return float(F.cross_entropy(found.logits(x), y) + 0.1 / 2 * found.matrix.square().sum())


def test_held_out_part_is_stratified() -> None:
    y = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    away = stratified(y, 0.2, seed=0)
    assert [int(away[y == label].sum()) for label in range(4)] == [10, 2, 1, 0]
    assert torch.equal(away, stratified(y, 0.2, seed=0))
    assert not torch.equal(away, stratified(y, 0.2, seed=1))


def test_constant_features_become_zero() -> None:
    x = torch.stack([torch.arange(6.0), torch.full((6,), 0.3)], 1)
    scaled, other = standardised(x, x + 5)
    torch.testing.assert_close(scaled[:, 0].std(correction=0), torch.tensor(1.0))
    assert scaled[:, 1].tolist() == [0] * 6
    assert other[:, 1].tolist() == [0] * 6


def test_one_image_a_class_still_fits() -> None:
    x = torch.eye(3)
    assert linear_probe(x, torch.arange(3), x, torch.arange(3)).accuracy == 100


@pytest.mark.parametrize(("images", "width", "rank"), [(3000, 768, 1), (400, 128, 1), (90, 3072, 2), (300, 64, 0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_features_that_depend_on_one_another(images: int, width: int, rank: int, seed: int) -> None:
    """As those of pictures that are nearly alike: the covariance is singular, and classes are told all the same."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(images) % 3
    x = torch.randn(images, rank, generator=generator) @ torch.randn(rank, width, generator=generator)
    x = x + 10 * y[:, None]
    assert linear_probe(x, y, x, y).accuracy > 99


@pytest.mark.parametrize("kind", ["constant", "repeated", "one feature"])
def test_features_that_say_little(kind: str) -> None:
    """Every class gets what is known of it: all alike say nothing, copies of one image a class say all."""
    y = torch.arange(60) % 3
    x = {
        "constant": torch.full((60, 100), 0.3),
        "repeated": torch.randn(3, 100, generator=torch.Generator().manual_seed(0))[y],
        "one feature": y[:, None].float(),
    }[kind]
    wanted = 100 / 3 if kind == "constant" else 100
    assert abs(linear_probe(x, y, x, y).accuracy - wanted) < 1e-6


def test_the_minimum_is_that_of_independent_features() -> None:
    """Copies of every feature lessen what decay costs and change nothing else: as often its decay, the same logits."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 5, generator=generator), torch.arange(200) % 3
    x = x - x.mean(0)
    twice = torch.cat([x] * 200, 1)
    alone = fit(x, y, Weights(torch.zeros(3, 5), torch.zeros(3)), 1e-2)
    copied = fit(twice, y, Weights(torch.zeros(3, 1000), torch.zeros(3)), 200 * 1e-2)
    torch.testing.assert_close(alone.logits(x), copied.logits(twice), atol=2e-2, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    broken = x.clone()
    broken[3, 2] = value
    with pytest.raises(UserError, match="training images are not finite"):
        linear_probe(broken, y, x, y)
    with pytest.raises(UserError, match="validation images are not finite"):
        linear_probe(x, y, broken, y)
