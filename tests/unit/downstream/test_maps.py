"""maps: four strides of any backbone and any size, BEiT's neck for plain networks, nothing untrained left trainable."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.downstream.maps import Maps, chosen_blocks, normalisation, pad_to_patch, padded, rescaling

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TINY = {"embed_dim": 48, "depth": 6, "num_heads": 3}


def backbone(kind: str) -> Any:
    torch.manual_seed(0)
    if kind.startswith("vit"):
        patch = int(kind.removeprefix("vit"))
        return create_vit(
            "vit_tiny_patch16_224", (4 * patch, 4 * patch), MEAN, STD, overrides={**TINY, "patch_size": patch}
        )
    if kind == "beit":
        return create_beit("beit_micro", (32, 32), MEAN, STD, overrides=TINY)
    if kind == "convvit":
        return create_convvit("convvit_micro", (32, 32), MEAN, STD)
    if kind == "swin":
        return create_swin("swin_micro", (32, 32), MEAN, STD)
    return create_hierarchical(kind, (64, 64), MEAN, STD)


FOUR: dict[str, tuple[tuple[float, ...], tuple[int, ...]]] = {
    "vit16": ((4, 8, 16, 32), (48,) * 4),
    "vit8": ((4, 8, 16, 32), (48,) * 4),
    "vit4": ((4, 8, 16, 32), (48,) * 4),
    "vit32": ((4, 8, 16, 32), (48,) * 4),
    "vit14": ((3.5, 7, 14, 28), (48,) * 4),
    "beit": ((4, 8, 16, 32), (48,) * 4),
    "convvit": ((1, 2, 4, 8), (32, 64, 128, 128)),
    "swin": ((2, 4, 8), (32, 64, 128)),
    "resnet18": ((4, 8, 16, 32), (64, 128, 256, 512)),
}


@pytest.mark.parametrize("kind", FOUR)
def test_strides_and_channels_are_what_they_say(kind: str) -> None:
    network = backbone(kind)
    maps = Maps(network)
    assert (maps.strides, maps.channels) == FOUR[kind]
    images = torch.randint(0, 256, (2, 3, 41, 70), dtype=torch.uint8, generator=Generator().manual_seed(0))
    found, size = maps(network, images), padded(network, (41, 70))
    assert [m.shape[1] for m in found] == list(maps.channels)
    for m, stride in zip(found, maps.strides, strict=True):
        assert tuple(m.shape[2:]) == tuple(-(-side // stride) for side in size), (
            "rounded up where pooling meets a border"
        )


@pytest.mark.parametrize("kind", FOUR)
@pytest.mark.parametrize("single", [False, True])
def test_what_is_trainable_is_trained(kind: str, single: bool) -> None:
    network = backbone(kind)
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    maps = Maps(network, single=single)
    assert network.training
    sum(m.square().mean() for m in maps(network, torch.randn(2, 3, 64, 64))).backward()
    for module in (network, maps):
        for name, parameter in module.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    newly = {name for name, p in network.named_parameters() if not p.requires_grad} - frozen
    norms = {f"network.norm.{part}" for part in ("weight", "bias")}
    expected = {"vit": set() if single else norms, "bei": set() if single else norms, "con": {"fusions"}}
    if kind.startswith("convvit"):
        assert newly
        assert all(name.startswith("fusions.") for name in newly)
    elif kind[:3] in expected:
        assert newly == expected[kind[:3]]


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (12, (3, 5, 7, 11)),
        (24, (7, 11, 15, 23)),
        (6, (1, 2, 3, 5)),
        (4, (0, 1, 2, 3)),
        (32, (10, 15, 20, 31)),
        (1, (0,) * 4),
    ],
)
def test_blocks_read(depth: int, blocks: tuple[int, ...]) -> None:
    assert chosen_blocks(depth) == blocks


def test_the_neck_for_patches_of_16_is_beits() -> None:
    network = backbone("vit16")
    neck = Maps(network).neck
    kinds = [[type(layer) for layer in level] if isinstance(level, nn.Sequential) else [type(level)] for level in neck]
    up = nn.ConvTranspose2d
    assert kinds == [[up, nn.BatchNorm2d, nn.GELU, up], [up], [nn.Identity], [nn.MaxPool2d]]
    assert all(layer.weight.shape == (48, 48, 2, 2) for level in neck[:2] for layer in level if isinstance(layer, up))
    eight = Maps(backbone("vit8")).neck
    assert [getattr(level, "kernel_size", None) for level in eight[1:]] == [None, 2, 4]  # MAE's for patches of 8


def test_maps_of_a_plain_network_are_its_blocks_through_the_neck() -> None:
    network = backbone("vit16").eval()
    maps, images = Maps(network).eval(), torch.randn(1, 3, 64, 96)
    inner = network.encode(network.embed(images), layers=(1, 2, 3, 5))
    found = maps(network, images)
    assert torch.equal(found[2], inner[3].tokens.transpose(1, 2).reshape(1, 48, 4, 6))
    pooled = inner[5].tokens.transpose(1, 2).reshape(1, 48, 2, 2, 3, 2).amax((3, 5))
    assert torch.equal(found[3], pooled)
    last = Maps(network, single=True)
    assert last.strides == (16,)
    end = network(images).tokens.transpose(1, 2).reshape(1, 48, 4, 6)
    assert torch.equal(last(network, images)[0], end)


def test_a_pyramid_is_taken_as_it_is() -> None:
    network = backbone("convvit").eval()
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=Generator().manual_seed(0))
    own = network.pyramid(images)
    assert all(torch.equal(a, b) for a, b in zip(Maps(network)(network, images), own, strict=True))
    assert torch.equal(Maps(network, single=True)(network, images)[0], own[2])


def test_padding_is_the_networks_mean_at_the_right_and_below() -> None:
    network = backbone("vit8")
    images = torch.randint(0, 256, (2, 3, 13, 16), dtype=torch.uint8, generator=Generator().manual_seed(0))
    padding = pad_to_patch(network, images)
    assert padding.shape == (2, 3, 16, 16)
    assert bool((padding[:, :, 13:] == 0).all())
    assert torch.equal(padding[:, :, :13], network.normalise(images))
    assert pad_to_patch(network, images[:, :, :8]) is not images
    whole = images[:, :, :8]
    assert pad_to_patch(network, whole).dtype == torch.uint8


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("vit16", (41, 70), (48, 80)),
        ("vit16", (48, 80), (48, 80)),
        ("swin", (41, 70), (64, 96)),  # 3 stages of patch 2, and windows of 4 tile the 8x12 tokens of the last
        ("resnet18", (41, 70), (64, 96)),
    ],
)
def test_padded_sizes(kind: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert padded(backbone(kind), size) == expected


@pytest.mark.parametrize(("width", "groups"), [(768, 32), (512, 32), (192, 12), (96, 6), (64, 4), (20, 1), (8, 1)])
def test_group_norm_has_groups_of_16_channels_and_more(width: int, groups: int) -> None:
    norm = normalisation("group", width)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups
    assert norm(torch.rand(1, width, 1, 1)).shape == (1, width, 1, 1)
    assert isinstance(normalisation("batch", width), nn.BatchNorm2d)


@pytest.mark.parametrize(("doublings", "side"), [(3, 40), (1, 10), (0, 5), (-1, 3), (-3, 1)])
def test_rescaling(doublings: int, side: int) -> None:
    level: Tensor = rescaling(16, doublings, "group")(torch.rand(1, 16, 5, 5))
    assert level.shape == (1, 16, side, side)
