"""backbones/hierarchical.py: any network's map as tokens in raster order, whatever its layout; stages, mistakes."""

import json
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from remask.backbones.cmt_network import Cmt
from remask.backbones.hierarchical import Hierarchical, create_hierarchical
from remask.errors import UserError
from remask.masking import Masking

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = (64, 96)
SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
LAYOUTS: dict[str, dict[str, Any]] = {
    "resnet18": {},  # NCHW
    "convnext_atto": {},  # NCHW, the final norm in the classifier
    "pvt_v2_b0": {},
    "cmt_micro": {},
    "swinv2_tiny_window8_256": SMALL,  # NHWC
    "mixer_s32_224": {},  # tokens
    "xcit_nano_12_p16_224": {},  # tokens after a class token
}


def network(name: str, size: tuple[int, int] = SIZE, **overrides: Any) -> Hierarchical:
    torch.manual_seed(0)
    return create_hierarchical(name, size, MEAN, STD, overrides={**LAYOUTS.get(name, {}), **overrides}).eval()


def pictures(size: tuple[int, int] = SIZE, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randint(
        0, 256, (batch, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_tokens_in_raster_order(name: str) -> None:
    """Cell by cell those of the map that the network itself lays out, after its final norm."""
    backbone, images = network(name), pictures()
    with torch.no_grad():
        ours = backbone(images)
        (theirs,) = backbone.network.forward_intermediates(
            normalised(images), indices=1, norm=True, intermediates_only=True
        )
        if backbone.head_norm is not None:
            theirs = backbone.network.head.norm(theirs)
    rows, columns = backbone.grid(SIZE)
    assert theirs.shape == (2, backbone.width, rows, columns)
    assert ours.tokens.shape == (2, rows * columns, backbone.width)
    for i in range(rows * columns):
        cell = theirs[:, :, i // columns, i % columns]
        assert torch.allclose(ours.tokens[:, i], cell, atol=1e-4, rtol=1e-4), f"token {i}"
    assert not torch.allclose(theirs[:, :, 0, 1], theirs[:, :, 1, 0], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "patch", "width", "prefix"),
    [
        ("resnet18", 32, 512, 0),
        ("pvt_v2_b0", 32, 256, 0),
        ("swinv2_tiny_window8_256", 32, 64, 0),
        ("xcit_nano_12_p16_224", 16, 128, 1),
        ("mixer_s32_224", 32, 512, 0),
    ],
)
def test_sizes(name: str, patch: int, width: int, prefix: int) -> None:
    backbone = network(name)
    assert (backbone.patch, backbone.width, backbone.stem_width) == ((patch, patch), width, width)
    assert (backbone.prefix, backbone.channels, backbone.modes) == (prefix, 3, ())
    assert backbone.grid(SIZE) == (64 // patch, 96 // patch)
    assert backbone(pictures()).prefix.shape == (2, prefix, width)


def test_float_images_are_taken_as_normalised() -> None:
    backbone, images = network("resnet18"), pictures()
    with torch.no_grad():
        assert torch.allclose(backbone(images).tokens, backbone(normalised(images)).tokens, atol=1e-4)
        assert not torch.allclose(backbone(images).tokens, backbone(images.float()).tokens, atol=1e-2)


@pytest.mark.parametrize("name", ["resnet18", "cmt_micro", "pvt_v2_b0"])
def test_another_image_size_than_built_for(name: str) -> None:
    backbone, images = network(name), pictures((96, 32))
    assert backbone.grid((96, 32)) == (3, 1)
    assert backbone(images).tokens.shape == (2, 3, backbone.width)
    with pytest.raises(UserError, match=r"80×96 px cannot be cut into patches of 32×32"):
        backbone.embed(pictures((80, 96)))


@pytest.mark.parametrize(("channels", "name"), [(1, "convnext_atto"), (4, "cmt_micro")])
def test_channels_follow_the_data(channels: int, name: str) -> None:
    backbone = create_hierarchical(name, SIZE, [0.5] * channels, [0.25] * channels).eval()
    assert backbone.channels == channels
    assert backbone(pictures(channels=channels)).tokens.shape == (2, 6, backbone.width)


def test_a_classifiers_own_layers_are_not_trained() -> None:
    """MobileNetV3 has a convolution behind the pooling; all that the map depends on is trained."""
    backbone = network("mobilenetv3_small_100")
    frozen = {name for name, p in backbone.network.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_head.weight", "conv_head.bias"}
    backbone(pictures()).tokens.square().sum().backward()
    assert all(p.grad is not None for p in backbone.network.parameters() if p.requires_grad)


def test_the_final_norm_of_a_classifier_is_trained_and_exported() -> None:
    backbone, images = network("convnext_atto"), pictures()
    norm = backbone.network.head.norm
    assert backbone.head_norm is norm
    assert norm.weight.requires_grad
    assert "head.norm.weight" in backbone.network.state_dict()
    torch.nn.init.zeros_(norm.weight)
    assert torch.equal(backbone(images).tokens, norm.bias.expand(2, 6, -1))
    assert network("resnet18").head_norm is None


def test_the_network_stays_in_the_mode_and_with_the_statistics_it_was_built_with() -> None:
    fresh = create_hierarchical("resnet18", SIZE, MEAN, STD)
    assert fresh.network.training
    assert not any(bool(buffer.any()) for name, buffer in fresh.named_buffers() if name.endswith("running_mean"))


def test_layers_are_stages_and_a_pyramid_is_all_of_them() -> None:
    backbone, images = network("convnext_atto"), pictures()
    with torch.no_grad():
        pyramid = backbone.pyramid(images)
        ends = backbone.encode(backbone.embed(images), layers=(-1, 3, 0, 1))
    assert backbone.stages == [f"stages.{i}" for i in range(4)]
    assert [level.shape[1:] for level in pyramid] == [(40, 16, 24), (80, 8, 12), (160, 4, 6), (320, 2, 3)]
    assert set(ends) == {-1, 0, 1, 3}
    for layer in (0, 1, 3):
        assert torch.equal(ends[layer].tokens, pyramid[layer].flatten(2).mT)
        assert ends[layer].prefix.shape[1] == 0
    normed = backbone.network.head.norm(pyramid[3]).flatten(2).mT
    assert torch.allclose(ends[-1].tokens, normed, atol=1e-6)


def test_depth_of_parameters_for_layer_decay() -> None:
    backbone = network("pvt_v2_b0")
    depths = {name: backbone.param_depth(name) for name, _ in backbone.network.named_parameters()}
    assert depths["patch_embed.proj.weight"] == 0
    assert depths["stages.0.blocks.0.norm1.weight"] == 1
    assert depths["stages.3.norm.bias"] == 4
    other = network("convnext_atto")
    assert other.param_depth("stem.0.weight") == 0
    assert other.param_depth("head.norm.weight") == 5


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_origin_rebuilds_the_network_strictly(name: str) -> None:
    backbone, images = network(name), pictures(batch=1)
    model, arguments = json.loads(json.dumps(backbone.origin))
    if name == "cmt_micro":
        other: Any = create_hierarchical(model, SIZE, MEAN, STD, overrides=arguments).network
        assert isinstance(other, Cmt)
    else:
        other = timm.create_model(model, **arguments)
    other.load_state_dict(backbone.network.state_dict(), strict=True)
    with torch.no_grad():
        mine, theirs = (net.forward_features(normalised(images)) for net in (backbone.network, other.eval()))
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert [f"network.{key}" for key in backbone.network.state_dict()] == list(backbone.state_dict())


def test_drop_path_is_the_networks() -> None:
    rates = {name: create_hierarchical(name, SIZE, MEAN, STD, drop_path=0.3) for name in ("pvt_v2_b0", "cmt_micro")}
    assert rates["pvt_v2_b0"].network.stages[-1].blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert rates["cmt_micro"].network.blocks_d[-1].drop_path.drop_prob == pytest.approx(0.3)


@pytest.mark.parametrize("fill", [None, torch.zeros(256)])
def test_it_neither_drops_nor_replaces(fill: Tensor | None) -> None:
    backbone, images = network("pvt_v2_b0"), pictures()
    views = Masking(0.5)(2, (2, 3))
    with pytest.raises(UserError, match="PyramidVisionTransformerV2 can neither drop nor replace tokens") as caught:
        backbone.encode(backbone.embed(images), views, fill)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", [4, -2])
def test_a_stage_that_is_not_there(layer: int) -> None:
    backbone = network("pvt_v2_b0")
    with pytest.raises(UserError, match="of 4 stages; -1 is its end"):
        backbone.encode(backbone.embed(pictures()), layers=(layer,))


class Flat(torch.nn.Module):
    """A network that gives one vector a picture."""

    feature_info = ({"module": "body", "reduction": 1},)
    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(3, 4)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x.mean((2, 3)))


def test_a_network_without_a_map() -> None:
    with pytest.raises(UserError, match="Flat returns no map of features; choose another backbone"):
        Hierarchical(Flat(), SIZE, MEAN, STD)


@pytest.mark.parametrize(
    ("name", "size", "overrides", "line"),
    [
        ("pvt_v3_b0", SIZE, {}, "no backbone is called 'pvt_v3_b0'; did you mean .*pvt_v2_b0"),
        ("cmt_mikro", SIZE, {}, "did you mean cmt_micro"),
        ("zzzz", SIZE, {}, "did you mean pvt_v2_b2"),
        ("convnext_atto", SIZE, {"bogus": 1}, "timm cannot build convnext_atto with .*bogus"),
        ("nest_tiny_jx", SIZE, {}, "timm cannot build nest_tiny_jx for 64×96 px: .*square"),
        ("crossvit_9_240", SIZE, {}, "CrossVit does not take images of 64×96 px: "),
        ("inception_v3", SIZE, {}, "InceptionV3 does not take images of 64×96 px: "),
        ("cmt_micro", (80, 64), {}, "80×64 px cannot be halved down to CMT's cells of 32×32 px"),
        ("resnet18", (48, 48), {}, "ResNet makes 4 tokens of an image of 48×48 px, which is no grid of its whole"),
        ("eva02_tiny_patch14_224", (64, 64), {"depth": 1}, "Eva makes 16 tokens of an image of 64×64 px"),
        ("resnet18", (40, 72), {}, "choose a size that its stages divide, such as 128 or 224"),
    ],
)
def test_mistakes_are_one_line(name: str, size: tuple[int, int], overrides: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        create_hierarchical(name, size, MEAN, STD, overrides=overrides)
    assert "\n" not in str(caught.value)
