"""heads/loss_decoder.py: MAE's decoder on masked views, and the same weights on every token of an image."""

import torch
from torch import Generator

from remask.heads import Decoder
from remask.heads.loss_decoder import LossDecoder
from remask.masking import Masking
from remask.tokens import sincos_positions, take
from remask.types import Features, Grid
from remask.views import Views


def head(depth: int = 2) -> LossDecoder:
    torch.manual_seed(0)
    return LossDecoder(12, (4, 6), 16, depth, 2)


def features(tokens: int, rows: int = 3) -> Features:
    random = Generator().manual_seed(1)
    return Features(torch.randn(rows, 1, 12, generator=random), torch.randn(rows, tokens, 12, generator=random))


def everything(grid: Grid) -> Views:
    n = grid[0] * grid[1]
    return Views(torch.ones(1, 3, n, dtype=torch.bool), grid, n)


def test_on_visible_tokens_it_is_the_decoder() -> None:
    ours, plain = head(), Decoder(12, 1, (4, 6), 16, 2, 2)
    missing = plain.load_state_dict(ours.state_dict(), strict=False).missing_keys
    assert missing == ["norm.bias", "predict.bias"]
    torch.nn.init.zeros_(plain.predict.bias)
    views = Masking(0.5)(3, (4, 6), Generator().manual_seed(0))
    assert torch.equal(ours(features(12), views), plain(features(12), views))


def test_of_an_image_seen_whole_mask_tokens_are_asked_at_every_place() -> None:
    for grid in ((4, 6), (2, 3)):
        ours, given, n = head(), features(grid[0] * grid[1]), grid[0] * grid[1]
        x = torch.cat([given.prefix, given.tokens], 1) @ ours.embed.weight.T + ours.embed.bias
        x = x + sincos_positions(grid, 16, prefix=1)
        x = torch.cat([x, (ours.mask_token + sincos_positions(grid, 16)).expand(3, -1, -1)], 1)
        for block in ours.blocks:
            x = block(x)
        expected = ours.predict(ours.norm(x))[:, 1 + n :]
        assert torch.allclose(ours(given, everything(grid)), expected, atol=1e-6)


def test_where_masked_tokens_were_replaced_the_visible_ones_are_read() -> None:
    ours, given = head(), features(24)
    views = Masking(0.5)(3, (4, 6), Generator().manual_seed(0))
    dropped = Features(given.prefix, take(given.tokens, views.visible))
    assert torch.equal(ours(given, views), ours(dropped, views))
