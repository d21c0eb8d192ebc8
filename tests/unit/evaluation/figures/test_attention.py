"""evaluation/attention.py: the weights that the network itself computes, for every make of ViT, and their picture."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.evaluation.figures.attention import attention_maps, attention_sheet, overlay

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def network(kind: str) -> Backbone:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2}
    if kind == "beit":
        tables = {"use_rel_pos_bias": True}
        made: Any = create_beit("beit_micro", (16, 24), MEAN, STD, overrides={**sizes, **tables})
    elif kind == "convvit":
        sizes = {"embed_dim": 32, "depth": 3, "num_heads": 2}
        return create_convvit("convvit_micro", (16, 24), MEAN, STD, overrides=sizes, drop_path=0.5)
    else:
        made = create_vit("vit_micro", (16, 24), MEAN, STD, overrides=sizes, drop_path=0.5)
    for name, parameter in made.network.named_parameters():
        if "bias" in name or "gamma" in name:  # tables and biases begin at 0
            torch.nn.init.normal_(parameter)
    return made


def images(size: tuple[int, int] = (16, 24), channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, channels, *size), generator=generator, dtype=torch.uint8)


def blocks(backbone: Any) -> Any:
    return backbone.network.blocks3 if hasattr(backbone.network, "blocks3") else backbone.network.blocks


def own_weights(backbone: Backbone, block: int, given: Tensor) -> Tensor:
    """What the network puts through its dropout of attention weights, where attention is not fused."""
    attention, seen = blocks(backbone)[block].attn, list[Tensor]()
    attention.fused_attn = False
    hook = attention.attn_drop.register_forward_hook(lambda module, inputs, out: seen.append(out))
    with torch.no_grad():
        backbone.encode(backbone.embed(given))
    hook.remove()
    attention.fused_attn = True
    return seen[0]


@pytest.mark.parametrize("kind", ["vit", "beit", "convvit"])
@pytest.mark.parametrize(("block", "size"), [(-1, (16, 24)), (0, (16, 24)), (-1, (16, 16))])
def test_weights_are_the_network_s_own(kind: str, block: int, size: tuple[int, int]) -> None:
    backbone, given = network(kind), images(size)
    backbone.network.eval()
    found = attention_maps(backbone, given, block)
    own, grid, prefix = own_weights(backbone, block, given), backbone.grid(size), backbone.prefix
    expected = own[:, :, 0, 1:] if prefix else own.mean(2)
    assert found.shape == (2, 2, *grid)
    torch.testing.assert_close(found.flatten(2), expected, atol=1e-6, rtol=1e-4)
    assert float(found.flatten(2).sum(-1).max()) <= 1 + 1e-5


def test_of_several_class_tokens_the_mean_is_shown() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    backbone = create_vit("vit_micro", (16, 24), MEAN, STD, overrides=sizes, class_tokens=3).eval()
    torch.nn.init.normal_(backbone.network.reg_token)
    own = own_weights(backbone, -1, images())
    found = attention_maps(backbone, images())
    torch.testing.assert_close(found.flatten(2), own[:, :, :3, 3:].mean(2), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found.flatten(2), own[:, :, 0, 3:], atol=1e-4)


def test_mode_is_evaluation_and_restored() -> None:
    backbone = network("vit")
    backbone.network.train()
    first, second = attention_maps(backbone, images()), attention_maps(backbone, images())
    assert torch.equal(first, second)
    assert all(module.training for module in backbone.network.modules())
    assert not blocks(backbone)[-1].attn._forward_pre_hooks


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_networks_without_plain_attention(kind: str) -> None:
    sizes = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}
    if kind == "swin":
        backbone: Backbone = create_swin("swin_micro", (16, 16), MEAN, STD, overrides=sizes)
    else:
        backbone = create_hierarchical("resnet10t", (32, 32), MEAN, STD)
    with pytest.raises(UserError, match="no plain attention over all tokens") as caught:
        attention_maps(backbone, images((32, 32)))
    assert "\n" not in str(caught.value)


def test_block_that_is_not_there() -> None:
    with pytest.raises(UserError, match="block 3 does not exist"):
        attention_maps(network("vit"), images(), 3)


def test_overlay_is_bright_where_attention_is() -> None:
    attention = torch.tensor([[0.0, 0.1], [0.2, 0.4]])
    shown = overlay(torch.full((8, 12, 3), 100, dtype=torch.uint8), attention).float().mean(-1)
    assert shown.shape == (8, 12)
    cells = [float(shown[row, column]) for row in (0, 7) for column in (0, 11)]
    assert cells == sorted(cells)
    assert float(shown[:4, :6].std()) == 0
    assert cells[-1] > 2 * cells[0]
    assert overlay(torch.zeros(8, 12, 3, dtype=torch.uint8), torch.zeros(2, 2)).float().std() < 5


@pytest.mark.parametrize("channels", [1, 3])
def test_sheet_has_a_row_a_picture_and_a_column_a_head(channels: int) -> None:
    one, three = (
        Image.open(io.BytesIO(attention_sheet(images((16, 16), channels)[:n], torch.rand(n, 3, 4, 4)))) for n in (1, 2)
    )
    assert one.width == three.width > 4.5 * 1.6 * 150
    assert three.height > 1.5 * one.height
    assert np.asarray(one.convert("RGB")).std() > 10
