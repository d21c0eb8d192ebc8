"""backbones/beit.py: whole images as timm encodes them, replaced tokens, tables of other sizes, and mistakes."""

import json

import numpy as np
import pytest
import timm
import torch
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from remask.backbones.beit import SMALL, BeitViT, create_beit
from remask.backbones.tables import resize_table, spline
from remask.errors import UserError
from remask.masking import Masking
from remask.views import Views

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALLER = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
KINDS = {
    "shared": {},
    "per block": {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True},
    "both": {"use_rel_pos_bias": True},
    "absolute": {"use_shared_rel_pos_bias": False, "use_abs_pos_emb": True},
    "plain": {"use_shared_rel_pos_bias": False, "qkv_bias": False, "init_values": 0.0},
}


def small(size: tuple[int, int] = (32, 32), kind: str = "shared", name: str = "beit_base_patch16_224") -> BeitViT:
    torch.manual_seed(0)
    backbone = create_beit(name, size, MEAN, STD, overrides={**SMALLER, **KINDS[kind]}).eval()
    for parameter in backbone.parameters():  # tables and biases start at 0 and would test nothing
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def pictures(size: tuple[int, int] = (32, 32), batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def drawn(backbone: BeitViT, images: Tensor, views: int = 2) -> Views:
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    return Masking(0.5, views=views)(len(images), grid, torch.Generator().manual_seed(2))


def joined(backbone: BeitViT, images: Tensor) -> Tensor:
    features = backbone(images)
    return torch.cat([features.prefix, features.tokens], dim=1)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_are_encoded_as_timm_does(kind: str, size: tuple[int, int]) -> None:
    backbone, images = small(size, kind), pictures(size)
    with torch.no_grad():
        theirs = backbone.network.forward_features(normalised(images))
        assert torch.allclose(joined(backbone, images), theirs, atol=1e-5, rtol=1e-4)
        assert torch.allclose(joined(backbone, normalised(images)), theirs, atol=1e-5, rtol=1e-4)
        for block in backbone.network.blocks:
            block.attn.fused_attn = not block.attn.fused_attn
        assert torch.allclose(joined(backbone, images), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "per block"])
def test_replacing_hides_the_pixels_and_follows_timm(kind: str) -> None:
    backbone, images = small(kind=kind), pictures()
    views, fill, net = drawn(backbone, images), torch.randn(24), backbone.network
    with torch.no_grad():
        ours = backbone.encode(backbone.embed(images), views, mask_token=fill, layers=(0, -1))
        x = net.patch_embed(normalised(images))[[0, 1, 0, 1]]
        x[views.mask.flatten(0, 1)] = fill
        x = torch.cat([net.cls_token.expand(4, -1, -1), x], dim=1)
        shared = net.rel_pos_bias() if net.rel_pos_bias else None
        first = net.blocks[0](x, shared_rel_pos_bias=shared)
        theirs = net.norm(net.blocks[1](first, shared_rel_pos_bias=shared))
    assert torch.allclose(ours[0].tokens, first[:, 1:], atol=1e-5)
    assert torch.allclose(ours[-1].tokens, theirs[:, 1:], atol=1e-5)
    assert torch.allclose(ours[-1].prefix, theirs[:, :1], atol=1e-5)


def test_it_does_not_drop() -> None:
    backbone, images = small(), pictures()
    assert backbone.modes == ("replace",)
    with pytest.raises(UserError, match="cannot drop"):
        backbone.encode(backbone.embed(images), drawn(backbone, images))


def test_only_the_layers_asked_for_are_run() -> None:
    backbone, images = small(), pictures()
    features = backbone.encode(backbone.embed(images), layers=(0,))
    assert sorted(features) == [0]
    features[0].tokens.sum().backward()
    assert all(p.grad is None for p in backbone.network.blocks[1].parameters())


@pytest.mark.parametrize("name", [*SMALL, "beit_base_patch16_224"])
def test_the_origin_rebuilds_the_network_strictly(name: str) -> None:
    """After a way through JSON, as the export goes; with the settings of pre-training."""
    size = (16, 24) if name == "beit_micro" else (32, 48)
    backbone = create_beit(name, size, MEAN, STD, drop_path=0.1, overrides={} if name in SMALL else {"depth": 1})
    model, arguments = json.loads(json.dumps(backbone.origin))
    other = timm.create_model(model, **arguments).eval()
    other.load_state_dict(backbone.network.state_dict(), strict=True)
    names = set(backbone.network.state_dict())
    assert "rel_pos_bias.relative_position_bias_table" in names
    assert not any(key.startswith(("pos_embed", "fc_norm", "head")) or "attn.relative" in key for key in names)
    assert {"norm.weight", "blocks.0.attn.q_bias", "blocks.0.gamma_1"} <= names
    assert bool((backbone.network.blocks[0].gamma_1 == 0.1).all())
    images = pictures(size, 1)
    with torch.no_grad():
        assert torch.allclose(joined(backbone.eval(), images), other.forward_features(normalised(images)), atol=1e-5)
    if name in SMALL:
        sizes = SMALL[name][1]
        assert (backbone.width, backbone.depth) == (sizes["embed_dim"], sizes["depth"])


def test_a_shape_without_memory() -> None:
    """How FLOPs are counted; also on another grid than the one built for."""
    with torch.device("meta"):
        backbone = create_beit("beit_micro", (16, 16), MEAN, STD)
        for size in ((16, 16), (24, 16)):
            assert backbone(torch.zeros(1, 3, *size, dtype=torch.uint8)).tokens.is_meta
    assert spline(7, 11).device.type == "cpu"
    assert spline(7, 7).device.type == "cpu"


@pytest.mark.parametrize("size", [(24, 40), (16, 16), (48, 32), (8, 32)])
@pytest.mark.parametrize("kind", ["shared", "per block", "absolute"])
def test_another_image_size_resizes_every_table(kind: str, size: tuple[int, int]) -> None:
    """The same as a network built for that size, with tables resized by hand."""
    backbone, images = small(kind=kind), pictures(size)
    grid, other = backbone.grid(size), small(size, kind)
    state = backbone.network.state_dict()
    for key, value in state.items():
        if key.endswith("table"):
            state[key] = resize_table(value, (4, 4), grid, 3)
        elif key == "pos_embed":
            state[key] = timm.layers.resample_abs_pos_embed(value, list(grid), [4, 4])
    other.network.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.allclose(joined(backbone, images), joined(other, images), atol=1e-5)


def test_resized_tables_learn() -> None:
    backbone, images = small(), pictures((48, 32))
    backbone(images).tokens.square().mean().backward()
    gradient = backbone.network.rel_pos_bias.relative_position_bias_table.grad
    assert gradient is not None
    assert bool(gradient[-3:].any())
    assert bool(gradient[:-3].any())


def offsets(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Old offsets in geometric progression over the new ones, found by a search of its own."""
    ratios = np.linspace(1.01, 1.5, 2_000_001)
    reach = sum(ratios**i for i in range(old - 1))
    q = ratios[np.abs(reach - (new - 1)).argmin()]
    half = np.cumsum([q**i for i in range(old - 1)])
    return np.concatenate([-half[::-1], [0], half]), np.arange(-(new - 1), new)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (5, 5)), ((6, 5), (7, 8)), ((7, 7), (12, 12))])
def test_resizing_is_a_cubic_surface_over_a_geometric_grid(old: tuple[int, int], new: tuple[int, int]) -> None:
    rows = (2 * old[0] - 1) * (2 * old[1] - 1)
    table = torch.randn(rows + 3, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_table(table, old, new, 3)
    assert torch.equal(resized[-3:], table[-3:])
    (y, dy), (x, dx) = (offsets(a, b) for a, b in zip(old, new, strict=True))
    for head in range(2):
        z = table[:-3, head].reshape(2 * old[0] - 1, 2 * old[1] - 1).double().numpy()
        expected = torch.from_numpy(RectBivariateSpline(y, x, z, kx=3, ky=3, s=0)(dy, dx)).float().flatten()
        assert torch.allclose(resized[:-3, head], expected, atol=1e-3)  # the two searches end 1e-6 apart


@pytest.mark.parametrize(("old", "new"), [((1, 1), (3, 2)), ((2, 1), (4, 4)), ((3, 3), (2, 1)), ((2, 2), (9, 9))])
def test_very_small_windows_resize_too(old: tuple[int, int], new: tuple[int, int]) -> None:
    rows = (2 * old[0] - 1) * (2 * old[1] - 1)
    assert torch.allclose(resize_table(torch.ones(rows, 2), old, new), torch.ones(()), atol=1e-5)
    middle = resize_table(torch.arange(float(rows))[:, None], old, new)
    assert middle[len(middle) // 2, 0].item() == pytest.approx(rows // 2, abs=1e-4)  # offset 0 stays where it is


def test_an_equal_grid_changes_nothing() -> None:
    table = torch.randn(7 * 9 + 3, 2)
    assert torch.equal(resize_table(table, (4, 5), (4, 5), 3), table)


def test_depth_of_parameters_for_layer_decay() -> None:
    """The shared table with the end, as BEiT and SimMIM count it; a block's own with the block."""
    shared, own = small(), small(kind="per block")
    depths = {name: shared.param_depth(name) for name, _ in shared.network.named_parameters()}
    assert depths["cls_token"] == depths["patch_embed.proj.weight"] == 0
    assert depths["blocks.0.attn.q_bias"] == depths["blocks.0.gamma_2"] == 1
    assert depths["blocks.1.mlp.fc2.bias"] == 2
    assert depths["rel_pos_bias.relative_position_bias_table"] == depths["norm.weight"] == 3
    assert own.param_depth("blocks.1.attn.relative_position_bias_table") == 2


def test_the_state_dict_is_the_networks_alone() -> None:
    backbone = small()
    assert {f"network.{key}" for key in backbone.network.state_dict()} == set(backbone.state_dict())


@pytest.mark.parametrize(
    ("name", "size", "overrides", "line"),
    [
        ("beit_bse_patch16_224", (32, 32), {}, "did you mean .*beit_base_patch16_224"),
        ("vit_tiny_patch16_224", (32, 32), {}, "timm cannot build vit_tiny_patch16_224"),
        ("beit_base_patch16_224", (30, 32), {"depth": 1}, "30×32 px cannot be cut into patches of 16×16"),
        ("beit_micro", (16, 16), {"embed_dim": 30}, "4 heads do not divide the width 30"),
        ("beit_micro", (16, 16), {"window": 3}, "timm cannot build beit_micro"),
    ],
)
def test_mistakes_are_one_line(name: str, size: tuple[int, int], overrides: dict[str, int], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        create_beit(name, size, MEAN, STD, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_an_image_that_no_patch_divides() -> None:
    with pytest.raises(UserError, match="20×32 px"):
        small().embed(pictures((20, 32)))
