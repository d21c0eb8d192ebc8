"""fused.py: weighted sums of layers against loops (CrossMAE Eq. 1, MFF Eq. 2 and 3)."""

import math

import torch

from remask.heads import Decoder, Fused, FusedDecoder
from remask.masking import Masking
from remask.types import Features

D = 12


def layers(count: int, rows: int = 3, tokens: int = 5) -> list[Features]:
    g = torch.Generator().manual_seed(0)
    return [
        Features(torch.randn(rows, 1, D, generator=g), torch.randn(rows, tokens, D, generator=g)) for _ in range(count)
    ]


def test_free_weights_give_every_block_its_own_sum() -> None:
    torch.manual_seed(0)
    fused, given = Fused(D, 3, sums=2), layers(3)
    assert len(fused.projections) == 0
    sums = fused(given)
    for k, y in enumerate(sums):
        expected = torch.zeros(3, 6, D)
        for j, (prefix, tokens) in enumerate(given):
            expected += fused.weights[k, j] * torch.cat([prefix, tokens], dim=1)
        assert torch.allclose(y, fused.norms[k](expected), atol=1e-5)


def test_free_weights_start_with_variance_one_over_the_layers() -> None:
    torch.manual_seed(0)
    assert abs(Fused(D, 16, sums=4000).weights.std().item() - 1 / math.sqrt(16)) < 0.002


def test_softmax_weights_start_equal_and_all_layers_but_the_last_are_projected() -> None:
    torch.manual_seed(0)
    fused, given = Fused(D, 4, weights="softmax"), layers(4)
    assert len(fused.projections) == 3
    maps = [torch.cat(layer, dim=1) for layer in given]
    mean = (sum(project(x) for project, x in zip(fused.projections, maps, strict=False)) + maps[-1]) / 4
    assert torch.allclose(fused(given)[0], fused.norms[0](mean), atol=1e-5)
    with torch.no_grad():
        fused.weights.copy_(torch.tensor([[0.0, -100.0, -100.0, -100.0]]))
    assert torch.allclose(fused(given)[0], fused.norms[0](fused.projections[0](maps[0])), atol=1e-5)


def test_a_decoder_reads_the_sum() -> None:
    views = Masking(0.5)(3, (2, 5), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    fused, decoder = Fused(D, 2, weights="softmax"), Decoder(D, 7, (2, 5), width=16, depth=1, heads=2)
    head, given = FusedDecoder(fused, decoder), layers(2)
    (x,) = fused(given)
    expected = decoder(Features(x[:, :1], x[:, 1:]), views)
    assert torch.equal(head(given, views), expected)
    assert head.describe() == decoder.describe()
