"""backbones/convvit_network.py: the official keys, drop path, classifiers, the pyramid, and positions of any grid."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.backbones.convvit import ConvViT
from remask.backbones.convvit_network import ConvBlock, ConvViTNetwork, Sizes
from remask.errors import UserError
from remask.tokens import sincos_positions
from remask.views import Views
from tests.dense_convvit import dense

SIZES = Sizes((1, 2, 2), (8, 12, 16), (2, 1, 2), 2, (3, 2, 4))


def network(size: tuple[int, int] = (16, 16), sizes: Sizes = SIZES, channels: int = 3, **keys: Any) -> ConvViTNetwork:
    torch.manual_seed(0)
    made = ConvViTNetwork(size, channels, sizes, **keys).eval()
    for parameter in made.parameters():  # biases that start at 0 would test nothing
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return made


def pixels(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def test_the_state_is_the_official_one() -> None:
    conv = ("norm1", "conv1", "conv2", "attn", "norm2", "mlp.fc1", "mlp.fc2")
    plain = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    layers = [f"patch_embed{i}.{part}" for i in (1, 2, 3) for part in ("proj", "norm")] + ["patch_embed4", "norm"]
    layers += [f"{block}.{part}" for block in ("blocks1.0", "blocks1.1", "blocks2.0") for part in conv]
    layers += [f"blocks3.{i}.{part}" for i in (0, 1) for part in plain]
    expected = {"pos_embed", *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))}
    assert set(network().state_dict()) == expected


def test_epsilons_are_the_official_ones() -> None:
    norms = {name: layer.eps for name, layer in network().named_modules() if isinstance(layer, nn.LayerNorm)}
    fine = {name for name in norms if name.startswith(("blocks3", "norm"))}
    assert {norms[name] for name in fine} == {1e-6}
    assert {norms[name] for name in norms.keys() - fine} == {1e-5}
    assert (len(fine), len(norms)) == (5, 5 + 3 + 6)


def test_drop_path_grows_over_all_blocks() -> None:
    net = network(drop_path=0.4)
    conv = [getattr(block.drop_path, "drop_prob", 0) for block in (*net.blocks1, *net.blocks2)]
    assert conv + [block.drop_path1.drop_prob for block in net.blocks3] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_drop_path_drops_whole_rows_in_training_only() -> None:
    torch.manual_seed(0)
    block, x = ConvBlock(12, 2, 0.8).train(), torch.randn(64, 2, 2, 12)
    moved = (block(x) - x).flatten(1).abs().amax(1) > 0
    assert 0 < int(moved.sum()) < 64
    assert ((block.eval()(x) - x).flatten(1).abs().amax(1) > 0).all()


def test_a_classifier_averages_or_takes_the_top_left_token() -> None:
    mean, first = network(classes=7), network(classes=7, pool="first")
    fresh = first.load_state_dict(mean.state_dict(), strict=False)
    assert fresh.missing_keys == ["norm.weight", "norm.bias"]
    assert fresh.unexpected_keys == ["fc_norm.weight", "fc_norm.bias"]
    images = pixels(16, 16)
    with torch.no_grad():
        tokens, norm, other = mean.forward_features(images), mean.fc_norm, first.norm
        averaged = F.layer_norm(tokens.mean(1), (16,), norm.weight, norm.bias, 1e-6)
        corner = F.layer_norm(tokens[:, 0], (16,), other.weight, other.bias, 1e-6)
        torch.testing.assert_close(mean(images), mean.head(averaged))
        torch.testing.assert_close(first(images), first.head(corner))


def test_the_table_is_trained_with_a_classifier_only() -> None:
    assert network(classes=7).pos_embed.requires_grad
    assert not network().pos_embed.requires_grad


def test_positions_of_another_grid_are_resized() -> None:
    net = network((16, 24))
    assert net.built_for == net.grid((16, 24)) == (4, 6)
    assert torch.equal(net.pos_embed[0], sincos_positions((4, 6), 16))
    table = net.pos_embed.unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    resized = F.interpolate(table, (6, 4), mode="bicubic", antialias=True)  # as many tokens, another grid
    torch.testing.assert_close(net.positions((6, 4)), resized.flatten(2)[0].T)
    assert net(pixels(40, 8)).shape == (2, 20, 16)


def test_the_pyramid_has_four_strides() -> None:
    net, images = network((24, 40), SIZES._replace(strides=(2, 2, 2))), pixels(24, 40)
    views = Views(torch.zeros(1, 2, 15, dtype=torch.bool), (3, 5), 0)
    with torch.no_grad():
        maps, tokens = net.pyramid(images), net(images)
        reference = dense(ConvViT(net, [0.5] * 3, [0.5] * 3), images, views)
    assert [tuple(level.shape) for level in maps] == [(2, 8, 12, 20), (2, 12, 6, 10), (2, 16, 3, 5), (2, 16, 2, 3)]
    torch.testing.assert_close(maps[0], reference.stage1, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[1], reference.stage2, atol=1e-5, rtol=1e-5)
    assert torch.equal(maps[2].flatten(2).transpose(1, 2), tokens)
    assert torch.equal(maps[3][:, :, 0, 0], maps[2][:, :, :2, :2].amax((2, 3)))
    assert torch.equal(maps[3][:, :, 1, 2], maps[2][:, :, 2, 4])  # the corner of an odd grid stands alone


def test_an_image_that_the_stride_does_not_divide() -> None:
    with pytest.raises(UserError, match="16×18 px cannot be cut into ConvViT's cells of 4×4"):
        network()(pixels(16, 18))
