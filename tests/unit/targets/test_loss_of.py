"""targets/loss_of.py: another branch's distances as targets, in its rows, without gradient, and after it."""

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones.vit import ViT, create_vit
from remask.distances import l1, pair_ranking, squared
from remask.heads import Decoder
from remask.masking import Masking
from remask.method import Branch, Method
from remask.targets import Pixels
from remask.targets.loss_of import LossOf

MEAN, STD = [0.5] * 3, [0.25] * 3


def vit() -> ViT:
    torch.manual_seed(0)
    overrides = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4}
    return create_vit("vit_micro", (16, 16), MEAN, STD, overrides=overrides)


def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("predicted", ["all", 0.25, "once"])
@pytest.mark.parametrize("distance", [squared, l1])
def test_it_has_the_rows_that_its_branch_predicts(predicted: str | float, distance: object) -> None:
    pixels, region = Pixels((4, 4), MEAN, STD, per_patch=True), "masked" if predicted == "all" else "predicted"
    first = Branch("first", Decoder(16, 48, (4, 4), 16, 1, 2, region=region), pixels, distance, region)  # type: ignore[arg-type]
    target = LossOf("first", distance)  # type: ignore[arg-type]
    second = Branch("second", Decoder(16, 1, (4, 4), 16, 1, 2, region=region), target, pair_ranking, region)  # type: ignore[arg-type]
    made = Method(vit(), Masking(0.5, views=2, predicted=predicted), [first, second])  # type: ignore[arg-type]
    views = made.draw(images(), Generator().manual_seed(0))
    pairs = made.pairs(images(), views)
    prediction, wanted = pairs["first"]
    error = prediction - wanted
    expected = (error.square() if distance is squared else error.abs()).mean(-1, keepdim=True)
    assert torch.allclose(pairs["second"][1], expected)
    assert pairs["second"][0].shape == pairs["second"][1].shape == (6, views.predicted.shape[1], 1)
    made(images(), views)["second"].backward()
    assert all(p.grad is None for p in first.head.parameters()), "the first branch does not learn to be ranked"  # type: ignore[attr-defined]
    assert target.describe() == "loss of the first branch"
    assert not list(target.state_dict())
