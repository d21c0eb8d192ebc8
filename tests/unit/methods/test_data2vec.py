"""methods/data2vec.py: its row of the table, its masks, and that its average follows in training."""

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones.vit import ViT, create_vit
from remask.distances import squared
from remask.errors import UserError
from remask.heads import ConvDecoder, Pooled
from remask.masking import Masking
from remask.masking.scores import InverseBlocks
from remask.methods import data2vec, dm

MEAN, STD = [0.5] * 3, [0.25] * 3


def vit(**overrides: object) -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 6, "num_heads": 2, "patch_size": 4, **overrides}
    return create_vit("vit_micro", (36, 36), MEAN, STD, overrides=sizes)  # type: ignore[arg-type]


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 36, 36), dtype=torch.uint8, generator=Generator().manual_seed(1))


def test_it_is_its_row_of_the_table() -> None:
    method = dm(data2vec(vit(), width=32), 16, None)
    masked, pooled = method.branches
    assert isinstance(masked.head, ConvDecoder)
    assert isinstance(pooled.head, Pooled)
    assert (masked.name, masked.region, masked.distance, masked.weight) == ("masked", "masked", squared, 1.0)
    assert (pooled.name, pooled.region, pooled.weight) == ("class", "pooled", 0.01)
    assert masked.target is pooled.target
    assert masked.target.layers == (1, 2, 3, 4, 5)  # type: ignore[attr-defined]
    assert (method.masking.ratio, method.masking.views, method.masking.prediction) == (0.8, 16, None)
    assert "K = 16 views, drawn independently" in str(method)
    assert "one pooled row each, of squared( class token" in str(method)
    losses = method(images(), generator=Generator().manual_seed(0))
    assert losses["total"].item() == pytest.approx(losses["masked"].item() + 0.01 * losses["class"].item())


def test_class_tokens_are_needed_for_the_second_branch_alone() -> None:
    plain = vit(class_token=False, global_pool="avg")
    with pytest.raises(UserError, match="class_weight must be 0 here: the backbone has no class token"):
        data2vec(plain, width=16)
    assert [branch.name for branch in data2vec(plain, width=16, class_weight=0).branches] == ["masked"]


def test_squares_stay_visible() -> None:
    """Where nine cells of 81 stay visible, they are a square of 3×3, which may wrap around the border."""
    views = Masking(72 / 81, InverseBlocks(), count="maskfeat")(50, (9, 9), Generator().manual_seed(0))
    visible = ~views.mask[0].unflatten(-1, (9, 9))
    assert (visible.sum((1, 2)) == 9).all()
    for one in visible:
        assert sorted(one.sum(0).tolist()) == sorted(one.sum(1).tolist()) == [0] * 6 + [3] * 3


def test_every_cell_is_hidden_as_often_as_any_other() -> None:
    views = Masking(0.8, InverseBlocks())(4000, (14, 14), Generator().manual_seed(0))
    share = views.mask[0].float().mean(0)
    assert (share - share.mean()).abs().max() < 4.5 * (0.8 * 0.2 / 4000) ** 0.5


def test_disjoint_views_of_inverse_blocks_hide_every_token() -> None:
    method = dm(data2vec(vit(), 0.75, width=16), 4)
    views = method.draw(images(), Generator().manual_seed(0))
    assert views.prediction_rate == 1.0
    assert (views.mask.sum(-1) == views.hidden).all()
