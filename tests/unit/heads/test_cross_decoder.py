"""cross_decoder.py: against the paper's formulas written out row by row, and what a row's prediction depends on."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.heads import CrossDecoder
from remask.heads.cross_decoder import CrossBlock
from remask.masking import Masking
from remask.tokens import sincos_positions
from remask.types import Features
from remask.views import Views

D, P, GRID = 12, 10, (4, 6)


def drawn(batch: int = 3, **settings: object) -> Views:
    settings = {"ratio": 0.6, "views": 2, **settings}
    return Masking(**settings)(batch, GRID, torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def maps(views: Views, count: int, prefix: int = 1) -> list[Features]:
    g = torch.Generator().manual_seed(1)
    rows, visible = views.visible.shape
    return [Features(*(torch.randn(rows, n, D, generator=g) for n in (prefix, visible))) for _ in range(count)]


def textbook(decoder: CrossDecoder, features: list[Features], ids: Tensor) -> Tensor:
    """2401.14391, section 3.3 and Eq. 1, one image, block, query and head at a time."""
    table, outputs = sincos_positions(GRID, decoder.width), []
    for row in range(len(ids)):
        tokens = [torch.cat([layer.prefix[row], layer.tokens[row]]) for layer in features]
        x = torch.stack([decoder.mask_token[0, 0] + table[i] for i in ids[row].tolist()])
        for k, block in enumerate(decoder.blocks):
            y = tokens[0]
            if decoder.fused is not None:
                y = sum(w * f for w, f in zip(decoder.fused.weights[k], tokens, strict=True))  # type: ignore[assignment]
                y = decoder.fused.norms[k](y)
            x = torch.stack([attended(block, query, y) for query in x])
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        outputs.append(decoder.predict(decoder.norm(x)))
    return torch.stack(outputs)


def attended(block: CrossBlock, x: Tensor, y: Tensor) -> Tensor:
    attention = block.attn
    q, (k, v) = attention.q(block.norm1(x)), attention.kv(y).chunk(2, dim=-1)
    width, mixed = len(q) // attention.num_heads, []
    for h in range(attention.num_heads):
        of = slice(h * width, (h + 1) * width)
        weights = torch.stack([q[of] @ key[of] for key in k]) / width**0.5
        mixed.append(weights.softmax(0) @ v[:, of])
    return x + attention.proj(torch.cat(mixed))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("count", "depth", "prefix"), [(1, 2, 1), (3, 2, 0), (4, 1, 5)])
def test_it_equals_the_formulas_with_all_gradients(count: int, depth: int, prefix: int, fused: bool) -> None:
    views = drawn()
    torch.manual_seed(0)
    ours = CrossDecoder(D, P, GRID, width=16, depth=depth, heads=4, maps=count)
    nn.init.normal_(ours.mask_token)
    for block in ours.blocks:
        block.attn.fused_attn = fused
    theirs, features = copy.deepcopy(ours), maps(views, count, prefix)
    prediction = ours(features if count > 1 else features[0], views)
    expected = textbook(theirs, features, views.masked)
    assert prediction.shape == (6, views.hidden, P)
    assert torch.allclose(prediction, expected, atol=1e-5)
    weights = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(2))
    (prediction * weights).sum().backward()
    (expected * weights).sum().backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad, reference[name].grad, rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("predicted", ["once", 0.3])
def test_a_token_is_predicted_alike_whichever_others_are(predicted: str | float) -> None:
    views = drawn(predicted=predicted)
    torch.manual_seed(0)
    some = CrossDecoder(D, P, GRID, width=16, depth=2, heads=4, maps=3, region="predicted")
    every, features = copy.deepcopy(some), maps(views, 3)
    every.region = "masked"
    few, many = some(features, views), every(features, views)
    for row in range(len(few)):
        chosen = torch.isin(views.masked[row], views.predicted[row])
        assert 0 < int(chosen.sum()) == views.predictions < views.hidden
        assert torch.allclose(few[row], many[row][chosen], atol=1e-6)


def test_first_queries_are_projected_for_the_fewer_of_places_and_rows() -> None:
    """16 rows of 12 tokens are more than 24 places: looked up after the projection; 1 row is less: before it."""
    torch.manual_seed(0)
    decoder, counted = CrossDecoder(D, P, GRID, width=16, depth=1, heads=4), []
    decoder.blocks[0].attn.q.register_forward_hook(lambda _, inputs, __: counted.append(inputs[0].shape[:-1].numel()))
    many, few = drawn(8), drawn(1, views=1)
    for views in (many, few):
        features = maps(views, 1)[0]
        assert torch.allclose(decoder(features, views), textbook(decoder, [features], views.masked), atol=1e-5)
    assert counted[0] == 24 < many.masked.numel()
    assert few.masked.numel() == few.hidden < 24
    assert few.hidden in counted


def test_another_grid_has_its_own_positions_and_checkpointing_changes_no_number() -> None:
    views = Masking(0.5, views=2)(2, (3, 2), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    decoder, here = (CrossDecoder(D, P, grid, width=16, depth=2, heads=4, maps=2) for grid in (GRID, (3, 2)))
    here.load_state_dict(decoder.state_dict(), strict=True)
    features = maps(views, 2)
    plain = decoder(features, views)
    assert torch.equal(plain, here(features, views))
    assert not [key for key in decoder.state_dict() if "positions" in key], "a constant is no weight"
    decoder.checkpointing = True
    assert torch.equal(plain, decoder(features, views))


def test_it_says_what_it_is() -> None:
    assert CrossDecoder(D, P, GRID, 16, 1, 4).describe() == "cross decoder of 1 block, width 16"
    assert CrossDecoder(D, P, GRID, 16, 2, 4).describe() == "cross decoder of 2 blocks, width 16"
