"""tests/rounding.py: what it leaves out of a comparison of trained weights is what changes nothing, and no more."""

from typing import Any

import pytest
import torch
from torch import Tensor

from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from tests.rounding import determined, keys, reached

MEAN, STD = [0.5] * 3, [0.25] * 3
MAKERS: dict[str, Any] = {
    "vit": lambda: create_vit("vit_micro", (16, 16), MEAN, STD, overrides={"embed_dim": 24, "depth": 2}),
    "convvit": lambda: create_convvit("convvit_micro", (32, 32), MEAN, STD),
    "swin": lambda: create_swin("swin_micro", (32, 32), MEAN, STD),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_the_key_of_a_bias_changes_nothing_and_the_rest_does(kind: str) -> None:
    torch.manual_seed(0)
    backbone: Any = MAKERS[kind]().eval()
    size = (16, 16) if kind == "vit" else (32, 32)
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    for name, weight in backbone.network.named_parameters():
        if name.endswith("qkv.weight"):
            torch.nn.init.normal_(weight, std=0.3)  # scores that differ: at first, all tokens are looked at alike
    state, places = backbone.network.state_dict(), keys(backbone.network.state_dict())
    assert places
    before, kept = told(backbone, images), determined(state)
    for value in places.values():
        value += torch.randn(value.shape)  # a view of the network's own tensor
    torch.testing.assert_close(told(backbone, images), before, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, kept[name]) for name, value in determined(state).items())
    for third in (0, 2):
        changed = {name: value.clone() for name, value in state.items()}
        for name in places:
            changed[name].unflatten(0, (3, -1))[third] += torch.randn(places[name].shape)
        backbone.network.load_state_dict(changed)
        assert (told(backbone, images) - before).abs().max() > 1e-2
        assert any(not torch.equal(value, kept[name]) for name, value in determined(changed).items())


def test_the_key_of_a_cmt_changes_nothing_either() -> None:
    torch.manual_seed(0)
    backbone: Any = create_hierarchical("cmt_micro", (64, 64), MEAN, STD).eval()
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    state = backbone.network.state_dict()
    before, places = told(backbone, images), keys(state)
    assert set(places) == {name for name in state if name.endswith(".k.bias")}
    assert set(determined(state)) == set(state) - set(places)
    for value in places.values():
        value += torch.randn(value.shape)
    torch.testing.assert_close(told(backbone, images), before, atol=1e-4, rtol=1e-4)


def test_a_parameter_without_a_gradient_is_not_reached() -> None:
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 2), "other": torch.nn.Linear(2, 2)})
    assert reached(model) == set()
    (model["one"](torch.ones(1, 2)).sum() + 0 * model["other"](torch.ones(1, 2)).sum()).backward()
    assert reached(model) == {"one.weight", "one.bias"}


def told(backbone: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone(images).tokens.clone()
