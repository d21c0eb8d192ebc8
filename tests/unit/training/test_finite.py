"""training/finite.py: what is not finite never reaches the weights, and the step at which it came is named."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from remask.errors import UserError
from remask.training.finite import FiniteGuard, non_finite, poisoned, update
from tests.toy import Noise, Toy, train, trainer, weights


class Bad(Toy):
    """From call `at_call` on, or at this call alone, its loss is `value`."""

    def __init__(self, at_call: int, value: float, once: bool) -> None:
        super().__init__()
        self.at_call, self.value, self.once = at_call, value, once

    def forward(self, images: Tensor, draw: Noise) -> dict[str, Tensor]:
        found = super().forward(images, draw)
        if self.calls == self.at_call or (self.calls > self.at_call and not self.once):
            found["total"] = found["total"] * self.value
        return found


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_weights_are_those_before_the_first_bad_step(
    tmp_path: Path, value: float, once: bool, clip: float | None
) -> None:
    """Though the line that says so is written three steps later, and later steps may be finite again."""
    good = trainer(tmp_path / "good", log_every=6, clip=clip, max_steps=6)
    train(good)
    made = trainer(tmp_path / "bad", Bad(7, value, once), log_every=10, save_minutes=1e9, clip=clip, max_skipped=0)
    with pytest.raises(UserError, match=r"at step 7: lower optim.base_lr.*the last good checkpoint is in"):
        train(made)
    assert made.global_step == 10
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(good), strict=True))


def test_a_gradient_alone_that_is_not_finite_is_seen(tmp_path: Path) -> None:
    class Steep(Toy):
        def forward(self, images: Tensor, draw: Noise) -> dict[str, Tensor]:
            found = super().forward(images, draw)
            zero = self.body[0].weight.sum() * 0  # the root of 0 is 0, and its gradient infinite
            return {**found, "total": found["total"] + (zero.sqrt() if self.calls >= 3 else zero)}

    made = trainer(tmp_path / "run", Steep(), max_skipped=0)
    with pytest.raises(UserError, match="the gradient is nan at step 3"):
        train(made)
    assert all(torch.isfinite(p).all() for p in made.model.parameters())


def check(guard: FiniteGuard, step: int, total: float, norm: float) -> bool:
    return bool(guard.check(step, torch.tensor(total), torch.tensor(norm)))


def test_optimizers_that_read_no_flag_are_not_called() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=1.0, fused=False)
    p.grad = torch.ones(2)
    update(optimizer, torch.tensor(True))
    assert p.tolist() == [1.0, 1.0]
    update(optimizer, torch.tensor(False))
    assert p.tolist() == [0.0, 0.0]


def test_among_many_processes_only_what_is_common_decides() -> None:
    """A loss is each rank's own: if one left a step out and others did not, their weights would part."""
    for alone, skipped in ((False, []), (True, [5])):
        guard = FiniteGuard(3, alone)
        assert check(guard, 5, math.inf, 1.0) is alone
        assert [found.step for found in guard.read()] == guard.steps == skipped
    total = torch.tensor(math.inf, requires_grad=True)
    weight = torch.tensor(2.0, requires_grad=True)
    (total * weight).backward(poisoned(total * weight, 0.5))
    assert math.isnan(weight.grad), "which all processes share"  # type: ignore[arg-type]
    fine = weight * 3
    weight.grad = None
    fine.backward(poisoned(fine, 0.5))
    assert weight.grad == 1.5


def test_after_so_many_in_a_row_every_step_is_skipped() -> None:
    guard = FiniteGuard(2)
    decided = [check(guard, step, total, 1.0) for step, total in enumerate([1, math.nan, 1, math.inf, math.nan, 1, 1])]
    assert decided == [False, True, False, True, True, True, True]
    assert [found.step for found in guard.read()] == [1, 3, 4]
    assert (guard.halted, guard.in_row, guard.read()) == (True, 2, [])


@pytest.mark.parametrize(
    ("steps", "last", "in_row"), [([], 9, 0), ([4, 8, 9], 9, 2), ([8, 9], 10, 0), ([7, 8, 9], 9, 2)]
)
def test_a_restored_count(steps: list[int], last: int, in_row: int) -> None:
    """One that would have stopped the run, were its limit what it is now, lets it go on until the next."""
    guard = FiniteGuard(3, steps=steps, last=last)
    assert (guard.in_row, guard.halted, guard.steps) == (in_row, False, steps)
    assert [check(guard, last + n, math.nan, 1.0) for n in (1, 2, 3)] == [True] * 3
    guard.read()
    assert guard.halted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_among_many_is_found(dtype: torch.dtype, value: float) -> None:
    """And numbers whose squares overflow are not taken for infinite."""
    model = nn.Sequential(nn.Linear(50, 70), nn.Linear(70, 3)).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 50, dtype=dtype)).sum().backward()
    optimizer.step()
    assert non_finite(model, optimizer) is None
    with torch.no_grad():
        model[0].weight.mul_(0).add_(torch.finfo(torch.bfloat16).max)
    assert non_finite(model, optimizer) is None
    optimizer.state[model[1].bias]["exp_avg_sq"][2] = value
    assert non_finite(model, optimizer) == "the moments of 1.bias (exp_avg_sq)"
    with torch.no_grad():
        model[1].weight[1, 69] = value
    assert non_finite(model, optimizer) == "the weights 1.weight"


def test_the_norm_of_all_gradients_is_logged(tmp_path: Path) -> None:
    """Before clipping, as a mean over the steps of a line."""
    norms, made = list[float](), trainer(tmp_path / "run", log_every=5, clip=0.01, max_steps=5)

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.stack([g.square().sum() for g in grads]).sum().sqrt()))

    made.optimizer.register_step_pre_hook(note)
    (line,) = train(made)
    assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms), "clipped"
    assert line["grad_norm"] > 0.1
    free = trainer(tmp_path / "free", log_every=5, max_steps=5)
    norms.clear()
    free.optimizer.register_step_pre_hook(note)
    (line,) = train(free)
    assert line["grad_norm"] == pytest.approx(sum(norms) / 5, rel=1e-5)
