"""methods/dmae.py: MAE as it is, and blocks aligned with a teacher's that sees the same view."""

import pytest
import torch
from torch import Generator, Tensor, nn

from remask.backbones.masked_input import Dropped
from remask.backbones.vit import ViT, create_vit
from remask.distances import l1_unit, squared, squared_unit
from remask.errors import UserError
from remask.heads import Decoder, ProjectionHead
from remask.masking import Masking
from remask.method import Method
from remask.methods import dm, dmae, jd, mae
from remask.targets import Hog, Pixels, TokenTeacher
from tests.flops import flops_of

MEAN, STD = [0.5], [0.25]
SIZE, PATCH = (16, 16), (4, 4)


def vit(width: int = 16, depth: int = 3, name: str = "vit_micro") -> ViT:
    torch.manual_seed(0)
    small = {"patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 2}
    return create_vit(name, SIZE, MEAN, STD, overrides=small)


def teacher(layer: int = 1, net: ViT | None = None, sees: str = "view", prefix: bool = True) -> TokenTeacher:
    return TokenTeacher(
        net or vit(24, 4), PATCH, MEAN, STD, layer=layer, sees=sees, norm="none", prefix=prefix, name="t"
    )  # type: ignore[arg-type]


def base(teachers: list[TokenTeacher], layers: list[int], **keys: object) -> Method:
    settings = {"width": 16, "depth": 1, "heads": 2, **keys}
    target = Pixels(PATCH, MEAN, STD, per_patch=False)
    student = vit()
    torch.manual_seed(1)
    return dmae(student, Masking(0.6), target, teachers, SIZE, layers, **settings)  # type: ignore[arg-type]


def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 1, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(1))


def test_its_row_of_the_table() -> None:
    method = base([teacher()], [2], mlp_ratio=2.0)
    masked, align = method.branches
    assert (masked.name, masked.region, masked.distance, masked.layer) == ("masked", "masked", squared, -1)
    assert isinstance(masked.head, Decoder)
    assert (masked.head.width, masked.head.blocks[0].mlp.fc1.out_features) == (16, 32)
    assert (align.name, align.region, align.weight, align.layer) == ("align", "encoded", 1.0, 2)
    assert align.distance is l1_unit
    assert isinstance(align.head, ProjectionHead)
    assert isinstance(align.head.project, nn.Linear)
    assert align.head.project.weight.shape == (24, 16)
    assert isinstance(method.sees, Dropped)


def test_its_options() -> None:
    shared = teacher()
    method = base([shared, teacher(3), shared], [0, -1, 1], head="mlp", distance="squared", weight=0.5)
    _, *aligned = method.branches
    assert [b.name for b in aligned] == ["align0", "align1", "align2"]
    assert [b.layer for b in aligned] == [0, 2, 1]
    assert {b.distance for b in aligned} == {squared_unit}
    assert {b.weight for b in aligned} == {0.5}
    for branch in aligned:
        mlp = branch.head.project  # type: ignore[attr-defined]
        assert [(m.in_features, m.out_features) for m in (mlp.fc1, mlp.fc2)] == [(16, 24), (24, 24)]


def test_the_rest_is_mae() -> None:
    """To the last weight, under one seed; the heads of the alignment are as torch makes them, not as MAE."""
    method, student = base([teacher()], [1]), vit()
    torch.manual_seed(1)
    plain = mae(student, Masking(0.6), Pixels(PATCH, MEAN, STD, per_patch=False), SIZE, 16, 1, 2)
    state = method.state_dict()
    assert {name for name in state if name not in plain.state_dict()} == {
        "branches.1.head.project.weight", "branches.1.head.project.bias",
    }  # fmt: skip
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
    views = plain.draw(pictures(), Generator().manual_seed(0))
    assert torch.equal(plain(pictures(), views)["masked"], method(pictures(), views)["masked"])
    head = method.branches[1].head.project  # type: ignore[attr-defined]
    assert 0.2 < float(head.weight.detach().abs().max()) <= 16**-0.5
    assert head.bias.any()


def test_a_loss_is_the_mean_over_all_that_is_seen_and_all_channels() -> None:
    """By a loop over views, images and rows: student block 0, teacher block 1, both on visible tokens alone."""
    net, images = vit(24, 4), pictures()
    method = dm(base([teacher(1, net)], [0]), 2)
    views = method.draw(images, Generator().manual_seed(0))
    losses = method(images, views)
    mine = torch.cat(method.backbone.encode(method.backbone.embed(images), views, layers=(0,))[0], dim=1)
    theirs = torch.cat(net.encode(net.embed(images), views, layers=(1,))[1], dim=1)
    head, errors = method.branches[1].head.project, []  # type: ignore[attr-defined]
    for row in range(2 * 3):
        for token in range(1 + views.visible.shape[1]):
            a, b = head(mine[row, token]), theirs[row, token]
            errors += list((a / a.norm() - b / b.norm()).abs())
    assert len(errors) == 6 * 7 * 24
    assert losses["align"].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-5)
    assert losses["total"].item() == pytest.approx((losses["masked"] + losses["align"]).item())


def test_the_teacher_runs_no_further_and_gets_no_gradient() -> None:
    net, ran = vit(24, 4), []
    for i, block in enumerate(net.network.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    method = base([teacher(1, net)], [1])
    method(pictures())["total"].backward()
    assert ran == [0, 1]
    assert all(p.grad is None for p in net.parameters())
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, p in method.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("views", [1, 2])
def test_its_flops_are_maes_and_those_of_the_teachers_used_blocks(views: int) -> None:
    """Forward, by the flop counter: embedding and two of four blocks on what is visible, and the projector."""
    net, images = vit(24, 4), pictures()
    method = base([teacher(1, net)], [1])
    method = dm(method, views) if views > 1 else method
    drawn = method.draw(images, Generator().manual_seed(0))
    rows, seen = views * 3, 1 + drawn.visible.shape[1]
    plain = Method(method.backbone, method.masking, [method.branches[0]])
    block = flops_of(lambda: net.network.blocks[0](torch.zeros(rows, seen, 24)))
    patches = min(rows * (seen - 1), 3 * 16)  # the fewer of all patches and those that are visible
    wanted = flops_of(lambda: plain(images, drawn)) + 2 * patches * 16 * 24 + 2 * block + 2 * rows * seen * 16 * 24
    assert flops_of(lambda: method(images, drawn)) == wanted


@pytest.mark.parametrize(
    ("net", "sees", "prefix"),
    [
        ("vit_base_patch16_224", "view", False),
        ("vit_base_patch16_224", "image", False),
        ("vit_medium_patch16_gap_240", "view", True),
        ("vit_base_patch16_reg4_gap_256", "view", True),
        ("vit_base_patch16_reg4_gap_256", "image", True),
    ],
)
def test_without_as_many_prefix_tokens_the_visible_ones_are_aligned(net: str, sees: str, prefix: bool) -> None:
    other = vit(24, 2, net)
    method, images = dm(base([teacher(1, other, sees, prefix)], [1]), 2), pictures()
    branch, views = method.branches[1], method.draw(pictures(), Generator().manual_seed(0))
    assert branch.region == "visible"
    prediction, wanted = method.pairs(images, views)["align"]
    assert prediction.shape == wanted.shape == (6, views.visible.shape[1], 24)
    stem = other.embed(images)
    if sees == "view":
        assert torch.equal(wanted, other.encode(stem, views, layers=(1,))[1].tokens)
    else:
        assert torch.equal(wanted, views.gather(other.encode(stem, layers=(1,))[1].tokens, "visible"))


def test_the_plug_ins_work() -> None:
    method = jd(dm(base([teacher()], [1]), 2), Hog(PATCH, MEAN, STD, cell=2), 8)
    losses = method(pictures())
    assert list(losses) == ["masked", "align", "visible", "total"]
    losses["total"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    also = jd(base([teacher()], [1]), teacher(2), 8)(pictures())
    assert torch.isfinite(also["visible"]), "a teacher of the view, prefix token and all, as JD's target"


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match="2 blocks cannot be aligned with 1 teachers"):
        base([teacher()], [0, 1])
    with pytest.raises(UserError, match=r"blocks 0 to 2: one of \[3\]"):
        base([teacher()], [3])
