"""conv_decoder.py: data2vec 2.0's decoder against its words, and pooled rows."""

import pytest
import torch
import torch.nn.functional as F

from remask.errors import UserError
from remask.heads import ConvDecoder, Pooled
from remask.heads.conv_decoder import NOISE
from remask.masking import Masking
from remask.types import Features
from remask.views import Views


def drawn() -> Views:
    return Masking(0.6, views=2)(3, (4, 6), torch.Generator().manual_seed(0))


def features(views: Views) -> Features:
    g = torch.Generator().manual_seed(1)
    rows, visible = views.visible.shape
    return Features(torch.randn(rows, 1, 16, generator=g), torch.randn(rows, visible, 16, generator=g))


@pytest.mark.parametrize(("width", "kernel"), [(16, 3), (32, 5)])
def test_blocks_are_written_out(width: int, kernel: int) -> None:
    torch.manual_seed(0)
    views, decoder = drawn(), ConvDecoder(16, 10, width, depth=2, kernel=kernel, groups=4)
    given = features(views)
    torch.manual_seed(5)
    prediction = decoder(given, views)
    torch.manual_seed(5)
    noise = NOISE * torch.randn(6, 24, 16)
    for row in range(6):
        x = noise[row]
        x[views.visible[row]] = given.tokens[row]
        x = x.T.reshape(1, 16, 4, 6)
        for conv in decoder.blocks:
            y = F.conv2d(x, conv.weight, conv.bias, padding=kernel // 2, groups=4)
            mean, var = y.mean(1, keepdim=True), y.var(1, unbiased=False, keepdim=True)
            y = F.gelu((y - mean) / (var + 1e-5).sqrt())
            x = y + x if x.shape == y.shape else y
        expected = decoder.predict(x.flatten(2)[0].T)[views.masked[row]]
        assert torch.allclose(prediction[row], expected, atol=1e-5)
    assert decoder.describe() == f"decoder of 2 convolutions {kernel}×{kernel}, width {width}"


def test_pooled_rows() -> None:
    views = drawn()
    given = features(views)
    assert torch.equal(Pooled(16, 16)(given, views), given.prefix)
    assert torch.allclose(Pooled(16, 16, "mean")(given, views)[:, 0], given.tokens.mean(1))
    several = given._replace(prefix=torch.cat([given.prefix, 3 * given.prefix, torch.ones(6, 1, 16)], dim=1))
    assert torch.allclose(Pooled(16, 16, class_tokens=2)(several, views), 2 * given.prefix)
    wider = Pooled(16, 9)
    assert torch.equal(wider(given, views), wider.predict(given.prefix))
    assert wider.describe() == "linear on the class token"


def test_widths_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        ConvDecoder(16, 10, width=40)
    views = Masking(0.5)(2, (2, 4, 4), torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="rows and columns"):
        ConvDecoder(16, 10, 16)(Features(torch.zeros(2, 1, 16), torch.zeros(2, 16, 16)), views)
