"""Linear probe: multinomial logistic regression on standardised frozen features, by full-batch L-BFGS.

Deterministic. The weight decay is chosen on a held-out part of the TRAINING images, never on the test images.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Generator, Tensor

from remask.errors import UserError

GRID = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Weight decays; each fit starts from the solution of the next stronger decay."""


_SMALL = 2**23
"""Number of feature values up to which one thread is as fast as several."""
_ROWS = 2**14
"""Number of images whose features are converted to double precision at once."""


class LinearResult(NamedTuple):
    """Accuracy on the test images in percent, the chosen weight decay, and the protocol for JSON."""

    accuracy: float
    weight_decay: float
    protocol: dict[str, Any]


class Weights(NamedTuple):
    """A linear classifier in the layout of `nn.Linear`: with the transpose its gradient is ten times slower."""

    matrix: Float[Tensor, "classes D"]
    bias: Float[Tensor, "classes"]

    def logits(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n classes"]:
        return F.linear(x, self.matrix, self.bias)


def linear_probe(
    train_x: Float[Tensor, "n D"],
    train_y: Int[Tensor, "n"],
    test_x: Float[Tensor, "m D"],
    test_y: Int[Tensor, "m"],
    *,
    grid: Sequence[float] = GRID,
    held_out: float = 0.2,
    seed: int = 0,
    iterations: int = 100,
) -> LinearResult:
    """Fit on the training features, score on the test features. Labels are 0..classes-1.

    grid        candidate weight decays; the loss is mean cross-entropy + decay/2 · |matrix|², without the bias
    held_out    share of each class's training images that selects the decay; the final fit uses all images
    iterations  maximum number of L-BFGS iterations per fit
    Raises UserError for features that are not finite.
    """
    for images, x in (("training", train_x), ("validation", test_x)):
        if not bool(x.isfinite().all()):
            raise UserError(f"features of the {images} images are not finite: the network overflows on these pictures")
    classes, query = int(train_y.max()) + 1, stratified(train_y, held_out, seed)
    with _threads_for(train_x.numel()):
        train_x, test_x = spanned(*standardised(train_x, test_x))
        best, path = _choose_decay(train_x, train_y, query, classes, sorted(grid, reverse=True), iterations)
        weights = fit(train_x, train_y, best.weights, best.decay, iterations)
        accuracy, _ = _score(weights, test_x, test_y)
    protocol = {
        "classifier": "logistic regression, L-BFGS, full batch",
        "standardised": "by mean and deviation of the training features",
        "grid": sorted(grid, reverse=True),
        "held_out": int(query.sum()),
        "held_out_accuracy": {f"{tried.decay:g}": round(tried.score[0], 2) for tried in path},
        "iterations": iterations,
        "seed": seed,
    }
    return LinearResult(accuracy, best.decay, protocol)


@contextmanager
def _threads_for(values: int) -> Iterator[None]:
    """Context with one thread for small problems: thousands of tiny operations, each waiting for its threads, take a
    hundred times longer if other programs use the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if values <= _SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Tried(NamedTuple):
    decay: float
    weights: Weights
    score: tuple[float, float]


def _choose_decay(
    x: Float[Tensor, "n D"],
    y: Int[Tensor, "n"],
    query: Bool[Tensor, "n"],
    classes: int,
    decays: list[float],
    iterations: int,
) -> tuple[_Tried, list[_Tried]]:
    """The decay that is best on the held-out images (True in `query`), and all that were tried.

    Tries from strong to weak, until two in succession are worse than the best. Compares accuracy, then cross-entropy,
    for with few images many accuracies are equal.
    """
    weights = Weights(x.new_zeros(classes, x.shape[1]), x.new_zeros(classes))
    best = _Tried(decays[len(decays) // 2], weights, (0.0, 0.0))
    tried: list[_Tried] = []
    train_x, covariance = x[~query], _covariance(x[~query])
    for decay in decays if bool(query.any()) else []:
        weights = fit(train_x, y[~query], weights, decay, iterations, covariance)
        tried.append(_Tried(decay, weights, _score(weights, x[query], y[query])))
        best = max(tried, key=lambda candidate: candidate.score)
        if len(tried) - tried.index(best) > 2:
            break
    return best, tried


def fit(
    x: Float[Tensor, "n D"],
    y: Int[Tensor, "n"],
    start: Weights,
    decay: float,
    iterations: int = 100,
    covariance: Float64[Tensor, "D D"] | None = None,
) -> Weights:
    """The minimum of mean cross-entropy + decay/2 · |matrix|², from `start`. Features have mean 0.

    L-BFGS optimises V in matrix = V·U⁻ᵀ, where UᵀU is the Hessian at 0, covariance / classes + decay: fifteen steps
    instead of hundreds for correlated features, like pixels.
    """
    covariance = _covariance(x) if covariance is None else covariance
    outer = _conditioner(covariance, len(start.bias), decay)
    inverse = torch.linalg.solve_triangular(outer, torch.eye(len(outer), dtype=outer.dtype), upper=False).to(x.dtype)
    inner, bias = (start.matrix @ outer.to(x.dtype)).requires_grad_(), start.bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [inner, bias],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=1e-4,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        matrix = inner @ inverse
        value = F.cross_entropy(F.linear(x, matrix, bias), y) + decay / 2 * matrix.square().sum()
        value.backward()
        return value.detach()

    solver.step(loss)
    return Weights((inner @ inverse).detach(), bias.detach())


def _covariance(x: Float[Tensor, "n D"]) -> Float64[Tensor, "D D"]:
    """xᵀx / n in double precision: for dependent features, rounding to single precision leaves negative eigenvalues
    that exceed a weak decay.
    """
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows in x.split(_ROWS):
        total.addmm_(rows.double().T, rows.double())
    return total / len(x)


def _conditioner(covariance: Float64[Tensor, "D D"], classes: int, decay: float) -> Float64[Tensor, "D D"]:
    """The lower triangular Uᵀ with UᵀU = covariance / classes + decay, in double precision.

    A ridge of the possible rounding error, D · ε · trace, keeps it positive definite. It changes only the path to the
    minimum: any such matrix is valid.
    """
    hessian = covariance / classes
    rounding = len(hessian) * torch.finfo(hessian.dtype).eps * float(hessian.trace())
    hessian.diagonal().add_(max(decay, 1e-6, rounding))
    return torch.linalg.cholesky(hessian)


def spanned(
    train_x: Float[Tensor, "n D"], test_x: Float[Tensor, "m D"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Coordinates in the span of the training features if there are fewer images than features; else unchanged.

    Exact: with weight decay the best matrix lies in that span, and a rotation changes no norm.
    """
    if len(train_x) >= train_x.shape[1]:
        return train_x, test_x
    basis = torch.linalg.qr(train_x.T).Q
    return train_x @ basis, test_x @ basis


def standardised(
    train_x: Float[Tensor, "n D"], test_x: Float[Tensor, "m D"]
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "m D"]]:
    """Both standardised by mean and deviation of the training features; constant features become 0."""
    deviation, mean = torch.std_mean(train_x, dim=0, correction=0)
    constant = deviation <= 1e-6 * mean.abs().clamp(min=1e-6)
    scale = torch.where(constant, 0.0, 1 / deviation.clamp(min=1e-30))
    return (train_x - mean) * scale, (test_x - mean) * scale


def stratified(y: Int[Tensor, "n"], share: float, seed: int) -> Bool[Tensor, "n"]:
    """True for a random `share` of each class, at least one of a class with two; the same for the same seed."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    generator = Generator().manual_seed(seed)
    for label in y.unique().tolist():
        members = (y == label).nonzero().flatten()
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen


def _score(weights: Weights, x: Float[Tensor, "n D"], y: Int[Tensor, "n"]) -> tuple[float, float]:
    """(accuracy in percent, negative cross-entropy); higher is better for both."""
    logits = weights.logits(x)
    accuracy = 100 * float((logits.argmax(1) == y).double().mean())
    return accuracy, -float(F.cross_entropy(logits, y))


__all__ = ["GRID", "LinearResult", "Weights", "fit", "linear_probe", "spanned", "standardised", "stratified"]
