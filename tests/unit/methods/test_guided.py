"""methods/guided.py: guides against formulas written out, what they need, and what is in their state."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.swin import create_swin
from remask.backbones.vit import ViT, create_vit
from remask.build.pretraining import build_method
from remask.errors import UserError
from remask.masking import Masking
from remask.method import Method, equation
from remask.methods import convmae, crossmae, data2vec, dm, guided_by_attention, guided_by_loss, jd, mae, simmim
from remask.methods.guided import CHUNK, LossGuide, per_cell
from remask.recipe import choose, load_recipe

MEAN, STD = [0.5] * 3, [0.25] * 3
SIZE = (16, 24)


def vit(depth: int = 2) -> ViT:
    torch.manual_seed(0)
    overrides = {"embed_dim": 16, "depth": depth, "num_heads": 2, "patch_size": 4}
    return create_vit("vit_micro", SIZE, MEAN, STD, overrides=overrides)


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(1))


def method(masking: Masking | float = 0.5) -> Method:
    return mae(vit(), masking, width=16, depth=1, heads=4)


PLUG_INS: dict[str, Callable[[Method], Method]] = {"attention": guided_by_attention, "loss": guided_by_loss}


def trained(made: Method, progress: float = 1.0) -> Method:
    """As if so much of the training were done, with heads that are no longer new."""
    with torch.no_grad():
        for p in made.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=Generator().manual_seed(5)))
    made.restart_average()
    made.after_step(progress)
    return made


def test_the_attention_is_that_of_the_class_token_written_out() -> None:
    made = guided_by_attention(method())
    assert made.average is not None
    assert made.guide is not None
    network, seen = made.average.backbone.network, list[Tensor]()
    hook = network.blocks[-1].norm1.register_forward_hook(lambda *given: seen.append(given[-1]))
    made.average.backbone(images())
    hook.remove()
    attention, x = network.blocks[-1].attn, seen[0]
    q, k, _ = (x @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=-1)
    expected = torch.zeros(3, 24)
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        for b in range(3):
            scores = torch.tensor([float(q[b, 0, own] @ k[b, t, own]) / math.sqrt(8) for t in range(25)])
            expected[b] += (scores.exp() / scores.exp().sum())[1:] / 2
    assert torch.allclose(made.guide(made.average, images(), (4, 6), 12), expected, atol=1e-6)


def test_tokens_of_a_cell_are_averaged() -> None:
    values = torch.arange(24.0).expand(2, -1)
    assert per_cell(values, (4, 6), (2, 3))[0].tolist() == [3.5, 5.5, 7.5, 15.5, 17.5, 19.5]
    assert torch.equal(per_cell(values, (4, 6), (4, 6)), values)
    assert per_cell(torch.arange(8.0)[None], (2, 2, 2), (1, 2, 2)).tolist() == [[2.0, 3.0, 4.0, 5.0]]


def test_the_predicted_loss_is_that_of_both_averages_on_the_whole_image() -> None:
    made = trained(guided_by_loss(method()))
    guide, average = made.guide, made.average
    assert isinstance(guide, LossGuide)
    assert average is not None
    features = average.backbone(images())
    head = guide.head
    x = torch.cat([head.embed(features.prefix), head.embed(features.tokens) + head.positions], 1)
    x = torch.cat([x, (head.mask_token + head.positions).expand(3, -1, -1)], 1)
    expected = head.predict(head.norm(head.blocks[0](x)))[:, 25:, 0]
    assert torch.allclose(guide.predicted(average, images()), expected, atol=1e-6)
    assert expected.std() > 1e-3, "nothing to rank"


@pytest.mark.parametrize(("progress", "count"), [(0.0, 0), (0.5, 3), (1.0, 6)])
def test_the_share_of_the_hardest_rises_with_the_training(progress: float, count: int) -> None:
    """α_t · M, of 12 hidden tokens half at the end; the others are drawn."""
    made = trained(guided_by_loss(method()), progress)
    guide = made.guide
    assert isinstance(guide, LossGuide)
    assert made.average is not None
    loss, given = guide.predicted(made.average, images()), guide(made.average, images(), (4, 6), 12)
    assert ((given > -math.inf).sum(1) == count).all()
    assert torch.equal(
        given[given > -math.inf].reshape(3, count),
        loss.gather(1, (given > -math.inf).nonzero()[:, 1].reshape(3, count)),
    )
    mask = made.draw(images(), Generator().manual_seed(0)).mask[0]
    hidden = loss.topk(count).indices if count else loss.new_zeros(3, 0, dtype=torch.long)
    assert mask.gather(1, hidden).all()
    other = made.draw(images(), Generator().manual_seed(1)).mask[0]
    assert not torch.equal(mask, other), "the rest is random"


def test_the_second_branch_ranks_the_losses_of_the_first() -> None:
    made = trained(guided_by_loss(method()))
    views = made.draw(images(), Generator().manual_seed(0))
    losses, pairs = made(images(), views), made.pairs(images(), views)
    prediction, target = pairs["masked"]
    loss = (prediction - target).square().mean(-1)
    assert torch.allclose(pairs["difficulty"][1][..., 0], loss)
    assert not pairs["difficulty"][1].requires_grad
    p, total = pairs["difficulty"][0][..., 0], 0.0
    for row in range(3):
        for i in range(12):
            for j in range(12):
                if i != j:
                    sigma = 1 / (1 + math.exp(-(p[row, i] - p[row, j]).item()))
                    total -= math.log(sigma) if loss[row, i] > loss[row, j] else math.log(1 - sigma)
    assert losses["difficulty"].item() == pytest.approx(total / (3 * 12 * 11), rel=1e-5)
    assert losses["total"].item() == pytest.approx(losses["masked"].item() + losses["difficulty"].item(), rel=1e-6)


def test_the_heads_average_follows_as_the_backbones() -> None:
    made = guided_by_loss(method())
    guide, average = made.guide, made.average
    assert isinstance(guide, LossGuide)
    assert average is not None
    average.decay, average.warmup = (0.5, 0.9), 1.0
    before = {name: p.clone() for name, p in guide.head.named_parameters()}
    with torch.no_grad():
        for p in made.branches[-1].head.parameters():  # type: ignore[attr-defined]
            p.add_(1)
    made.after_step(0.25)
    for name, p in guide.head.named_parameters():
        assert torch.allclose(p, before[name] + 0.4, atol=1e-6), name  # 1 - τ, τ = .5 + .25 · .4
        assert not p.requires_grad
    assert float(guide.progress) == 0.25
    assert not guide.train().training


@pytest.mark.parametrize("kind", PLUG_INS)
def test_masks_of_a_rank_are_those_of_the_whole_batch(kind: str) -> None:
    """A rank has its own pictures alone, and the numbers of all."""
    made = trained(dm(PLUG_INS[kind](method()), 2))
    whole = made.draw(images(7), Generator().manual_seed(3))
    for rows in (slice(0, 4), slice(4, 7)):
        mine = made.draw(images(7)[rows], Generator().manual_seed(3), rows, 7)
        assert torch.equal(mine.mask, whole.mask[:, rows])
        assert torch.equal(made.draw(images(7), Generator().manual_seed(3), rows).mask, mine.mask)


@pytest.mark.parametrize("kind", PLUG_INS)
def test_all_that_decides_is_in_the_state_dict(kind: str) -> None:
    made, other = (trained(PLUG_INS[kind](method()), 0.7) for _ in range(2))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=Generator().manual_seed(6)))
    saved = copy.deepcopy(made.state_dict())
    other.load_state_dict(saved, strict=True)
    views = [one.draw(images(), Generator().manual_seed(0)).mask for one in (made, other)]
    assert torch.equal(*views)
    fresh = PLUG_INS[kind](method())
    assert not torch.equal(fresh.draw(images(), Generator().manual_seed(0)).mask, views[0])
    fresh.load_state_dict(saved, strict=True)
    assert torch.equal(fresh.draw(images(), Generator().manual_seed(0)).mask, views[0])
    assert ("guide.progress" in saved) == (kind == "loss")


@pytest.mark.parametrize("kind", PLUG_INS)
def test_guides_give_no_gradient_and_read_each_picture_once_for_all_views(kind: str) -> None:
    made = dm(PLUG_INS[kind](method()), 3, None)
    assert made.average is not None
    rows = list[int]()
    hook = made.average.backbone.network.blocks[0].attn.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))  # type: ignore[union-attr]
    made(images(), generator=Generator().manual_seed(0))["total"].backward()
    hook.remove()
    assert rows == [3]
    assert all(p.grad is None for p in made.average.parameters())
    assert all(p.grad is None for name, p in made.named_parameters() if name.startswith("guide."))
    assert all(p.grad is not None for name, p in made.named_parameters() if p.requires_grad)


def test_large_batches_are_read_in_chunks() -> None:
    made = guided_by_attention(method())
    assert made.average is not None
    rows = list[int]()
    made.average.backbone.network.blocks[0].attn.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))  # type: ignore[union-attr]
    made.draw(images(CHUNK + 2), Generator().manual_seed(0))
    assert rows == [CHUNK, 2]


def test_with_others_that_replace_tokens_or_learn_from_the_average() -> None:
    """One average for targets and guides; a decoder over all tokens where none is dropped."""
    beit = create_beit("beit_micro", SIZE, MEAN, STD, overrides={"embed_dim": 32, "depth": 2, "num_heads": 2})
    for base in (
        simmim(beit, Masking(0.5)),
        data2vec(vit(3), width=16, depth=1),
        crossmae(vit(), 0.5, width=16, depth=1, heads=4),
    ):
        for plug_in in PLUG_INS.values():
            made = jd(dm(plug_in(base), 2), width=8)
            losses = made(images(), generator=Generator().manual_seed(0))
            assert all(bool(loss.isfinite()) for loss in losses.values())
    convvit = create_convvit(
        "convvit_micro", (64, 64), MEAN, STD, overrides={"embed_dim": 32, "depth": 2, "num_heads": 2}
    )
    given = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=Generator().manual_seed(0))
    assert guided_by_loss(convmae(convvit, 0.5, width=16, depth=1, heads=4))(given)["difficulty"].isfinite()


def test_networks_whose_attention_cannot_be_read_are_refused() -> None:
    line = (
        "^these masks go by what a class token attends to, and the attention of SwinTransformer cannot be read: choose"
    )
    with pytest.raises(UserError, match=line):
        guided_by_attention(simmim(create_swin("swin_micro", (64, 64), MEAN, STD), 0.5))
    with pytest.raises(UserError, match="and ConvViTNetwork has no class token: choose other masks, or a plain vit"):
        guided_by_attention(convmae(create_convvit("convvit_micro", (64, 64), MEAN, STD), 0.5))
    headless = vit()
    headless.network.cls_token = None
    with pytest.raises(UserError, match="and VisionTransformer has no class token"):
        guided_by_attention(mae(headless, 0.5, width=16, depth=1, heads=4))


@pytest.mark.parametrize(
    ("recipe", "settings", "why"),
    [
        ("hpm-vit-micro-cifar", {"masking.share": 1.0}, "masking.share: must be below 1"),
        ("mae-attention-vit-micro-cifar", {"masking.hints": 1.5}, "masking.hints: must be at most 1"),
        ("mae-attention-vit-micro-cifar", {"masking.probability": -0.5}, "masking.probability: must be at least 0"),
        ("moma-vit-micro-cifar", {"masking.pattern": "loss"}, 'masking.pattern "loss" ranks .* moma predicts none'),
        ("simmim-swin-b", {"masking.pattern": "attention"}, "masking.pattern attention goes by what a class"),
        (
            "convmae-convit-micro-cifar",
            {"masking.pattern": "attention"},
            "masking.pattern attention goes by what a class",
        ),
        (
            "fastmim-vit-micro",
            {"masking.pattern": "loss", "masking.cell_pixels": 2, "method.target": "pixels"},
            "masking.pattern and masking.cell_p",
        ),
        (
            "fastmim-p-swin-l",
            {"masking.pattern": "loss"},
            'masking.pattern "loss" goes by a moving average, which does',
        ),
        ("mae-vit-micro-cifar", {"masking.share": 0.4}, "masking.share has no use with masking.pattern random"),
        (
            "hpm-vit-micro-cifar",
            {"masking.probability": 0.4},
            "masking.probability has no use with masking.pattern loss",
        ),
        (
            "mae-vit-micro-cifar",
            {"average.warmup": 0.4},
            "average.warmup has no use .* masking.pattern attention or loss",
        ),
    ],
)
def test_mistakes_are_one_line(recipe: str, settings: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why) as caught, torch.device("meta"):
        build_method(choose(recipe, settings))
    assert "\n" not in str(caught.value)


def test_a_share_of_one_leaves_nothing_random_and_is_refused() -> None:
    with pytest.raises(UserError, match=r"^share 1 is outside \[0, 1\)"):
        guided_by_loss(method(), share=1.0)


def test_recipes_say_how_it_follows() -> None:
    made = build_method(load_recipe("hpm-vit-micro-cifar", {"average.decay": [0.5, 1.0]}, environment={}))
    assert made.average is not None
    assert made.average.decay_at(0.5) == 0.75
    guide = made.guide
    assert isinstance(guide, LossGuide)
    head: object = made.branches[-1].head
    assert all(torch.equal(a, b) for a, b in zip(guide.head.parameters(), head.parameters(), strict=True))  # type: ignore[attr-defined]


def test_the_equation_says_it() -> None:
    said = equation(guided_by_loss(method()), SIZE)
    assert (
        "+ 1 · mean over 1 view, 12 masked tokens, of pair-ranking( decoder of 1 block, width 8 ; loss of the masked "
        in said
    )
    assert "v  loss-guided masking, m_corr 0.5; K = 1 view" in said
    assert "g  loss that the moving average predicts from the whole image: the hardest are up to 0.5 of what a" in said
    said = equation(guided_by_attention(method(), hints=0.1), SIZE)
    assert (
        "v  attention-guided masking (most attended first with probability 0.5, 0.1 of all shown again), m_corr" in said
    )
    assert "g  attention of the moving average's class token on the whole image, last block, mean over heads" in said


def test_masks_go_by_one_guide() -> None:
    for first in (guided_by_loss, guided_by_attention):
        for second in (guided_by_loss, guided_by_attention):
            with pytest.raises(UserError, match=r"masks go by one guide, and this method's by the .* already"):
                second(first(method()))
