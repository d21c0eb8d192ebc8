"""heads.py: the decoder's shortcuts against a plain dense decoder, alignment of the projector, rows of every mode."""

import copy
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.heads import Decoder, Linear, ProjectionHead, Projector, TokenDecoder
from remask.masking import Masking
from remask.tokens import sincos_positions, split_tokens
from remask.types import Features
from remask.views import Views

B, V, D, P = 3, 2, 12, 10


def drawn(grid: tuple[int, int] = (4, 6), ratio: float = 0.6) -> Views:
    return Masking(ratio, views=V)(B, grid, torch.Generator().manual_seed(0))


def visible_features(views: Views, prefix: int, seed: int = 1) -> Features:
    g = torch.Generator().manual_seed(seed)
    rows, seen = views.visible.shape
    made = (torch.randn(rows, n, D, generator=g, requires_grad=True) for n in (prefix, seen))
    return Features(*made)


def dense(decoder: Decoder, features: Features, views: Views) -> Tensor:
    """MAE's decoder as published: un-shuffled to raster order, positions added, all blocks over all tokens."""
    table = sincos_positions(views.grid, decoder.width)
    outputs = []
    for row in range(len(features.tokens)):
        visible = iter(decoder.embed(features.tokens[row]))
        hidden = views.mask.flatten(0, 1)[row]
        raster = torch.stack([decoder.mask_token[0, 0] if hidden[i] else next(visible) for i in range(len(hidden))])
        x = torch.cat([decoder.embed(features.prefix[row]), raster + table])
        for block in decoder.blocks:
            x = x + attention(block.attn, block.norm1(x))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        x = decoder.predict(decoder.norm(x))[features.prefix.shape[1] :]
        outputs.append(x[hidden])
    return torch.stack(outputs)


def attention(module: nn.Module, x: Tensor) -> Tensor:
    q, k, v = module.qkv(x).chunk(3, dim=-1)
    width = q.shape[-1] // module.num_heads
    heads = []
    for h in range(module.num_heads):
        part = slice(h * width, (h + 1) * width)
        weights = (q[:, part] @ k[:, part].T / width**0.5).softmax(-1)
        heads.append(weights @ v[:, part])
    return module.proj(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("prefix", "depth"), [(1, 2), (0, 1), (5, 3)])
def test_decoder_equals_a_dense_decoder_with_all_gradients(prefix: int, depth: int, fused: bool) -> None:
    views = drawn()
    torch.manual_seed(0)
    short = Decoder(D, P, (4, 6), width=16, depth=depth, heads=4)
    nn.init.normal_(short.mask_token)
    for block in short.blocks:
        block.attn.fused_attn = fused
    plain = copy.deepcopy(short)
    ours, theirs = visible_features(views, prefix), visible_features(views, prefix)
    prediction, reference = short(ours, views), dense(plain, theirs, views)
    assert prediction.shape == (V * B, views.hidden, P)
    assert torch.allclose(prediction, reference, atol=1e-5)
    weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(2))
    (prediction * weights).sum().backward()
    (reference * weights).sum().backward()
    expected = dict(plain.named_parameters())
    for name, parameter in short.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-4), name
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_what_enters_at_a_masked_place_is_projected_once_per_place_or_row(depth: int) -> None:
    """Whichever are fewer: places of the grid, or masked rows of all views."""
    decoder = Decoder(D, P, (4, 6), width=16, depth=depth, heads=4)
    few, many = (Masking(0.5)(images, (4, 6), torch.Generator().manual_seed(3)) for images in (1, 5))
    for views, projected in ((few, 12), (many, 24)):
        features = visible_features(views, 1)
        assert torch.allclose(decoder(features, views), dense(decoder, features, views), atol=1e-5)
        rows = []
        handle = decoder.blocks[0].attn.qkv.register_forward_pre_hook(
            lambda _, given, rows=rows: rows.append(given[0].flatten(0, -2).shape[0])
        )
        decoder(features, views)
        handle.remove()
        assert sum(rows) == projected + 13 * len(features.tokens)


def test_decoder_on_another_grid_takes_that_grids_positions() -> None:
    decoder, views = Decoder(D, P, (4, 6), width=16, depth=2, heads=4), drawn((3, 4))
    features = visible_features(views, 1)
    assert torch.allclose(decoder(features, views), dense(decoder, features, views), atol=1e-5)


def test_decoder_keeps_a_stored_position_table() -> None:
    decoder = Decoder(D, P, (4, 6), width=16, depth=1, heads=4)
    assert torch.equal(decoder.state_dict()["positions"], sincos_positions((4, 6), 16))
    assert "positions" not in dict(decoder.named_parameters())


def test_projector_is_three_norms_and_one_predictor() -> None:
    projector = Projector(D, P, width=8)
    linear = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    norms = [m for m in projector.modules() if isinstance(m, nn.LayerNorm)]
    assert [(m.in_features, m.out_features) for m in linear] == [(D, 8), (8, 8), (8, 8), (8, P)]
    assert [m.elementwise_affine for m in norms] == [True, True, False]
    assert all(m.eps == 1e-6 for m in norms)
    assert sum(isinstance(m, nn.GELU) for m in projector.modules()) == 2


def test_projector_predicts_token_by_token() -> None:
    views, projector = drawn(), Projector(D, P, width=8)
    features = visible_features(views, 1)
    straight = projector(features, views)
    order = torch.randperm(features.tokens.shape[1], generator=torch.Generator().manual_seed(0))
    permuted = projector(Features(features.prefix, features.tokens[:, order]), views)
    assert torch.allclose(permuted, straight[:, order], atol=1e-6)
    assert not torch.allclose(permuted, straight)


@pytest.mark.parametrize("region", ["masked", "visible"])
@pytest.mark.parametrize("head", [Linear, Projector])
def test_heads_select_their_region_from_replaced_tokens(head: type, region: str) -> None:
    views = drawn()
    torch.manual_seed(0)
    module = head(D, P, region=region)
    tokens = torch.randn(V * B, 24, D)
    predictions = module(Features(tokens[:, :0], tokens), views)
    hidden = views.mask.flatten(0, 1)
    wanted = torch.stack([row[m if region == "masked" else ~m] for row, m in zip(tokens, hidden, strict=True)])
    assert predictions.shape == (V * B, *wanted.shape[1:2], P)
    if region == "masked":  # a backbone that dropped them has nothing to say of them
        with pytest.raises(ValueError, match="dropped them"):
            module(Features(tokens[:, :0], wanted), views)
        return
    # visible tokens alone, as a backbone that drops the others returns them
    alone = module(Features(tokens[:, :0], wanted), views)
    assert torch.allclose(predictions, alone, atol=1e-6)


def test_linear_is_linear() -> None:
    views, head = drawn(), Linear(D, P)
    tokens = torch.randn(V * B, 24, D)
    by_hand = tokens @ head.predict.weight.T + head.predict.bias
    wanted = torch.stack([row[m] for row, m in zip(by_hand, views.mask.flatten(0, 1), strict=True)])
    assert torch.allclose(head(Features(tokens[:, :0], tokens), views), wanted, atol=1e-6)


def whole_features(views: Views, prefix: int, fine: tuple[int, int] = (1, 1)) -> Features:
    """Of a backbone that saw all tokens, each as large as `fine` cells of the masks' grid."""
    g, count = torch.Generator().manual_seed(1), views.mask.shape[-1] // (fine[0] * fine[1])
    return Features(*(torch.randn(V * B, n, D, generator=g) for n in (prefix, count)))


def rows_of(region: str, everything: Tensor, views: Views) -> Tensor:
    hidden = views.mask.flatten(0, 1)
    return torch.stack([x[m if region == "masked" else ~m] for x, m in zip(everything, hidden, strict=True)])


@pytest.mark.parametrize("region", ["masked", "visible"])
@pytest.mark.parametrize(("prefix", "depth", "fine"), [(1, 2, (1, 1)), (0, 1, (1, 1)), (0, 1, (2, 3)), (1, 0, (4, 1))])
def test_token_decoder_is_plain_blocks_over_all_tokens(
    prefix: int, depth: int, fine: tuple[int, int], region: str
) -> None:
    views = drawn()
    torch.manual_seed(0)
    decoder = TokenDecoder(D, P, 16, depth, 4, cells_per_token=fine, region=region)
    features = whole_features(views, prefix, fine)
    by_hand = []
    for front, tokens in zip(*features, strict=True):
        x = decoder.embed(torch.cat([front, tokens]))
        for block in decoder.blocks:
            x = x + attention(block.attn, block.norm1(x))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        by_hand.append(decoder.predict(decoder.norm(x))[prefix:])
    wanted = rows_of(region, split_tokens(torch.stack(by_hand), (4 // fine[0], 6 // fine[1]), fine), views)
    assert wanted.shape[-1] == P
    assert torch.allclose(decoder(features, views), wanted, atol=1e-5)


def test_a_token_decoder_has_no_positions() -> None:
    """Tokens that change places take their predictions with them, and masked ones are no different from others."""
    views, order = drawn(), torch.randperm(24, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    decoder, features = TokenDecoder(D, P, 16, 2, 4), whole_features(views, 1)
    straight = decoder(features, views)
    moved = Views(views.mask[..., order], views.grid, views.hidden)
    permuted = decoder(Features(features.prefix, features.tokens[:, order]), moved)
    places = [order[m].argsort() for m in moved.mask.flatten(0, 1)]
    assert torch.allclose(torch.stack([x[p] for x, p in zip(permuted, places, strict=True)]), straight, atol=1e-5)
    assert not torch.allclose(permuted, straight, atol=1e-3)
    assert not [name for name, _ in decoder.named_parameters() if "position" in name or "token" in name]


def test_token_decoder_norms_have_their_own_eps() -> None:
    norms = [m for m in TokenDecoder(D, P, 16, 2, 4, eps=1e-5).modules() if isinstance(m, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [1e-5] * 5


@pytest.mark.parametrize("region", ["masked", "visible"])
def test_projector_of_finer_masks_predicts_every_part_of_a_token(region: str) -> None:
    views, fine = drawn(), (2, 3)
    torch.manual_seed(0)
    projector, features = Projector(D, P, 8, region, cells_per_token=fine), whole_features(views, 1, fine)
    predicted = projector(features, views)
    everything = split_tokens(projector.predict(projector.project(features.tokens)), (2, 2), fine)
    assert torch.allclose(predicted, rows_of(region, everything, views), atol=1e-6)
    other = features.tokens.clone()
    other[:, 3] += 1  # the last token: rows 2 and 3, columns 3 to 5
    changed = (projector(Features(features.prefix, other), views) - predicted).abs().amax(-1) > 0
    inside = (views.ids(region) // 6 >= 2) & (views.ids(region) % 6 >= 3)
    assert torch.equal(changed, inside)


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_align_predicts_all_that_is_seen(kind: Literal["linear", "mlp"], prefix: int) -> None:
    """Prefix tokens, then the visible ones, of a backbone that dropped the others or has them all."""
    views = drawn()
    torch.manual_seed(0)
    head, whole = ProjectionHead(D, P, kind), whole_features(views, prefix)
    seen = rows_of("visible", whole.tokens, views)
    x, part = torch.cat([whole.prefix, seen], dim=1), head.project
    by_hand = part(x) if kind == "linear" else part.fc2(F.gelu(part.fc1(x)))
    for features in (whole, Features(whole.prefix, seen)):
        assert torch.allclose(head(features, views), by_hand, atol=1e-6)
        visible = ProjectionHead(D, P, kind, "visible")
        visible.load_state_dict(head.state_dict())
        assert torch.allclose(visible(features, views), by_hand[:, prefix:], atol=1e-6)


def test_a_projector_of_one_layer() -> None:
    head = Projector(D, P, 8, layers=1)
    assert len(head.project) == 2
    assert head.describe() == "projector of 1 layer, width 8, and predictor"


def test_words() -> None:
    assert TokenDecoder(D, P, 16, 1, 4).describe() == "decoder of 1 block, width 16, over all tokens"
    assert TokenDecoder(D, P, 16, 2, 4).describe() == "decoder of 2 blocks, width 16, over all tokens"
    assert Decoder(D, P, (4, 6), 16, 2, 4).describe() == "decoder of 2 blocks, width 16"
    assert Projector(D, P, 8).describe() == "projector of 3 layers, width 8, and predictor"
    assert Linear(D, P).describe() == ProjectionHead(D, P).describe() == "linear"
    assert ProjectionHead(D, P, "mlp").describe() == "MLP of 2 layers"
