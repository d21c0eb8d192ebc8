"""What every method keeps, whatever is composed: each base that build.py knows × DM, JD × targets × patterns."""

import json
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from remask.backbones.vit import ViT
from remask.build import PATTERNS, build_method
from remask.interop.export import export_backbone
from remask.method import Method
from remask.recipe import METHODS, Recipe, load_recipe, method_overrides
from remask.recipe.values import SHORTHANDS
from remask.tokens import unpatchify
from remask.views import Views

PLUGINS = ("", "+dm", "+jd", "+dmjd")
SMALL: dict[str, Any] = {
    "data.image_size": "24x16", "backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "masking.ratio": 0.6,
    "method.decoder_width": 16, "method.decoder_heads": 2,
}  # fmt: skip
CASES = list(product(METHODS, PLUGINS, SHORTHANDS, PATTERNS))


class Case(NamedTuple):
    recipe: Recipe
    method: Method
    images: Tensor
    views: Views


def settings(base: str, plugin: str, target: str, pattern: str) -> dict[str, Any]:
    keys = {**SMALL, **method_overrides(base + plugin), "method.target": target, "masking.pattern": pattern}
    if "jd" in plugin:
        keys["jd"] = {"width": 8, "weight": 0.5, "target": target}
    return keys


@pytest.fixture(params=CASES, ids=["-".join((base + plugin, *rest)) for base, plugin, *rest in CASES], scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    recipe = load_recipe("mae-vit-micro-cifar", settings(*request.param), environment={})
    method = build_method(recipe)
    images = torch.randint(0, 256, (3, 3, 24, 16), dtype=torch.uint8, generator=Generator().manual_seed(1))
    return Case(recipe, method, images, method.draw(images, Generator().manual_seed(2)))


def test_every_row_hides_exactly_m_and_the_union_is_the_promised_one(case: Case) -> None:
    counts = case.method.masking.counts((6, 4))
    assert case.views.mask.shape == (2 if case.recipe.dm else 1, 3, 24)
    assert (case.views.mask.sum(-1) == counts.hidden).all()
    assert counts.hidden == {1: 15, 2: 16}[case.recipe.masking.cell]
    assert (case.views.mask.any(0).sum(-1) == counts.predicted).all()
    assert counts.predicted == (24 if case.recipe.dm else counts.hidden)


def test_losses_are_named_finite_and_add_up(case: Case) -> None:
    losses = {name: loss.item() for name, loss in case.method(case.images, case.views).items()}
    assert list(losses) == ["masked", "visible", "total"] if case.recipe.jd else ["masked", "total"]
    assert all(0 < loss < float("inf") for loss in losses.values())
    weights = {branch.name: branch.weight for branch in case.method.branches}
    assert weights == ({"masked": 1.0, "visible": 0.5} if case.recipe.jd else {"masked": 1.0})
    assert losses["total"] == pytest.approx(sum(weight * losses[name] for name, weight in weights.items()))


def test_every_trainable_parameter_receives_a_gradient(case: Case) -> None:
    case.method.zero_grad(set_to_none=True)
    case.method(case.images, case.views)["total"].backward()
    named = dict(case.method.named_parameters())
    trainable = {name for name, parameter in named.items() if parameter.requires_grad}
    reached = {name for name, p in named.items() if p.grad is not None and bool(p.grad.any())}
    assert reached == trainable
    assert set(named) - trainable == {"backbone.network.pos_embed"}
    assert all(bool(torch.isfinite(named[name].grad).all()) for name in reached)  # type: ignore[arg-type]


def test_the_state_dict_goes_round(case: Case) -> None:
    other = build_method(case.recipe.model_copy(update={"seed": 1}))
    before = other(case.images, case.views)["total"]
    other.load_state_dict(case.method.state_dict(), strict=True)
    expected = case.method(case.images, case.views)
    assert all(torch.equal(loss, expected[name]) for name, loss in other(case.images, case.views).items())
    assert not torch.equal(before, expected["total"])


def test_masked_pixels_reach_no_visible_token(case: Case) -> None:
    """One view at a time, for what one view hides another sees."""
    for v in range(len(case.views.mask)):
        views = Views(case.views.mask[v : v + 1], case.views.grid, case.views.hidden)
        hidden = unpatchify(views.mask[0].unsqueeze(-1).expand(-1, -1, 3 * 16).to(torch.uint8), (6, 4), (4, 4)).bool()
        changed = torch.where(hidden, 255 - case.images, case.images)
        backbone, fill = case.method.backbone, case.method.fill
        before, after = (
            backbone.encode(backbone.embed(images), views, fill=fill)[-1] for images in (case.images, changed)
        )
        assert not torch.equal(changed, case.images)
        assert torch.equal(before.tokens, after.tokens)
        assert torch.equal(before.prefix, after.prefix)


def test_predictions_and_targets_meet_token_by_token(case: Case) -> None:
    pairs = case.method.pairs(case.images, case.views)
    for branch in case.method.branches:
        prediction, wanted = pairs[branch.name]
        everything = branch.target(case.images, case.views)
        assert prediction.shape == wanted.shape
        assert wanted.shape[-1] == branch.target.width
        for v in range(len(case.views.mask)):
            for b in range(3):
                region = case.views.mask[v, b] if branch.region == "masked" else ~case.views.mask[v, b]
                assert torch.equal(wanted[v * 3 + b], everything[b][region])


def test_the_export_loads_in_timm(case: Case, tmp_path: Path) -> None:
    backbone, data = case.method.backbone, case.recipe.data
    assert isinstance(backbone, ViT)
    export_backbone(backbone, tmp_path, data.image_size, data.mean, data.std)
    config = json.loads((tmp_path / "config.json").read_text())
    model = timm.create_model(config["model"], **config["arguments"]).eval()
    model.load_state_dict(load_file(tmp_path / "backbone.safetensors"), strict=True)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        theirs = model.forward_features((case.images / 255 - mean) / std)
        ours = backbone.eval()(case.images)
    assert torch.allclose(torch.cat([ours.prefix, ours.tokens], dim=1), theirs, atol=1e-5, rtol=1e-4)
