"""upernet: the heads' shapes, sizes and wiring."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from remask.downstream.segment.upernet import POOLS, FcnHead, LinearHead, UperNet, scaled


def maps(*channels: int, side: int = 16, batch: int = 2) -> list[torch.Tensor]:
    generator = Generator().manual_seed(0)
    return [torch.randn(batch, c, side >> i, side >> i, generator=generator) for i, c in enumerate(channels)]


@pytest.mark.parametrize("channels", [(8, 12, 16, 16), (8, 16, 32), (8,)])
def test_scores_have_the_size_of_the_finest_map(channels: tuple[int, ...]) -> None:
    head = UperNet(channels, classes=5, width=16, norm="group")
    scores = head(maps(*channels))
    assert scores.shape == (2, 5, 16, 16)
    scores.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_as_large_as_the_published_heads() -> None:
    """MAE's and BEiT's for ViT-B on ADE20K, counted from the layers of mmsegmentation's UPerHead and FCNHead."""

    def conv(inputs: int, width: int, kernel: int) -> int:
        return inputs * width * kernel**2 + 2 * width

    with torch.device("meta"):
        head, auxiliary = UperNet((768,) * 4, 150, 768), FcnHead(768, 150)
    pools, bottleneck = 4 * conv(768, 768, 1), conv(5 * 768, 768, 3)
    levels, fusion = 3 * (conv(768, 768, 1) + conv(768, 768, 3)), conv(4 * 768, 768, 3)
    assert parameters(head) == pools + bottleneck + levels + fusion + 768 * 150 + 150 == 67_963_542
    assert parameters(auxiliary) == conv(768, 256, 3) + 256 * 150 + 150


def test_wiring_by_hand() -> None:
    torch.manual_seed(0)
    head, (fine, middle, coarse) = UperNet((6, 10, 14), 3, 8).eval(), maps(6, 10, 14)
    assert POOLS == (1, 2, 3, 6)
    parts = [scaled(head.pools[i](F.adaptive_avg_pool2d(coarse, side)), (4, 4)) for i, side in enumerate((1, 2, 3, 6))]
    top = head.bottleneck(torch.cat([coarse, *parts], 1))
    second = head.laterals[1](middle) + F.interpolate(top, scale_factor=2, mode="bilinear")
    first = head.laterals[0](fine) + F.interpolate(second, scale_factor=2, mode="bilinear")
    levels = [head.levels[0](first), scaled(head.levels[1](second), (16, 16)), scaled(top, (16, 16))]
    expected = head.classify(head.fusion(torch.cat(levels, 1)))
    assert torch.allclose(head([fine, middle, coarse]), expected, atol=1e-6)


def test_scaling_does_not_align_corners() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4)
    assert scaled(ramp, (1, 8)).flatten().tolist() == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    assert scaled(ramp, (1, 4)) is ramp


def test_small_heads() -> None:
    features = maps(8)[0]
    linear = LinearHead(8, 4)
    assert linear(features).shape == FcnHead(8, 4, width=6)(features).shape == (2, 4, 16, 16)
    assert parameters(linear) == 2 * 8 + 8 * 4 + 4
    normal = (features - features.mean((0, 2, 3), keepdim=True)) / features.std((0, 2, 3), keepdim=True, unbiased=False)
    assert torch.allclose(linear(features), linear.classify(normal), atol=1e-4)
