"""backbones/vit.py: whole images as timm encodes them, no leak from what is dropped, and every size and channel."""

import pytest
import timm
import torch
from torch import Tensor

from remask.backbones import class_tokens
from remask.backbones.vit import SMALL, ViT, create_vit
from remask.errors import UserError, first_line
from remask.masking import Masking
from remask.tokens import sincos_positions, unpatchify
from remask.views import Views

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SMALLER = {"embed_dim": 24, "depth": 2, "num_heads": 2}
NAMES = {
    "vit_base_patch16_224": 1,  # class token
    "vit_base_patch16_gap_224": 0,  # none
    "vit_base_patch16_reg4_gap_256": 4,  # registers only, no_embed_class
    "vit_base_patch14_reg4_dinov2": 5,  # both, no_embed_class, layer scale
    "vit_base_patch14_dinov2": 1,
    "deit3_small_patch16_224": 1,  # no_embed_class
    "vit_base_patch32_clip_224": 1,  # norm before the blocks, no bias in the patch convolution
    "vit_base_patch16_siglip_224": 0,
    "vit_medium_patch16_reg1_gap_256": 1,
    "vit_micro": 1,
}


def small(name: str = "vit_base_patch16_224", size: tuple[int, int] = (32, 32), **keys: object) -> ViT:
    torch.manual_seed(0)
    patch = 8 if "14" not in name and "clip" not in name else 16
    overrides = {"patch_size": patch, **SMALLER}
    backbone = create_vit(name, size, MEAN, STD, **{"overrides": overrides, **keys}).eval()  # type: ignore[arg-type]
    for parameter in backbone.parameters():  # registers, tokens and biases start at 0 and would test nothing
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def pictures(size: tuple[int, int] = (32, 32), batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randint(
        0, 256, (batch, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def normalised(images: Tensor, mean: list[float] = MEAN, std: list[float] = STD) -> Tensor:
    return (images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def drawn(backbone: ViT, images: Tensor, views: int = 2, ratio: float = 0.5) -> Views:
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    return Masking(ratio, views=views)(len(images), grid, torch.Generator().manual_seed(2))


def joined(backbone: ViT, images: Tensor) -> Tensor:
    features = backbone(images)
    return torch.cat([features.prefix, features.tokens], dim=1)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("name", NAMES)
def test_whole_images_are_encoded_as_timm_does(name: str, positions: str) -> None:
    backbone, images = small(name, positions=positions), pictures()
    assert backbone.prefix == NAMES[name]
    with torch.no_grad():
        theirs = backbone.network.forward_features(normalised(images))
        assert torch.allclose(joined(backbone, images), theirs, atol=1e-5, rtol=1e-4)
        assert torch.allclose(joined(backbone, normalised(images)), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_dropping_is_the_sum_of_its_tokens(name: str) -> None:
    """Nothing hidden is nothing changed: all tokens visible, through the masked path."""
    backbone, images = small(name), pictures()
    n = 16 if backbone.patch == (8, 8) else 4
    side = int(n**0.5)
    views = Views(torch.zeros(1, 2, n, dtype=torch.bool), (side, side), 0)
    with torch.no_grad():
        masked = backbone.encode(backbone.embed(images), views)[-1]
        assert torch.allclose(masked.tokens, backbone(images).tokens, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.3, 0.75])  # embeds all patches, or only what is seen
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_base_patch16_reg4_gap_256"])
def test_masked_pixels_change_no_visible_feature(name: str, ratio: float) -> None:
    backbone, images = small(name), pictures()
    views = drawn(backbone, images, views=1, ratio=ratio)
    hidden = unpatchify(views.mask[0].unsqueeze(-1).expand(-1, -1, 64).to(torch.uint8), views.grid, backbone.patch)
    changed = torch.where(hidden.bool(), 255 - images, images)
    assert not torch.equal(changed, images)
    with torch.no_grad():
        before = backbone.encode(backbone.embed(images), views, layers=(0, -1))
        after = backbone.encode(backbone.embed(changed), views, layers=(0, -1))
    for layer in (0, -1):
        assert torch.equal(before[layer].tokens, after[layer].tokens)
        assert torch.equal(before[layer].prefix, after[layer].prefix)


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_embedding_gathered_pixels_is_gathering_embeddings(ratio: float) -> None:
    backbone, images = small(), pictures()
    stem, views = backbone.embed(images), drawn(backbone, images, ratio=ratio)
    embedded = backbone.network.patch_embed(normalised(images))
    by_hand = torch.stack([embedded[b][~views.mask[v, b]] for v in range(len(views.mask)) for b in range(len(images))])
    assert torch.allclose(backbone._visible(stem.pixels, views), by_hand, atol=1e-5)


def test_dropping_equals_the_network_run_on_the_visible_tokens() -> None:
    backbone, images = small("vit_base_patch14_reg4_dinov2", (64, 64)), pictures((64, 64))
    views, net = drawn(backbone, images), backbone.network
    with torch.no_grad():
        x = net._pos_embed(net.patch_embed(normalised(images)))
        tokens = torch.stack([x[b, 5:][~views.mask[v, b]] for v in range(2) for b in range(2)])
        theirs = net.norm(net.blocks(torch.cat([x[[0, 1, 0, 1], :5], tokens], dim=1)))
        ours = backbone.encode(backbone.embed(images), views)[-1]
    assert torch.allclose(ours.prefix, theirs[:, :5], atol=1e-5)
    assert torch.allclose(ours.tokens, theirs[:, 5:], atol=1e-5)


def test_replacing_returns_every_token_and_hides_the_pixels() -> None:
    backbone, images = small(), pictures()
    views, fill = drawn(backbone, images), torch.randn(24)
    with torch.no_grad():
        replaced = backbone.encode(backbone.embed(images), views, mask_token=fill)[-1]
        net = backbone.network
        embedded = net.patch_embed(normalised(images))[[0, 1, 0, 1]]
        embedded[views.mask.flatten(0, 1)] = fill
        theirs = net.norm(net.blocks(net._pos_embed(embedded)))
    assert replaced.tokens.shape == (4, 16, 24)
    assert torch.allclose(replaced.tokens, theirs[:, 1:], atol=1e-5)


def test_layers_are_the_blocks_and_the_end_is_normed() -> None:
    backbone, images = small(), pictures()
    with torch.no_grad():
        features = backbone.encode(backbone.embed(images), layers=(0, 1, -1))
        normed = backbone.network.norm(features[1].tokens)
        shallow = backbone.encode(backbone.embed(images), layers=(0,))
        theirs = backbone.network.forward_intermediates(normalised(images), output_fmt="NLC", intermediates_only=True)
    assert sorted(features) == [-1, 0, 1]
    assert torch.allclose(features[-1].tokens, normed, atol=1e-5)
    assert torch.equal(shallow[0].tokens, features[0].tokens)
    assert sorted(shallow) == [0]
    assert all(torch.allclose(features[i].tokens, theirs[i], atol=1e-5, rtol=1e-4) for i in (0, 1))


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224", "vit_base_patch16_reg4_gap_256", "vit_base_patch16_siglip_224"]
)
@pytest.mark.parametrize("size", [(24, 40), (32, 32), (16, 16)])
def test_another_image_size_resizes_the_positions_as_timm_does(name: str, size: tuple[int, int]) -> None:
    backbone = small(name, positions="learned")
    base, arguments = backbone.origin
    flexible = timm.create_model(base, **arguments, dynamic_img_size=True).eval()
    flexible.load_state_dict(backbone.network.state_dict(), strict=True)
    images = pictures(size)
    with torch.no_grad():
        theirs = flexible.forward_features(normalised(images))
        assert torch.allclose(joined(backbone, images), theirs, atol=1e-5, rtol=1e-4)


def test_as_many_tokens_on_another_grid_still_resizes() -> None:
    """4×4 tokens where 2×8 were built: equal counts must not pass for an equal grid."""
    backbone = small(size=(16, 64), positions="learned")
    stored = backbone.network.pos_embed[0, 1:]
    resized = backbone._positions((4, 4))[0]
    assert resized.shape == stored.shape
    assert not torch.allclose(resized, stored)


def test_a_network_built_for_a_non_square_picture() -> None:
    backbone = small(size=(24, 40))
    assert backbone.grid((24, 40)) == backbone.built_for == (3, 5)
    assert torch.equal(backbone.network.pos_embed[0, 1:], sincos_positions((3, 5), 24))
    images = pictures((24, 40))
    with torch.no_grad():
        theirs = backbone.network.forward_features(normalised(images))
        assert torch.allclose(joined(backbone, images), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    mean, std = [0.1 * (c + 1) for c in range(channels)], [0.2 + 0.1 * c for c in range(channels)]
    torch.manual_seed(0)
    backbone = create_vit("vit_micro", (16, 16), mean, std, overrides=SMALLER).eval()
    images = pictures((16, 16), channels=channels)
    assert backbone.channels == channels
    with torch.no_grad():
        theirs = backbone.network.forward_features(normalised(images, mean, std))
        assert torch.allclose(joined(backbone, images), theirs, atol=1e-5)


def test_sincos_positions_are_frozen_and_learned_ones_are_trained() -> None:
    fixed, learned = small(), small(positions="learned")
    assert not fixed.network.pos_embed.requires_grad
    assert torch.equal(fixed.network.pos_embed[0], sincos_positions((4, 4), 24, prefix=1))
    assert learned.network.pos_embed.requires_grad


def test_without_embedded_prefix_the_table_has_no_row_for_it() -> None:
    backbone = small("vit_base_patch14_reg4_dinov2")
    assert torch.equal(backbone.network.pos_embed[0], sincos_positions((2, 2), 24))


def test_the_state_dict_is_the_networks_alone() -> None:
    backbone = small()
    assert {f"network.{key}" for key in backbone.network.state_dict()} == set(backbone.state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_small_names_are_timm_models(name: str) -> None:
    base, sizes = SMALL[name]
    side = 4 * sizes["patch_size"]
    backbone = create_vit(name, (side, side), MEAN, STD)
    assert (backbone.width, backbone.depth, backbone.patch[0]) == (
        sizes["embed_dim"],
        sizes["depth"],
        sizes["patch_size"],
    )
    assert backbone.origin[0] == base


def test_depth_of_parameters_for_layer_decay() -> None:
    backbone = small("vit_base_patch14_reg4_dinov2")
    depths = {name: backbone.param_depth(name) for name, _ in backbone.network.named_parameters()}
    first = ("cls_token", "reg_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    assert all(depths[name] == 0 for name in first)
    assert depths["blocks.0.attn.qkv.weight"] == 1
    assert depths["blocks.1.norm1.bias"] == 2
    assert depths["norm.weight"] == 3


@pytest.mark.parametrize(
    ("name", "size", "line"),
    [
        ("vit_bse_patch16_224", (32, 32), "did you mean .*vit_base_patch16_224"),
        ("resnet18", (32, 32), "timm cannot build resnet18"),
        ("vit_relpos_small_patch16_224", (32, 32), "is a VisionTransformerRelPos, not a plain vision transformer"),
        ("vit_base_patch16_224", (30, 32), "30×32 px cannot be cut into patches of 16×16"),
        ("vit_base_patch16_224", (8, 8), "8×8 px cannot be cut"),
        ("vit_tiny_r_s16_p8_224", (32, 32), "no plain patch embedding; choose a ViT without a hybrid stem"),
    ],
)
def test_mistakes_are_one_line(name: str, size: tuple[int, int], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        create_vit(name, size, MEAN, STD, overrides={"depth": 1} if name.startswith("vit") else None)
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_the_width_are_one_line() -> None:
    with pytest.raises(UserError, match="timm cannot build vit_micro"):
        create_vit("vit_micro", (16, 16), MEAN, STD, overrides={"embed_dim": 24, "num_heads": 5})


def test_a_vit_with_a_distillation_token_is_refused() -> None:
    """Its second prefix token would be taken for a patch."""
    with pytest.raises(UserError, match="timm cannot build deit_tiny_distilled"):
        create_vit("deit_tiny_distilled_patch16_224", (32, 32), MEAN, STD, overrides={"depth": 1})


def test_an_error_without_a_word_is_named() -> None:
    """timm asserts without a message here and there."""
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(ValueError("one\ntwo")) == "one"


def test_a_width_without_a_sincos_table_is_one_line() -> None:
    with pytest.raises(UserError, match="divisible by 4"):
        create_vit("vit_micro", (16, 16), MEAN, STD, overrides={"embed_dim": 30, "num_heads": 2})


def test_several_class_tokens_are_timms_class_token_and_registers() -> None:
    """Each with a row of its own; timm builds the same network, and passes images through it alike."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
    keys = {"overrides": sizes, "class_tokens": 8}
    backbone = create_vit("vit_tiny_patch16_224", (32, 32), MEAN, STD, positions="learned", **keys)  # type: ignore[arg-type]
    assert (backbone.prefix, backbone.class_tokens, class_tokens(backbone)) == (8, 8, 8)
    assert backbone.network.pos_embed.shape == (1, 8 + 16, 32)
    name, arguments = backbone.origin or ("", {})
    model = timm.create_model(name, **arguments).eval()
    model.load_state_dict(backbone.network.state_dict(), strict=True)
    images = pictures()
    with torch.no_grad():
        assert torch.allclose(joined(backbone.eval(), images), model.forward_features(normalised(images)), atol=1e-5)
    fixed = create_vit("vit_tiny_patch16_224", (32, 32), MEAN, STD, overrides=sizes, class_tokens=3)
    assert not fixed.network.pos_embed[0, :3].any()
    assert fixed.network.pos_embed[0, 3:].any(1).all()


def test_registers_are_no_class_tokens_unless_they_are_meant() -> None:
    counts = {name: class_tokens(small(name)) for name in NAMES}
    assert counts == {name: min(count, 1) for name, count in NAMES.items()}
    assert NAMES["vit_base_patch16_reg4_gap_256"] == 4
    with pytest.raises(UserError, match="has no class token, of which there could be 2"):
        create_vit("vit_base_patch16_reg4_gap_256", (32, 32), MEAN, STD, overrides=SMALLER, class_tokens=2)
