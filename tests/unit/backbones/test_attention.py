"""backbones/attention.py: some queries alone, and the class token's; the weights themselves are held by the figures."""

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones import Backbone
from remask.backbones.attention import attending_blocks, attention_weights, class_attention
from remask.backbones.beit import create_beit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.vit import create_vit

MEAN, STD = [0.5] * 3, [0.25] * 3
SIZES = {"embed_dim": 16, "depth": 3, "num_heads": 2}


def network(kind: str) -> Backbone:
    torch.manual_seed(0)
    create = create_beit if kind == "beit_micro" else create_vit
    return create(kind, (16, 24), MEAN, STD, overrides=SIZES).eval()


def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["vit_micro", "beit_micro"])
def test_some_queries_are_those_of_all(kind: str) -> None:
    backbone = network(kind)
    everything = attention_weights(backbone, images(), 2)
    assert everything.shape == (2, 2, 25, 25)
    assert torch.allclose(everything.sum(-1), torch.ones(2, 2, 25))
    assert torch.allclose(attention_weights(backbone, images(), 2, slice(3, 5)), everything[:, :, 3:5], atol=1e-6)
    assert torch.allclose(class_attention(backbone, images()), everything[:, :, 0, 1:].mean(1), atol=1e-6)


def test_it_is_in_full_precision_under_autocast() -> None:
    """In bf16 many tokens would have the same number."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = class_attention(network("vit_micro"), images())
    assert found.dtype == torch.float32
    assert all(len(row.unique()) == 24 for row in found)


def test_networks_without_plain_attention_have_no_such_blocks() -> None:
    assert len(attending_blocks(network("vit_micro"))) == 3
    assert not attending_blocks(create_hierarchical("resnet18", (64, 64), MEAN, STD))
