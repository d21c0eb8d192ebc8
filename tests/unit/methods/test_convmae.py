"""methods/convmae.py: MAE's parts on ConvViT, started from the published weights."""

import math

import pytest
import torch
from torch import Generator, nn

from remask.backbones.convvit import create_convvit
from remask.backbones.vit import create_vit
from remask.distances import squared
from remask.errors import UserError
from remask.heads import Decoder
from remask.masking import Masking
from remask.method import Method
from remask.methods.convmae import convmae
from remask.methods.dmjd import dm, jd
from remask.targets import Hog, Pixels

MEAN, STD, SIZE = [0.5] * 3, [0.25] * 3, (32, 32)
OVERRIDES = {"dims": (64, 96, 128), "depths": (1, 1, 1), "num_heads": 2}


def base() -> Method:
    torch.manual_seed(0)
    backbone = create_convvit("convvit_micro", SIZE, MEAN, STD, overrides=OVERRIDES)
    return convmae(backbone, Masking(0.75), Pixels((4, 4), MEAN, STD), SIZE, 24, 2, 2, 8.0)


def test_convmae_is_its_row_of_the_table() -> None:
    (branch,) = base().branches
    assert (branch.name, branch.region, branch.distance, branch.layer) == ("masked", "masked", squared, -1)
    assert isinstance(branch.head, Decoder)
    assert (branch.head.width, len(branch.head.blocks), branch.head.grid) == (24, 2, (8, 8))
    assert branch.head.blocks[0].mlp.fc1.out_features == 192


def test_of_the_convolutions_only_the_last_patch_embedding_is_drawn_as_mae_draws_its_own() -> None:
    method = base()
    for name, module in method.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))  # Xavier, uniform
            assert bound / math.sqrt(3) * 0.85 < float(module.weight.detach().std()), name
            assert float(module.weight.detach().abs().max()) <= bound, name
            assert not module.bias.any(), name
        elif isinstance(module, nn.Conv2d):
            outputs, inputs = len(module.weight), module.weight[0].numel()
            last = name.endswith("patch_embed3.proj")
            bound = math.sqrt(6 / (inputs + outputs)) if last else 1 / math.sqrt(inputs)  # PyTorch: 1 / √fan in
            spread = float(module.weight.detach().std()) * math.sqrt(3)
            assert spread == pytest.approx(bound, rel=0.1), name
            assert module.bias.any(), name


def test_every_parameter_is_reached_under_dm_and_jd() -> None:
    method = jd(dm(base()), Hog((4, 4), MEAN, STD, cell=2), 8)
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(1))
    views = method.draw(images, Generator().manual_seed(0))
    assert (views.mask.shape, views.hidden) == ((2, 2, 64), 48)
    method(images, views)["total"].backward()
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.network.pos_embed"}
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, _ in method.named_parameters()} - frozen


def test_another_backbone_is_refused() -> None:
    small = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = create_vit("vit_micro", SIZE, MEAN, STD, overrides=small)
    with pytest.raises(UserError, match="convmae trains a ConvViT, not a VisionTransformer"):
        convmae(vit, Masking(0.75), Pixels((4, 4), MEAN, STD), SIZE)
