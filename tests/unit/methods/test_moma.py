"""methods/moma.py: a head per teacher of the whole image, weights that average or are trained, first weights."""

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from remask.backbones.masked_input import Dropped
from remask.backbones.vit import ViT, create_vit
from remask.color_jitter import BatchColorJitter
from remask.distances import smooth_l1
from remask.errors import UserError
from remask.heads import ProjectionHead
from remask.masking import Masking
from remask.method import Method
from remask.methods import dm, jd, moma
from remask.targets import Hog, TokenTeacher
from tests.flops import flops_of

MEAN, STD = [0.5], [0.25]
SIZE, PATCH = (16, 16), (4, 4)


def vit(width: int = 16, depth: int = 2, seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    small = {"patch_size": 4, "embed_dim": width, "depth": depth, "num_heads": 2}
    return create_vit("vit_micro", SIZE, MEAN, STD, overrides=small)


def teacher(width: int = 24, **options: object) -> TokenTeacher:
    return TokenTeacher(vit(width, 3, width), PATCH, MEAN, STD, **{"name": f"t{width}", **options})  # type: ignore[arg-type]


def two(**keys: object) -> Method:
    student, teachers = vit(), [teacher(24), teacher(12)]
    torch.manual_seed(1)
    return moma(student, Masking(0.6), teachers, **keys)  # type: ignore[arg-type]


def pictures() -> Tensor:
    return torch.randint(0, 256, (3, 1, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(1))


def test_its_row_of_the_table() -> None:
    method = two()
    assert [(b.name, b.region, b.weight, b.layer) for b in method.branches] == [
        ("teacher0", "encoded", 0.5, -1),
        ("teacher1", "encoded", 0.5, -1),
    ]
    assert isinstance(method.sees, Dropped)
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    for branch, width in zip(method.branches, (24, 12), strict=True):
        assert torch.equal(branch.distance(x, y), smooth_l1(x, y, beta=1.0))
        assert isinstance(branch.head, ProjectionHead)
        assert branch.head.project.weight.shape == (width, 16)
        assert branch.log_variance is None


def test_its_options() -> None:
    method = two(weights=[0.2, 3.0], head="mlp", beta=2.0, layer=0)
    x, y = torch.randn(4, 6), torch.randn(4, 6)
    for branch, weight, width in zip(method.branches, (0.2, 3.0), (24, 12), strict=True):
        assert (branch.weight, branch.layer) == (weight, 0)
        assert torch.equal(branch.distance(x, y), smooth_l1(x, y, beta=2.0))
        assert branch.head.project.fc2.weight.shape == (width, width)  # type: ignore[attr-defined]


def test_a_loss_is_the_mean_over_all_that_is_seen() -> None:
    """By a loop over views, images and rows, against the normalised features of the whole image."""
    method, images = dm(two(beta=0.5), 2), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    losses = method(images, views)
    mine = torch.cat(method.backbone.encode(method.backbone.embed(images), views)[-1], dim=1)
    for branch in method.branches:
        net = branch.target.network.networks[0]  # type: ignore[attr-defined]
        theirs = torch.cat(net.encode(net.embed(images), layers=(2,))[2], dim=1)
        errors = []
        for row in range(2 * 3):
            view, image = divmod(row, 3)
            places = [0, *(1 + (~views.mask[view, image]).nonzero().flatten()).tolist()]
            for token, place in enumerate(places):
                wanted = theirs[image, place]
                wanted = (wanted - wanted.mean()) / (wanted.var(unbiased=False) + 1e-5).sqrt()
                far = (branch.head.project(mine[row, token]) - wanted).detach().abs().tolist()  # type: ignore[attr-defined]
                errors += [d * d if d < 0.5 else d - 0.25 for d in far]
        assert len(errors) == 6 * 7 * branch.target.width
        assert losses[branch.name].item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)
    assert losses["total"].item() == pytest.approx((losses["teacher0"].item() + losses["teacher1"].item()) / 2)


def test_trained_weights_start_from_those_given() -> None:
    """exp(-s) · L + s, whose slope in s is 1 - exp(-s) · L."""
    given = [0.25, 2.0]
    method, fixed = two(weights=given, learned=True), two(weights=given)
    views = method.draw(pictures(), Generator().manual_seed(0))
    losses, plain = method(pictures(), views), fixed(pictures(), views)
    assert list(losses) == ["teacher0", "teacher1", "weight/teacher0", "weight/teacher1", "total"]
    assert list(plain) == ["teacher0", "teacher1", "total"]
    assert losses["total"].item() == pytest.approx(plain["total"].item() - sum(math.log(weight) for weight in given))
    losses["total"].backward()
    for i, (branch, weight) in enumerate(zip(method.branches, given, strict=True)):
        assert losses[f"weight/teacher{i}"].item() == pytest.approx(weight)
        assert not losses[f"weight/teacher{i}"].requires_grad
        slope = branch.log_variance.grad  # type: ignore[union-attr]
        assert slope is not None
        assert slope.item() == pytest.approx(1 - weight * losses[f"teacher{i}"].item(), rel=1e-5)
    assert {"branches.0.log_variance", "branches.1.log_variance"} <= set(method.state_dict())


def test_trained_weights_find_the_losses() -> None:
    """With nothing else to train, exp(-s) ends at 1 / L."""
    method = two(learned=True)
    spreads = [branch.log_variance for branch in method.branches]
    optimizer = torch.optim.AdamW(spreads, lr=0.05, weight_decay=0.0, fused=True)  # type: ignore[arg-type]
    views = method.draw(pictures(), Generator().manual_seed(0))
    for _ in range(100):
        optimizer.zero_grad()
        losses = method(pictures(), views)
        losses["total"].backward()
        optimizer.step()
    for name in ("teacher0", "teacher1"):
        assert losses[f"weight/{name}"].item() == pytest.approx(1 / losses[name].item(), rel=0.05)


def test_first_weights_are_maes() -> None:
    method = two(head="mlp")
    for name, module in method.named_modules():
        if isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound, name
            assert not module.bias.any(), name
    token = method.backbone.network.cls_token
    assert isinstance(token, Tensor)
    assert 0.01 < float(token.detach().std()) < 0.03


def test_a_pretrained_student_stays_as_it_is() -> None:
    student = vit(seed=5)
    nn.init.constant_(student.network.cls_token, 0.7)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    method = moma(student, Masking(0.6), [teacher()], pretrained=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert not method.branches[0].head.project.bias.any()  # type: ignore[attr-defined]
    assert any(not torch.equal(t, before[name]) for name, t in two().backbone.state_dict().items())  # type: ignore[attr-defined]


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_gradients_reach_the_student_and_no_teacher(head: str) -> None:
    method = two(head=head, learned=True)
    method(pictures())["total"].backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, p in method.named_parameters() if p.requires_grad}
    for branch in method.branches:
        net = branch.target.network.networks[0]  # type: ignore[attr-defined]
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())


def test_the_plug_ins_work_and_keep_trained_weights() -> None:
    plain = two(learned=True)
    method = jd(dm(plain, 2), Hog(PATCH, MEAN, STD, cell=2), 8)
    assert [b.log_variance for b in method.branches[:2]] == [b.log_variance for b in plain.branches]
    losses = method(pictures())
    assert list(losses) == ["teacher0", "teacher1", "visible", "weight/teacher0", "weight/teacher1", "total"]
    losses["total"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    shared = teacher()
    also = jd(moma(vit(), Masking(0.6), [shared]), shared, 8)(pictures())
    assert torch.isfinite(also["visible"]), "JD on the same teacher: its visible tokens, without the prefix"


def test_one_teacher_without_prefix_tokens_is_met_on_visible_ones() -> None:
    method = moma(vit(), Masking(0.6), [teacher(prefix=False)])
    (branch,) = method.branches
    views = method.draw(pictures(), Generator().manual_seed(0))
    assert (branch.name, branch.region, branch.weight) == ("teacher0", "visible", 1.0)
    prediction, wanted = method.pairs(pictures(), views)["teacher0"]
    assert prediction.shape == wanted.shape == (3, views.visible.shape[1], 24)
    assert torch.equal(wanted, views.gather(branch.target(pictures(), views), "visible"))


def test_jitter_is_the_students_alone_and_a_function_of_the_draw() -> None:
    plain, method = two(), two(jitter=0.8)
    images = pictures()
    views = method.draw(images, Generator().manual_seed(0))
    assert torch.equal(views.mask, plain.draw(images, Generator().manual_seed(0)).mask), "drawn after the masks"
    pairs, before = method.pairs(images, views), plain.pairs(images, views)
    for name in pairs:
        assert torch.equal(pairs[name][1], before[name][1]), "the teachers see the image as it is"
        assert not torch.allclose(pairs[name][0], before[name][0], atol=1e-3)
    assert method.jitter
    assert torch.equal(plain.pairs(method.jitter(images, views.colours), views)["teacher0"][0], pairs["teacher0"][0])  # type: ignore[arg-type]
    again, other = (method.draw(images, Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(method(images, views)["total"], method(images, again)["total"])
    recoloured = dataclasses.replace(views, colours=other.colours)
    assert not torch.equal(method(images, views)["total"], method(images, recoloured)["total"])
    parts = [method(chunk, part) for chunk, part in zip(images.split(1), views.split(3), strict=True)]
    assert torch.stack([part["total"] for part in parts]).mean().item() == pytest.approx(
        method(images, views)["total"].item()
    )


def test_the_plug_ins_keep_the_jitter() -> None:
    method = jd(dm(two(jitter=0.5), 2), Hog(PATCH, MEAN, STD, cell=2), 8)
    assert method.jitter == BatchColorJitter(0.5)
    assert method.draw(pictures()).colours is not None
    assert two().draw(pictures()).colours is None


def whole_image(target: Any, images: Tensor) -> None:
    net = target.network.networks[0]
    net.encode(net.embed(images), layers=(2,))


@pytest.mark.parametrize("views", [1, 3])
def test_a_teachers_flops_are_those_of_the_whole_image_once(views: int) -> None:
    """Forward, by the flop counter: what the student alone takes, each teacher once, and the projectors."""
    method, images = dm(two(), views) if views > 1 else two(), pictures()
    drawn = method.draw(images, Generator().manual_seed(0))
    seen = views * 3 * (1 + drawn.visible.shape[1])
    flops = flops_of(lambda: method(images, drawn))
    parts = flops_of(lambda: method.encode(images, drawn))
    for branch in method.branches:
        parts += flops_of(partial(whole_image, branch.target, images)) + 2 * seen * 16 * branch.target.width
    assert flops == parts


def test_what_does_not_fit_is_named() -> None:
    for weights in ([0.5], [0.5, 0.0], [1.0, -1.0]):
        with pytest.raises(UserError, match="2 teachers cannot have the weights"):
            two(weights=weights)
    with pytest.raises(UserError, match="0 teachers cannot have the weights"):
        moma(vit(), Masking(0.6), [])
    with pytest.raises(UserError, match="blocks 0 to 1, and no block 2; -1 is its end"):
        two(layer=2)
