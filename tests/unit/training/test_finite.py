"""training/finite.py: what is not finite never reaches the weights, and the step at which it came is named."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from remask.errors import UserError
from remask.training.finite import FiniteGuard
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
    made = trainer(tmp_path / "bad", Bad(7, value, once), log_every=10, save_minutes=1e9, clip=clip)
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

    made = trainer(tmp_path / "run", Steep())
    with pytest.raises(UserError, match="the gradient is not finite at step 3"):
        train(made)
    assert all(torch.isfinite(p).all() for p in made.model.parameters())


def test_optimizers_that_read_no_flag_stop_at_once() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer, losses = torch.optim.SGD([p], lr=1.0, fused=False), {"total": torch.tensor(1.0)}
    FiniteGuard().check(1, losses, torch.tensor(2.0), optimizer, alone=True)
    with pytest.raises(UserError, match="the gradient is nan at step 2"):
        FiniteGuard().check(2, losses, torch.tensor(math.nan), optimizer, alone=True)


def test_among_many_processes_only_what_is_common_decides() -> None:
    """A loss is each rank's own: if one left a step out and others did not, their weights would part."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))], fused=True)
    for alone, first in ((False, None), (True, 5)):
        guard = FiniteGuard()
        guard.check(5, {"total": torch.tensor(math.inf)}, torch.tensor(1.0), optimizer, alone)
        assert guard.first() == first


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
