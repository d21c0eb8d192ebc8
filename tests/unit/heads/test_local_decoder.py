"""heads/local_decoder.py: cells finer than tokens by transposed convolutions, coarser ones by means of tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.heads import Decoder
from remask.heads.local_decoder import CellLayer, LocalDecoder
from remask.masking import Masking
from remask.types import Features
from remask.views import Views

GRID = (4, 6)


def drawn() -> tuple[Features, Views]:
    views, g = Masking(0.5, views=2)(3, GRID, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    rows, visible = views.visible.shape
    return Features(torch.randn(rows, 1, 16, generator=g), torch.randn(rows, visible, 16, generator=g)), views


def transposed(step: nn.Linear, x: Tensor) -> Tensor:
    """A step of the layer as a transposed convolution over the whole grid [R, d, H, W]."""
    inner = step.out_features // 4
    weight = step.weight.view(2, 2, inner, -1).permute(3, 2, 0, 1)  # in, out, down, right
    bias = step.bias.view(2, 2, inner).permute(2, 0, 1)  # which differs by place here
    return F.conv_transpose2d(x, weight, stride=2) + bias.repeat(1, *x.shape[-2:])


@pytest.mark.parametrize("values_first", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_cells_of_tokens_are_transposed_convolutions_over_the_grid(steps: int, values_first: bool) -> None:
    torch.manual_seed(0)
    layer = CellLayer(16, steps, 5, values_first)
    for norm in layer.norms:
        nn.init.normal_(norm.weight)
    tokens = torch.randn(2, 24, 16)
    x = tokens.mT.unflatten(2, GRID)
    for i, step in enumerate(layer.steps):
        if i:
            norm = layer.norms[i - 1]
            x = F.gelu(F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.weight, norm.bias, 1e-6))
            x = x.permute(0, 3, 1, 2)
        x = transposed(step, x)  # type: ignore[arg-type]
    expected = F.conv2d(x, layer.values.weight[:, :, None, None], layer.values.bias)
    side = 2**steps
    assert expected.shape == (2, 5, 4 * side, 6 * side)
    found = layer(tokens)
    assert found.shape == (2, 24, 5 * side**2)
    for row in range(4):
        for column in range(6):
            cells = expected[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
            vector = cells if values_first else cells.permute(0, 2, 3, 1)
            assert torch.allclose(found[:, row * 6 + column], vector.flatten(1), atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_of_the_whole_grid_are_those_of_which_masked_ones_are_predicted(depth: int) -> None:
    torch.manual_seed(0)
    decoder = Decoder(16, 10, GRID, width=32, depth=depth, heads=2)
    features, views = drawn()
    tokens = decoder.grid_tokens(features, views)
    assert tokens.shape == (6, 24, 32)
    for row in range(6):
        expected = decoder(features, views)[row]
        assert torch.allclose(decoder.predict(tokens[row])[views.masked[row]], expected, atol=1e-5)


def test_a_masked_token_has_the_prediction_of_the_mean_of_its_patch() -> None:
    torch.manual_seed(0)
    decoder = Decoder(16, 10, GRID, width=32, depth=1, heads=2)
    norm = nn.LayerNorm(16)
    nn.init.normal_(norm.weight)
    head, (features, views) = LocalDecoder(norm, decoder, (2, 3)), drawn()
    found = head(features, views)
    normed = Features(norm(features.prefix), norm(features.tokens))
    tokens = decoder.grid_tokens(normed, views).unflatten(1, GRID)
    for row in range(6):
        for i, token in enumerate(views.masked[row].tolist()):
            top, left = token // 6 // 2 * 2, token % 6 // 3 * 3
            mean = tokens[row, top : top + 2, left : left + 3].flatten(0, 1).mean(0)
            assert torch.allclose(found[row, i], decoder.predict(mean), atol=1e-5)
    assert head.describe() == "decoder of 1 block, width 32, means of 2×3 tokens"
    assert torch.equal(LocalDecoder(norm, decoder)(features, views), decoder(normed, views))
    assert torch.equal(LocalDecoder(None, decoder)(features, views), decoder(features, views))
