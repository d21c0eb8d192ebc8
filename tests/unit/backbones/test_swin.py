"""backbones/swin.py: whole images as timm encodes them, replaced tokens, other image sizes, and mistakes."""

import json

import pytest
import timm
import torch
from torch import Tensor

from remask.backbones.swin import SMALL, Swin, create_swin
from remask.errors import UserError
from remask.masking import Masking
from remask.tokens import unpatchify
from remask.views import Views

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TOY = {"embed_dim": 8, "num_heads": (1, 2, 2)}


def small(size: tuple[int, int] = (32, 32), **overrides: object) -> Swin:
    torch.manual_seed(0)
    backbone = create_swin("swin_micro", size, MEAN, STD, overrides={**TOY, **overrides}).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return backbone


def pictures(size: tuple[int, int] = (32, 32), batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def drawn(backbone: Swin, images: Tensor, views: int = 2) -> Views:
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    return Masking(0.5, views=views)(len(images), grid, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 32), (64, 64)])
def test_whole_images_are_encoded_as_timm_does(size: tuple[int, int]) -> None:
    backbone, images = small(size), pictures(size)
    with torch.no_grad():
        theirs = backbone.network.forward_features(normalised(images)).flatten(1, 2)
        assert torch.allclose(backbone(images).tokens, theirs, atol=1e-5, rtol=1e-4)
        assert torch.allclose(backbone(normalised(images)).tokens, theirs, atol=1e-5, rtol=1e-4)
    assert backbone(images).prefix.shape == (2, 0, 32)
    assert theirs.shape[1] == (size[0] // 8) * (size[1] // 8)


def test_sizes_of_the_small_one() -> None:
    backbone = create_swin("swin_micro", (32, 32), MEAN, STD)
    assert (backbone.patch, backbone.width, backbone.stem_width) == ((8, 8), 128, 32)
    assert (backbone.depth, backbone.prefix, backbone.channels) == (6, 0, 3)
    assert backbone.grid((32, 32)) == (4, 4)
    assert [stage.blocks[0].attn.num_heads for stage in backbone.network.layers] == [2, 4, 8]
    assert [stage.blocks[1].shift_size for stage in backbone.network.layers] == [(2, 2), (2, 2), (0, 0)]


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (64, 64), (96, 32)])
def test_another_image_size_than_built_for(size: tuple[int, int]) -> None:
    """The same as a network built for that size: shifts and masks follow the grid, weights stay."""
    backbone, images = small(), pictures(size)
    other = small(size, window_size=4)
    other.network.load_state_dict(backbone.network.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.allclose(backbone(images).tokens, other(images).tokens, atol=1e-5)
        theirs = other.network.forward_features(normalised(images)).flatten(1, 2)
        assert torch.allclose(backbone(images).tokens, theirs, atol=1e-5, rtol=1e-4)
    assert backbone.network.layers[2].blocks[1].shift_size == (0, 0)  # the network itself stays as it was


def test_replacing_hides_the_stem_tokens_under_a_masked_token() -> None:
    backbone, images = small(), pictures()
    views, fill, net = drawn(backbone, images), torch.randn(8), backbone.network
    with torch.no_grad():
        ours = backbone.encode(backbone.embed(images), views, mask_token=fill)[-1]
        x = net.patch_embed(normalised(images))[[0, 1, 0, 1]]
        for row, mask in enumerate(views.mask.flatten(0, 1)):
            for token in mask.nonzero().flatten().tolist():
                down, right = 4 * (token // 4), 4 * (token % 4)
                x[row, down : down + 4, right : right + 4] = fill
        theirs = net.norm(net.layers(x)).flatten(1, 2)
    assert ours.tokens.shape == (4, 16, 32)
    assert torch.allclose(ours.tokens, theirs, atol=1e-5)


def test_masked_pixels_reach_nothing() -> None:
    backbone, images = small(), pictures()
    views, fill = drawn(backbone, images, views=1), torch.randn(8)
    hidden = unpatchify(views.mask[0].unsqueeze(-1).expand(-1, -1, 192).to(torch.uint8), (4, 4), (8, 8)).bool()
    changed = torch.where(hidden, 255 - images, images)
    before, after = (backbone.encode(backbone.embed(x), views, mask_token=fill)[-1].tokens for x in (images, changed))
    assert torch.equal(before, after)
    assert not torch.equal(backbone(images).tokens, backbone(changed).tokens)


def test_it_does_not_drop() -> None:
    backbone, images = small(), pictures()
    assert backbone.modes == ("replace",)
    with pytest.raises(UserError, match="cannot drop"):
        backbone.encode(backbone.embed(images), drawn(backbone, images))


def test_layers_are_blocks_and_a_pyramid_is_the_stages() -> None:
    backbone, images = small(), pictures()
    with torch.no_grad():
        ends = backbone.encode(backbone.embed(images), layers=(0, 1, 3, 5, -1))
        theirs = backbone.network.forward_intermediates(normalised(images), intermediates_only=True)
        pyramid = backbone.pyramid(images)
    assert ends[0].tokens.shape == ends[1].tokens.shape == (2, 256, 8)
    assert not torch.equal(ends[0].tokens, ends[1].tokens)
    assert torch.allclose(ends[-1].tokens, backbone.network.norm(ends[5].tokens), atol=1e-6)
    for end, stage in zip((1, 3, 5), theirs, strict=True):
        assert torch.allclose(ends[end].tokens, stage.flatten(2).mT, atol=1e-5)
    assert [level.shape for level in pyramid] == [(2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)]
    for level, stage in zip(pyramid[:2], theirs[:2], strict=True):
        assert torch.allclose(level, stage, atol=1e-5)
    assert torch.allclose(pyramid[2].flatten(2).mT, ends[-1].tokens, atol=1e-6)


def test_only_the_layers_asked_for_are_run() -> None:
    backbone = small()
    backbone.encode(backbone.embed(pictures()), layers=(2,))[2].tokens.sum().backward()
    reached = {name for name, p in backbone.network.named_parameters() if p.grad is not None}
    assert any(name.startswith("layers.1.blocks.0") for name in reached)
    assert not any(name.startswith(("layers.1.blocks.1", "layers.2", "norm")) for name in reached)
    for layer in (6, -2):
        with pytest.raises(UserError, match="Swin of 6 blocks"):
            backbone.encode(backbone.embed(pictures()), layers=(layer,))


@pytest.mark.parametrize("name", [*SMALL, "swin_tiny_patch4_window7_224", "swin_s3_tiny_224"])
def test_the_origin_rebuilds_the_network_strictly(name: str) -> None:
    size = (32, 48) if name in SMALL else (64, 128)
    overrides = {} if name in SMALL else {"embed_dim": 8, "num_heads": 1, "depth": 1}
    backbone = create_swin(name, size, MEAN, STD, drop_path=0.1, overrides=overrides)
    model, arguments = json.loads(json.dumps(backbone.origin))
    other = timm.create_model(model, **arguments).eval()
    other.load_state_dict(backbone.network.state_dict(), strict=True)
    images = pictures(size, 1)
    with torch.no_grad():
        theirs = other.forward_features(normalised(images)).flatten(1, 2)
        assert torch.allclose(backbone.eval()(images).tokens, theirs, atol=1e-5, rtol=1e-4)
    assert {f"network.{key}" for key in backbone.network.state_dict()} == set(backbone.state_dict())


@pytest.mark.parametrize(("size", "window"), [(192, 6), (224, 7), (128, 4), (448, 7)])
def test_the_window_follows_the_image_size(size: int, window: int) -> None:
    """7 where it tiles the stages, as at 224 px; else the output grid, as SimMIM's 6 at 192 px."""
    with torch.device("meta"):
        overrides = {"embed_dim": 8, "num_heads": 1, "depth": 2}
        backbone = create_swin("swin_base_patch4_window7_224", (size, size), MEAN, STD, overrides=overrides)
    assert [stage.blocks[0].window_size for stage in backbone.network.layers] == [(window, window)] * 4
    assert backbone.network.layers[0].blocks[0].attn.relative_position_bias_table.shape == ((2 * window - 1) ** 2, 1)


def test_numbers_for_all_stages() -> None:
    backbone = create_swin("swin_micro", (32, 32), MEAN, STD, overrides={"depth": 1, "num_heads": 1, "embed_dim": 4})
    assert backbone.depths == [1, 1, 1]
    assert [stage.blocks[0].attn.num_heads for stage in backbone.network.layers] == [1, 2, 4]


def test_depth_of_parameters_for_layer_decay() -> None:
    """SimMIM's count: blocks over all stages; merging with the last block before it; the rest at the end."""
    backbone = small(depths=(2, 3, 1))
    depths = {name: backbone.param_depth(name) for name, _ in backbone.network.named_parameters()}
    assert depths["patch_embed.proj.weight"] == depths["patch_embed.norm.bias"] == 0
    assert depths["layers.0.blocks.1.attn.relative_position_bias_table"] == 2
    assert depths["layers.1.downsample.reduction.weight"] == 2
    assert depths["layers.1.blocks.0.norm1.weight"] == 3
    assert depths["layers.2.downsample.norm.weight"] == 5
    assert depths["layers.2.blocks.0.mlp.fc1.weight"] == 6
    assert depths["norm.weight"] == 7


@pytest.mark.parametrize(
    ("name", "size", "overrides", "line"),
    [
        ("swin_bse_patch4_window7_224", (32, 32), {}, "did you mean .*swin_base_patch4_window7_224"),
        ("swinv2_tiny_window8_256", (64, 64), {"embed_dim": 8, "num_heads": 1}, "not a Swin transformer of version 1"),
        ("swin_micro", (36, 32), TOY, "36×32 px cannot be halved down to tokens of 8×8"),
        ("swin_micro", (32, 32), {**TOY, "window_size": 3}, "windows of 3×3 do not tile the 16×16 tokens that stage 1"),
        ("swin_micro", (32, 32), {**TOY, "num_heads": (1, 5, 2)}, "5 heads do not divide the width"),
        ("swin_micro", (32, 32), {**TOY, "width": 9}, "timm cannot build swin_micro"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(name: str, size: tuple[int, int], overrides: dict[str, int], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        create_swin(name, size, MEAN, STD, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_an_image_that_no_window_fits() -> None:
    backbone = small()
    for size, line in (((40, 32), "windows of 4×4 do not tile the 10×8 tokens that stage 2"), ((20, 32), "20×32 px")):
        with pytest.raises(UserError, match=line):
            backbone.embed(pictures(size))
