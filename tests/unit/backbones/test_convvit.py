"""backbones/convvit*.py: visible cells equal the dense form, gradients too; no leak; every size; the cost bars."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remask.backbones.convvit import SIZES, ConvViT, create_convvit
from remask.errors import UserError
from remask.masking import Masking
from remask.method import Method
from remask.methods.convmae import convmae
from remask.methods.dmjd import dm, jd
from remask.targets import Hog
from remask.tokens import unpatchify
from remask.training.cost import forward_gflops
from remask.views import Views
from tests.dense_convvit import DenseConvViT, dense

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TINY: dict[str, Any] = {"dims": (8, 12, 16), "depths": (2, 1, 2), "num_heads": 2, "mlp_ratios": (3, 2, 4)}
STRIDES = {"16": (4, 2, 2), "4": (1, 2, 2), "12, odd": (2, 3, 2), "12, cells of 3": (2, 2, 3)}


def small(strides: tuple[int, int, int] = (1, 2, 2), size: tuple[int, int] = (24, 48), **keys: Any) -> ConvViT:
    torch.manual_seed(0)
    backbone = create_convvit("convvit_base", size, MEAN, STD, overrides={**TINY, "strides": strides}, **keys).eval()
    for parameter in backbone.parameters():  # biases that start at 0 would test nothing
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return backbone


def pictures(size: tuple[int, int] = (24, 48), batch: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def drawn(backbone: ConvViT, images: Tensor, views: int = 2, ratio: float = 0.6) -> Views:
    grid = backbone.grid((images.shape[-2], images.shape[-1]))
    return Masking(ratio, views=views)(len(images), grid, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("ratio", [0.3, 0.6])  # embeds all cells, or only what is seen
@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
def test_visible_cells_equal_the_dense_form(strides: tuple[int, int, int], ratio: float) -> None:
    size = (48, 96) if strides == (4, 2, 2) else (24, 48)
    backbone, images = small(strides, size), pictures(size)
    views = drawn(backbone, images, ratio=ratio)
    reference = dense(backbone, normalised(images), views)
    for given in (images, normalised(images)):
        features = backbone.encode(backbone.embed(given), views, layers=(0, 1, -1))
        assert features[-1].prefix.shape == (4, 0, 16)
        torch.testing.assert_close(features[1].tokens, reference.tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features[-1].tokens, reference.latent, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_gradients_equal_those_of_the_dense_form(ratio: float) -> None:
    backbone, images = small(), normalised(pictures())
    views = drawn(backbone, images, ratio=ratio)
    weight = torch.randn(16, generator=torch.Generator().manual_seed(3))
    found = []
    for encoder in (backbone, DenseConvViT.of(backbone)):
        backbone.zero_grad()
        (encoder.encode(encoder.embed(images), views)[-1].tokens @ weight).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in backbone.named_parameters() if p.requires_grad})
    ours, theirs = found
    assert len(ours) > 60
    for name, gradient in theirs.items():
        assert gradient.any(), name
        torch.testing.assert_close(ours[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("ratio", [0.3, 0.75])
def test_masked_pixels_change_no_visible_feature(ratio: float) -> None:
    backbone, images = small(), pictures()
    views = drawn(backbone, images, views=1, ratio=ratio)
    hidden = unpatchify(views.mask[0].unsqueeze(-1).expand(-1, -1, 48).to(torch.uint8), views.grid, backbone.patch)
    changed = torch.where(hidden.bool(), 255 - images, images)
    assert not torch.equal(changed, images)
    with torch.no_grad():
        before, after = (backbone.encode(backbone.embed(i), views, layers=(0, -1)) for i in (images, changed))
    assert all(torch.equal(before[layer].tokens, after[layer].tokens) for layer in (0, -1))


@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
def test_whole_images_are_encoded_by_the_plain_network(strides: tuple[int, int, int]) -> None:
    backbone, images = small(strides, (48, 48)), pictures((48, 48))
    with torch.no_grad():
        theirs = backbone.network(normalised(images))
        torch.testing.assert_close(backbone(images).tokens, theirs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backbone(normalised(images)).tokens, theirs, atol=1e-5, rtol=1e-5)


def test_fusion_acts_in_masked_views_only_and_before_the_norm() -> None:
    backbone, images = small(), pictures()
    stem, views = backbone.embed(images), drawn(backbone, images)
    with torch.no_grad():
        whole, seen = backbone(images).tokens, backbone.encode(stem, views, layers=(1, -1))
        for fusion in backbone.fusions:
            fusion.weight.zero_()
            fusion.bias.zero_()
        without = backbone.encode(stem, views, layers=(1, -1))
        assert torch.equal(backbone(images).tokens, whole)
        assert torch.equal(without[1].tokens, seen[1].tokens)
        assert not torch.allclose(without[-1].tokens, seen[-1].tokens, atol=0.1)
        torch.testing.assert_close(without[-1].tokens, backbone.network.norm(without[1].tokens))
        backbone.fusions[0].bias += 3 * torch.arange(16.0)
        moved = backbone.encode(stem, views)[-1].tokens
    torch.testing.assert_close(moved, backbone.network.norm(without[1].tokens + 3 * torch.arange(16.0)))


def test_layers_are_the_blocks_and_no_deeper_is_run() -> None:
    backbone, images = small(), pictures()
    with torch.no_grad():
        features = backbone.encode(backbone.embed(images), layers=(0, 1, -1))
        torch.testing.assert_close(backbone.network.norm(features[1].tokens), features[-1].tokens)
        torch.testing.assert_close(backbone.network.blocks3[1](features[0].tokens), features[1].tokens)
        backbone.network.blocks3[1] = nn.Identity()
        shallow = backbone.encode(backbone.embed(images), layers=(0,))
    assert list(shallow) == [0]
    assert torch.equal(shallow[0].tokens, features[0].tokens)


def test_another_image_size_than_built_for() -> None:
    backbone, images = small(size=(16, 24)), pictures((40, 16))
    views = drawn(backbone, images)
    assert (backbone.built_for, views.grid) == ((4, 6), (10, 4))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images).tokens, backbone.network(normalised(images)), atol=1e-5, rtol=1e-5)
        masked = backbone.encode(backbone.embed(images), views, layers=(1,))[1].tokens
        backbone.network.pos_embed.data = backbone.network.positions((10, 4))[None]
        reference = dense(backbone, normalised(images), views)
    torch.testing.assert_close(masked, reference.tokens, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels(channels: int) -> None:
    mean, std = [0.1 * (c + 1) for c in range(channels)], [0.2 + 0.1 * c for c in range(channels)]
    backbone, images = create_convvit("convvit_micro", (16, 16), mean, std), pictures((16, 16), channels=channels)
    pixels = (images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert backbone.channels == channels
    with torch.no_grad():
        torch.testing.assert_close(backbone(images).tokens, backbone.network(pixels), atol=1e-5, rtol=1e-5)


def test_the_pyramid_is_the_networks_of_normalised_images() -> None:
    backbone, images = small(), pictures()
    with torch.no_grad():
        for given in (images, normalised(images)):
            for ours, theirs in zip(backbone.pyramid(given), backbone.network.pyramid(normalised(images)), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_export_is_without_fusion() -> None:
    backbone = small()
    own = {f"network.{key}" for key in backbone.network.state_dict()}
    assert set(backbone.state_dict()) - own == {f"fusions.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}


def test_depth_of_parameters_for_layer_decay() -> None:
    backbone = small()
    depths = {name: backbone.param_depth(name) for name, _ in backbone.network.named_parameters()}
    early = (
        "pos_embed",
        "patch_embed1.norm.bias",
        "patch_embed4.weight",
        "blocks1.1.conv1.bias",
        "blocks2.0.attn.bias",
    )
    assert {depths[name] for name in early} == {0}
    assert (depths["blocks3.0.norm1.bias"], depths["blocks3.1.attn.qkv.weight"], depths["norm.weight"]) == (1, 2, 3)


def test_named_sizes_are_those_of_the_papers() -> None:
    named = {name: (s.dims, s.depths, s.num_heads, s.mlp_ratios, s.patch) for name, s in SIZES.items()}
    assert named["convvit_base"] == ((256, 384, 768), (2, 2, 11), 12, (4, 4, 4), 16)
    assert named["convvit_base_wide"] == ((256, 384, 768), (2, 2, 11), 12, (8, 8, 4), 16)
    assert named["convvit_large"] == ((384, 768, 1024), (2, 2, 23), 16, (8, 8, 4), 16)
    assert named["convvit_micro"][-1] == 4


def made(overrides: dict[str, Any], name: str = "convvit_base", size: tuple[int, int] = (32, 32)) -> ConvViT:
    with torch.device("meta"):
        return create_convvit(name, size, MEAN, STD, overrides=overrides)


def test_overrides_and_what_rebuilds_the_network() -> None:
    backbone = made({"width": 96, "depth": 1, "num_heads": 6, "patch_size": 8})
    name, arguments = backbone.origin
    assert arguments == {"strides": (2, 2, 2), "dims": (32, 48, 96), "depths": (2, 2, 1), "num_heads": 6,
                         "mlp_ratios": (4, 4, 4)}  # fmt: skip
    assert (backbone.width, backbone.depth, backbone.patch, backbone.grid((32, 16))) == (96, 1, (8, 8), (4, 2))
    assert made({"embed_dim": 104, "num_heads": 4}).network.sizes.dims == (36, 52, 104)  # 34.7 and 52, in fours
    again = made({key: list(v) if isinstance(v, tuple) else v for key, v in arguments.items()}, name)
    shapes = {key: tensor.shape for key, tensor in backbone.state_dict().items()}
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes
    assert [made({"patch_size": p}).network.sizes.strides for p in (16, 4)] == [(4, 2, 2), (1, 2, 2)]


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: made({}, "convit_base"), "did you mean convvit_base"),
        (lambda: made({}, "resnet"), "did you mean convvit_base, convvit_base_wide"),
        (lambda: made({"heads": 2}), "did you mean num_heads"),
        (lambda: made({"width": 96, "dims": (1, 2, 3)}), "both width and dims"),
        (
            lambda: made({"patch_size": 14}),
            "backbone.patch_size 14: the patches .* are a multiple of 4",
        ),
        (lambda: made({"depths": (1, 2)}), r"depths cannot be \(1, 2\)"),
        (lambda: made({"strides": (4, 0, 2)}), "strides cannot be"),
        (lambda: made({"num_heads": 7}), "7 heads do not divide ConvViT's width 768"),
        (lambda: made({"width": 90, "num_heads": 3}), "divisible by 4"),
        (lambda: made({}, size=(30, 32)), "30×32 px cannot be cut into ConvViT's cells of 16×16"),
        (lambda: small().embed(pictures((16, 18))), "16×18 px cannot be cut"),
        (lambda: small().encode(small().embed(pictures()), mask_token=torch.zeros(16)), "cannot replace them"),
    ],
)
def test_mistakes_are_one_line(call: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def whole_method(name: str, ratio: float, cell: int) -> Method:
    """DMJD as published: two views, HOG, a decoder of 8 blocks of width 512 with hidden 4096."""
    backbone = create_convvit(name, (224, 224), MEAN, STD)
    target = Hog(backbone.patch, MEAN, STD)
    method = convmae(backbone, Masking(ratio, cell=cell), target, (224, 224), 512, 8, 16, 8.0)
    return jd(dm(method), target)


@pytest.mark.parametrize(
    ("name", "ratio", "cell", "bar"),
    [("convvit_base_wide", 0.75, 1, 62.5), ("convvit_base_wide", 0.6, 2, 78.0), ("convvit_large", 0.75, 1, 128.5)],
)
def test_forward_cost(name: str, ratio: float, cell: int, bar: float) -> None:
    """GFLOP an image by PyTorch's counter. The dense form needs 102, 111 and 240."""
    with torch.device("meta"):
        method, image = whole_method(name, ratio, cell), torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
        cost = forward_gflops(lambda: method(image))
    assert 0.97 * bar < cost <= bar


def saved_bytes(method: Method, image: Tensor, views: Views) -> int:
    """What autograd keeps for the backward pass, each storage once, without parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in method.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # held, so that no number is given twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        method(image, views)
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


def test_saved_activations() -> None:
    with torch.device("meta"):
        method, image = whole_method("convvit_base_wide", 0.75, 1), torch.zeros(1, 3, 224, 224)
        views = method.draw(image)
        reference = Method(DenseConvViT.of(method.backbone), method.masking, list(method.branches))
        assert saved_bytes(method, image, views) <= 0.65 * saved_bytes(reference, image, views)


def test_half_precision_stays_near_single() -> None:
    """Under autocast, as a step runs: the zero-filled map has the dtype of what is laid into it."""
    backbone, images = small(), pictures()
    stem, views = backbone.embed(images), drawn(backbone, images)
    with torch.no_grad():
        single = backbone.encode(stem, views)[-1].tokens
        with torch.autocast("cpu", torch.bfloat16):
            half = backbone.encode(stem, views)[-1].tokens
    assert not torch.equal(half.float(), single)
    assert float((half.float() - single).abs().mean() / single.abs().mean()) < 0.02
