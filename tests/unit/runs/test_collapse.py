"""runs/collapse.py: a healthy run is measured, a constant network is refused, bad images do not end it."""

from pathlib import Path

import pytest
import torch

from remask.build.pretraining import build_method
from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.recipe import load_recipe
from remask.runs.collapse import collapse_guard
from remask.training.runtime import resolve


def test_constant_features_end_the_run_and_others_are_measured(tmp_path: Path) -> None:
    keys = {"data.source": "photos", "backbone.depth": 3, "backbone.width": 32, "backbone.heads": 2}
    recipe = load_recipe("data2vec-vit-micro-cifar", keys, environment={})
    method, runtime = build_method(recipe), resolve("cpu", "fp32", False, 1)
    guard = collapse_guard(recipe, method, runtime, open_source("photos"))
    found = guard(1)
    assert found["health/rank"] > 2
    assert 0.1 < found["health/deviation"] < 1
    with torch.no_grad():
        method.backbone.network.norm.weight.zero_()
        method.backbone.network.norm.bias.fill_(1.0)
    with pytest.raises(UserError, match=r"^after epoch 2 the features of all images are alike.*Lower optim.base_lr"):
        guard(2)


def test_images_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"no picture")
    recipe = load_recipe("data2vec-vit-micro-cifar", {"data.source": str(tmp_path)}, environment={})
    guard = collapse_guard(recipe, build_method(recipe), resolve("cpu", "fp32", False, 1), open_source(str(tmp_path)))
    assert guard(1) == {}
