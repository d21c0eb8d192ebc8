"""optim.py: the lr rule, the schedule, the groups of AdamW and LARS, against the formulas."""

import math

import pytest
import torch
from torch import nn

from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.training.optim import Lars, adamw, cosine, learning_rate, parameter_groups, set_lr, step_down


def test_the_lr_rule_is_linear_in_unique_images() -> None:
    assert learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)  # MAE
    assert learning_rate(1e-3, 64) == pytest.approx(2.5e-4)


@pytest.mark.parametrize("score", [Masking(0.6).score, Blocks()], ids=["random", "blocks"])
def test_eq_4_multiplies_by_the_realised_rates(score: Blocks) -> None:
    """DMJD's cells of 2×2 at .6: 120 of 196 patches hidden, all predicted; official code takes the nominal 1 / .6."""
    counts = Masking(0.6, score, cell=2, views=2).counts((14, 14))
    assert counts.gain == 196 / 120
    assert learning_rate(6e-4, 512, counts.gain) == pytest.approx(6e-4 * 512 / 256 * 196 / 120)


def test_cosine_warms_up_from_zero_and_ends_on_the_floor() -> None:
    rate = [cosine(epoch, peak=2.0, warmup=4, epochs=12, floor=0.5) for epoch in (0, 1, 4, 8, 12)]
    assert rate == pytest.approx([0, 0.5, 2.0, 0.5 + 1.5 * 0.5, 0.5])


def test_the_stepped_schedule_drops_once() -> None:
    """SimMIM: warm-up, constant, a tenth from epoch 700 on."""
    rate = [step_down(epoch, peak=2.0, warmup=10, drops=[700]) for epoch in (0, 5, 10, 699.99, 700, 800)]
    assert rate == pytest.approx([0, 1.0, 2.0, 2.0, 0.2, 0.2])


def test_cosine_follows_the_published_formula_per_step() -> None:
    for epoch in (40.0, 123.4, 799.9):
        by_hand = 2.4e-3 * 0.5 * (1 + math.cos(math.pi * (epoch - 40) / 760))
        assert cosine(epoch, 2.4e-3, 40, 800) == pytest.approx(by_hand)


def test_cosine_without_warmup_or_without_decay() -> None:
    assert cosine(0, 1.0, 0, 10) == 1.0
    assert cosine(1.5, 1.0, 2, 2) == 0.75


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.mask_token = nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 4), requires_grad=False)
        self.fill = nn.Parameter(torch.ones(4))
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)


def test_groups_decay_tokens_but_no_vectors() -> None:
    groups = parameter_groups(Toy().named_parameters(), 0.05)
    by_decay = {group["weight_decay"]: set(group["names"]) for group in groups}
    assert by_decay == {
        0.05: {"cls_token", "mask_token", "blocks.0.weight", "blocks.1.weight"},
        0.0: {"fill", "norm.weight", "norm.bias", "blocks.0.bias", "blocks.1.bias"},
    }
    assert all(len(group["names"]) == len(group["params"]) and group["lr_scale"] == 1 for group in groups)


def test_groups_take_exceptions() -> None:
    groups = parameter_groups(Toy().named_parameters(), 0.05, no_decay=["cls_token"])
    plain = next(group for group in groups if group["weight_decay"] == 0)
    assert "cls_token" in plain["names"]


def test_layer_decay_scales_by_depth() -> None:
    def depth_of(name: str) -> int:
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 3 if name.startswith("norm") else 0

    groups = parameter_groups(Toy().named_parameters(), 0.05, depth_of=depth_of, depth=2, layer_decay=0.5)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["cls_token"] == 0.5**3
    assert scale["blocks.0.weight"] == scale["blocks.0.bias"] == 0.5**2
    assert scale["blocks.1.weight"] == 0.5
    assert scale["norm.weight"] == 1
    assert len(groups) == 7  # two decays a depth, one for the norm


def test_set_lr_gives_every_group_its_share() -> None:
    groups = parameter_groups(Toy().named_parameters(), 0.05, depth_of=lambda _: 0, depth=0, layer_decay=0.25)
    optimizer = adamw(groups, 1.0, (0.9, 0.95))
    set_lr(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1 * 0.25}


def test_adamw_takes_the_published_step() -> None:
    """One step by hand: decoupled decay, bias-corrected moments, eps 1e-8."""
    p = nn.Parameter(torch.tensor([[2.0]]))
    p.grad = torch.tensor([[0.5]])
    adamw(parameter_groups([("w", p)], 0.05), 0.1, (0.9, 0.95)).step()
    assert p.item() == pytest.approx(2.0 * (1 - 0.1 * 0.05) - 0.1 * 0.5 / (0.5 + 1e-8), rel=1e-6)


def test_lars_scales_matrices_and_not_vectors() -> None:
    w, b = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimizer = Lars([w, b], lr=0.5, weight_decay=0.1, momentum=0.9, trust=0.01)
    expected_w, expected_b, mu_w, mu_b = torch.tensor([[3.0, 4.0]]), 1.0, torch.zeros(1, 2), 0.0
    for grad in ([[0.6, 0.0]], [[0.0, -1.0]]):
        w.grad, b.grad = torch.tensor(grad), torch.tensor([2.0])
        slope = w.grad + 0.1 * expected_w
        mu_w = 0.9 * mu_w + 0.01 * expected_w.norm() / slope.norm() * slope
        mu_b = 0.9 * mu_b + 2.0
        expected_w, expected_b = expected_w - 0.5 * mu_w, expected_b - 0.5 * mu_b
        optimizer.step()
    assert torch.allclose(w, expected_w)
    assert b.item() == pytest.approx(expected_b)


def test_lars_leaves_a_zero_matrix_unscaled() -> None:
    w = nn.Parameter(torch.zeros(1, 2))
    w.grad = torch.tensor([[1.0, 2.0]])
    Lars([w], lr=1.0).step()
    assert w.tolist() == [[-1.0, -2.0]]
