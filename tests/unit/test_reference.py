"""The benchmark's plain composition does the library's work: with the same masks and weights the same gradients."""

import pytest
import torch

from benchmarks.reference import Reference
from remask.build.pretraining import build_method
from remask.recipe import load_recipe
from remask.seeds import generator

DMJD = {"dm.views": 2, "jd.target": "hog", "jd.width": 16}
SMALL = {"data.image_size": 32, "method.decoder_width": 32, "method.decoder_depth": 2, "method.decoder_heads": 4}
VIT = {**SMALL, "backbone.name": "vit_micro", "backbone.width": 32, "backbone.depth": 2, "backbone.heads": 2}
CONVVIT = {**SMALL, "backbone.name": "convvit_micro", "backbone.depth": 2}
BLOCKS = {"masking.pattern": "cells", "masking.cell": 2, "masking.ratio": 0.6}
CASES = {
    "MAE": ("mae-vit-b", VIT),
    "MAE + DM, K = 3": ("mae-vit-b", {**VIT, "dm.views": 3, "masking.ratio": 0.5}),
    "MAE + DMJD": ("mae-dmjd-vit-b", VIT),
    "ConvMAE": ("convmae-convit-b", CONVVIT),
    "ConvMAE + DMJD, blocks": ("convmae-dmjd-convit-b", {**CONVVIT, **BLOCKS}),
    "ConvMAE + DMJD, random": (
        "convmae-dmjd-convit-b",
        {**CONVVIT, "masking.pattern": "random", "masking.cell": 1, "masking.ratio": 0.75},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_losses_and_gradients(case: str) -> None:
    name, settings = CASES[case]
    method = build_method(load_recipe(name, settings, environment={}))
    reference = Reference(method)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator(1))
    views = method.draw(images, generator(2))
    ours, theirs = method(images, views), reference(reference.prepare(images), views)
    assert ours.keys() == theirs.keys()
    for key, loss in ours.items():
        assert theirs[key].item() == pytest.approx(loss.item(), rel=1e-5), key
    ours["total"].backward()
    theirs["total"].backward()
    found = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    wanted = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for key, grad in wanted.items():
        assert (found[key] - grad).norm() <= 1e-5 * grad.norm() + 1e-8, key


def test_it_is_a_copy_under_the_same_names() -> None:
    method = build_method(load_recipe("mae-dmjd-vit-b", VIT, environment={}))
    reference = Reference(method)
    reference.load_state_dict(method.state_dict())
    theirs = dict(reference.named_parameters())
    assert theirs.keys() == dict(method.named_parameters()).keys()
    assert all(theirs[key] is not p and torch.equal(theirs[key], p) for key, p in method.named_parameters())
    assert {g["weight_decay"] for g in reference.optimizer().param_groups} == {0.0, 0.05}
