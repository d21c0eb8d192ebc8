"""methods/: MAE's parts and initial weights, and DM and JD as functions that change what they say and nothing else."""

import math

import pytest
import torch
from torch import Generator, Tensor, nn

from remask.backbones.masked_input import Dropped, TokensReplaced
from remask.backbones.vit import create_vit
from remask.distances import smooth_l1, squared
from remask.heads import Decoder, Linear, Projector
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Branch, Method
from remask.methods import dm, jd, mae
from remask.targets import Hog, Pixels

MEAN, STD = [0.5], [0.25]
SIZE, PATCH = (16, 16), (4, 4)


def base(**keys: object) -> Method:
    torch.manual_seed(0)
    small = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    backbone = create_vit("vit_micro", SIZE, MEAN, STD, overrides=small)
    return mae(backbone, Masking(0.5, Blocks()), Pixels(PATCH, MEAN, STD), SIZE, 24, 2, 2, **keys)  # type: ignore[arg-type]


def hog() -> Hog:
    return Hog(PATCH, MEAN, STD, cell=2)


def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 1, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(1))


def test_mae_is_its_row_of_the_table() -> None:
    method = base(mlp_ratio=2.0)
    (branch,) = method.branches
    assert (branch.name, branch.region, branch.weight, branch.layer) == ("masked", "masked", 1.0, -1)
    assert branch.distance is squared
    assert isinstance(method.sees, Dropped)
    assert not [*method.sees.parameters()]
    decoder = branch.head
    assert isinstance(decoder, Decoder)
    assert (decoder.width, len(decoder.blocks), decoder.grid) == (24, 2, (4, 4))
    assert decoder.blocks[0].mlp.fc1.out_features == 48


def test_mae_starts_from_its_published_weights() -> None:
    torch.manual_seed(0)
    backbone = create_vit("vit_base_patch16_224", (32, 32), [0.5] * 3, [0.25] * 3, overrides={"depth": 1})
    method = mae(backbone, Masking(0.5), Pixels((16, 16), [0.5] * 3, [0.25] * 3), (32, 32), 64, 1, 2)
    method.requires_grad_(False)
    for name, module in method.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))  # Xavier, uniform
            assert float(module.weight.abs().max()) <= bound, name
            assert float(module.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name
            assert not module.bias.any(), name
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert not module.bias.any(), name
    conv = backbone.network.patch_embed.proj.weight
    bound = math.sqrt(6 / (768 + 768))  # as if it were a linear layer over the patch's 768 values
    assert float(conv.abs().max()) <= bound
    assert float(conv.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert float(backbone.network.cls_token.std()) == pytest.approx(0.02, rel=0.15)
    assert float(method.branches[0].head.mask_token.std()) == pytest.approx(0.02, rel=0.4)  # type: ignore[union-attr]


def test_dm_changes_the_masking_and_shares_everything_else() -> None:
    method = base()
    several = dm(method, views=3, prediction=0.9)
    assert (several.masking.views, several.masking.prediction) == (3, 0.9)
    assert (several.masking.ratio, several.masking.score) == (0.5, method.masking.score)
    assert several.backbone is method.backbone
    assert list(several.branches) == list(method.branches)
    assert {id(p) for p in several.parameters()} == {id(p) for p in method.parameters()}
    assert method.masking.views == 1


def test_dm_none_draws_views_independently() -> None:
    assert dm(base(), 2, None).masking.prediction is None


def test_jd_adds_one_branch_on_the_visible_tokens() -> None:
    method, target = base(), hog()
    joint = jd(method, target, width=8, beta=0.5, weight=0.25)
    masked, visible = joint.branches
    assert masked is method.branches[0]
    assert len(method.branches) == 1
    assert (visible.name, visible.region, visible.weight, visible.layer) == ("visible", "visible", 0.25, -1)
    assert isinstance(visible.head, Projector)
    assert (visible.head.width, visible.head.predict.out_features) == (8, target.width)
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    assert torch.equal(visible.distance(x, y), smooth_l1(x, y, beta=0.5))
    assert joint.masking is method.masking


def test_the_order_of_the_plugins_does_not_matter() -> None:
    torch.manual_seed(3)
    one = jd(dm(base()), hog(), 8)
    torch.manual_seed(3)
    other = dm(jd(base(), hog(), 8))
    other.load_state_dict(one.state_dict(), strict=True)
    views = one.draw(pictures(), Generator().manual_seed(0))
    assert torch.equal(views.mask, other.draw(pictures(), Generator().manual_seed(0)).mask)
    first, second = one(pictures(), views), other(pictures(), views)
    assert {name: loss.item() for name, loss in first.items()} == {name: loss.item() for name, loss in second.items()}


def test_jd_keeps_the_masked_loss() -> None:
    method = base()
    views = method.draw(pictures(), Generator().manual_seed(0))
    alone, joint = method(pictures(), views), jd(method, hog(), 8)(pictures(), views)
    assert torch.equal(alone["masked"], joint["masked"])
    assert joint["total"].item() == pytest.approx(joint["masked"].item() + joint["visible"].item())


def test_the_visible_branch_is_aligned_token_by_token() -> None:
    """DMJD Eq. (5). official: predictions in noise order meet targets in raster order."""
    joint, images = jd(dm(base()), hog(), 8), pictures()
    views = joint.draw(images, Generator().manual_seed(0))
    wanted = joint.pairs(images, views)["visible"][1]
    everything = hog()(images)
    rows = [everything[b][~views.mask[v, b]] for v in range(2) for b in range(3)]
    assert torch.equal(wanted, torch.stack(rows))


def test_plugins_work_on_a_method_that_replaces() -> None:
    backbone, target = base().backbone, hog()
    head = Linear(backbone.width, target.width)
    plain = Method(backbone, Masking(0.5), [Branch("masked", head, target, squared, "masked")], TokensReplaced())
    method = jd(dm(plain, 3), target, 8)
    losses = method(pictures())
    assert torch.isfinite(losses["total"])
    losses["total"].backward()
    assert method.sees.mask_token is not None
    assert method.sees.mask_token.grad is not None
    assert method.sees.mask_token.grad.any()


def test_plugins_pass_the_fill_token_on() -> None:
    backbone, target = base().backbone, hog()
    head = Linear(backbone.width, target.width)
    plain = Method(backbone, Masking(0.5), [Branch("masked", head, target, squared, "masked")], TokensReplaced())
    assert dm(plain).sees is plain.sees
