"""backbones/simple_pyramid.py: the strides, from any patch and any backbone, and gradient to everything in them."""

from typing import Any

import pytest
import torch

from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.downstream.pyramid import SimplePyramid, TopDownPyramid, create_pyramid, maps_of
from remask.errors import UserError

MEAN = STD = (0.5, 0.5, 0.5)
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("patch", [2, 4, 8, 16, 32])
def test_a_plain_vit_gets_four_strides_from_any_patch(patch: int) -> None:
    backbone = create_vit("vit_micro", (64, 96), MEAN, STD, overrides={**SMALL, "patch_size": patch})
    pyramid = create_pyramid(backbone, 16, (64, 96))
    assert isinstance(pyramid, SimplePyramid)
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)
    maps = pyramid(maps_of(backbone, images))
    assert [tuple(x.shape) for x in maps] == [(2, 16, 64 // s, 96 // s) for s in pyramid.strides]
    sum(x.square().mean() for x in maps).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in pyramid.parameters())
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_the_layers_of_vitdet() -> None:
    names = [[type(layer).__name__ for layer in scale] for scale in SimplePyramid(32, 16, 16).scales]
    ends = ["Conv2d", "LayerNorm2d", "Conv2d", "LayerNorm2d"]
    assert names == [
        ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d", *ends],
        ["ConvTranspose2d", *ends],
        ends,
        ["MaxPool2d", *ends],
    ]


def test_a_pixel_moves_its_own_place() -> None:
    """Rows are rows: what changes at the top right of the image changes the maps there most."""
    torch.manual_seed(0)
    backbone = create_vit("vit_micro", (64, 96), MEAN, STD, overrides={**SMALL, "patch_size": 16, "depth": 1}).eval()
    pyramid = create_pyramid(backbone, 16, (64, 96))
    images = torch.full((1, 3, 64, 96), 100, dtype=torch.uint8)
    other = images.clone()
    other[..., :16, 80:] = 255
    with torch.no_grad():
        changes = [(a - b).abs().sum(1)[0] for a, b in zip(
            pyramid(maps_of(backbone, images)), pyramid(maps_of(backbone, other)), strict=True)]  # fmt: skip
    for change in changes[:3]:
        row, column = divmod(int(change.argmax()), change.shape[1])
        assert row < change.shape[0] / 2
        assert column > change.shape[1] / 2


BACKBONES: dict[str, Any] = {
    "swin": lambda: create_swin("swin_micro", (64, 64), MEAN, STD),
    "convvit": lambda: create_convvit("convvit_micro", (64, 64), MEAN, STD),
    "resnet": lambda: create_hierarchical("resnet10t", (64, 64), MEAN, STD),
    "beit": lambda: create_beit("beit_micro", (64, 64), MEAN, STD),
}
STRIDES = {"swin": (2, 4, 8), "convvit": (1, 2, 4, 8), "resnet": (4, 8, 16, 32), "beit": (4, 8, 16, 32)}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_maps(name: str) -> None:
    backbone = BACKBONES[name]().train()
    pyramid = create_pyramid(backbone, 16, (64, 64))
    assert isinstance(pyramid, SimplePyramid if name == "beit" else TopDownPyramid)
    assert backbone.training
    assert tuple(pyramid.strides) == STRIDES[name]
    maps = pyramid(maps_of(backbone, torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)))
    assert [tuple(x.shape) for x in maps] == [(2, 16, 64 // s, 64 // s) for s in STRIDES[name]]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="a power of two, and these have 14"):
        SimplePyramid(32, 16, 14)
    backbone = create_vit("vit_micro", (64, 64), MEAN, STD, overrides={**SMALL, "patch_size": 16})
    with pytest.raises(UserError):
        create_pyramid(backbone, 16, (40, 64))
