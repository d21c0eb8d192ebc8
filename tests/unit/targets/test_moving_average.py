"""targets/moving_average.py: the average against a loop, its target against the paper, and once an image."""

import copy

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones.beit import create_beit
from remask.backbones.swin import create_swin
from remask.backbones.vit import ViT, create_vit
from remask.distances import squared
from remask.errors import UserError
from remask.heads import Linear, Projector
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods import dm, jd, mae, simmim
from remask.recipe import load_recipe
from remask.targets.moving_average import Average, MovingAverage

MEAN, STD = [0.5] * 3, [0.25] * 3


def vit(drop_path: float = 0.0) -> ViT:
    torch.manual_seed(0)
    overrides = {"embed_dim": 12, "depth": 3, "num_heads": 2, "patch_size": 4}
    return create_vit("vit_micro", (16, 24), MEAN, STD, drop_path=drop_path, overrides=overrides)


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 24), dtype=torch.uint8, generator=Generator().manual_seed(1))


def method(target: MovingAverage | None = None, backbone: ViT | None = None) -> Method:
    backbone = backbone or vit()
    return mae(backbone, 0.5, target or MovingAverage(backbone), width=16, depth=1, heads=4)


@pytest.mark.parametrize(("decay", "warmup"), [((0.9, 0.99), 1.0), ((0.5, 1.0), 0.25), ((0.99, 0.99), 0.0)])
def test_twenty_steps_against_a_loop(decay: tuple[float, float], warmup: float) -> None:
    student = vit()
    average = Average(student, decay, warmup)
    expected = {name: p.detach().double().clone() for name, p in student.named_parameters()}
    random = Generator().manual_seed(3)
    for step in range(1, 21):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=random))
        average.follow(student, step / 20)
        share = 1.0 if warmup == 0 else min(1.0, step / 20 / warmup)
        tau = decay[0] + share * (decay[1] - decay[0])
        for name, p in student.named_parameters():
            expected[name] = tau * expected[name] + (1 - tau) * p.detach().double()
    for name, p in average.backbone.named_parameters():
        assert torch.allclose(p.double(), expected[name], atol=1e-6), name
        assert not p.requires_grad


def test_the_target_is_the_papers() -> None:
    """The MLPs' outputs of the last blocks, caught by hooks; per image and channel over tokens; mean; LayerNorm."""
    backbone = vit()
    target = MovingAverage(backbone, top=2)
    made = method(target, backbone)
    assert made.average is not None
    caught: list[Tensor] = []
    teacher = copy.deepcopy(made.average.backbone)
    for block in teacher.network.blocks[1:]:
        block.mlp.register_forward_hook(lambda *given: caught.append(given[-1]))
    teacher(images())
    layers = []
    for x in caught:
        tokens = x[:, 1:]
        mean, var = tokens.mean(1, keepdim=True), tokens.var(1, unbiased=False, keepdim=True)
        layers.append((tokens - mean) / (var + 1e-5).sqrt())
    mixed = (layers[0] + layers[1]) / 2
    mean, var = mixed.mean(-1, keepdim=True), mixed.var(-1, unbiased=False, keepdim=True)
    assert torch.allclose(target(images()), (mixed - mean) / (var + 1e-5).sqrt(), atol=1e-5)


def test_outputs_of_blocks_and_one_layer_as_it_is() -> None:
    backbone = vit()
    target = MovingAverage(backbone, layers=[1], norm="none", outputs="block")
    made = method(target, backbone)
    assert made.average is not None
    plain = made.average.backbone
    assert torch.equal(target(images()), plain.encode(plain.embed(images()), layers=(1,))[1].tokens)
    assert target.describe() == "outputs of block 1 of the moving average"


def test_the_teacher_sees_an_image_once_for_all_views_and_branches() -> None:
    backbone = vit()
    one, other = MovingAverage(backbone, layers=[0]), MovingAverage(backbone, top=2, outputs="block")
    base = method(one, backbone)
    more = Branch("deep", Projector(12, 12, 8), other, squared, "visible")
    made = jd(dm(base.with_(branches=[*base.branches, more]), 3, None), one, width=8)
    assert made.average is base.average
    rows: list[int] = []
    made.average.backbone.network.blocks[0].attn.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))  # type: ignore[union-attr]
    losses = made(images(), generator=Generator().manual_seed(0))
    assert [*losses] == ["masked", "deep", "visible", "total"]
    assert rows == [3], "of the three images, not of nine views, for MLPs and blocks together"


def test_blocks_beside_mlps_give_what_they_give_alone() -> None:
    backbone = vit()
    average = Average(backbone)
    both = average(images(), [(1, "block"), (1, "ffn"), (2, "block")])
    alone = average(images(), [(1, "block"), (2, "block")])
    assert all(torch.allclose(both[key].tokens, alone[key].tokens, atol=1e-6) for key in alone)


def test_it_drops_no_path_and_gives_no_gradient() -> None:
    backbone = vit(drop_path=0.5)
    made = method(MovingAverage(backbone), backbone).train()
    assert made.average is not None
    assert not any(module.training for module in made.average.modules())
    assert torch.equal(*(made.branches[0].target(images(), None) for _ in range(2)))
    made(images(), generator=Generator().manual_seed(0))["total"].backward()
    assert all(p.grad is None for p in made.average.parameters())


def test_it_starts_equal_to_the_student_and_is_saved_with_it() -> None:
    made = method()
    assert made.average is not None
    for own, theirs in zip(made.average.backbone.parameters(), made.backbone.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(own, theirs)
    with torch.no_grad():
        made.backbone.network.patch_embed.proj.weight.add_(1)
    made.after_step(0.5)
    saved, other = made.state_dict(), method()
    assert {key.split(".")[0] for key in saved} == {"backbone", "branches", "average"}
    other.load_state_dict(saved, strict=True)
    assert torch.equal(*(one.branches[0].target(images(), one.draw(images())) for one in (other, made)))
    assert "average" not in "".join(made.backbone.network.state_dict())


def test_recipes_say_its_decay_and_every_method_of_tokens_may_learn_from_it() -> None:
    from remask.build.pretraining import build_method

    keys = {"method.target": "average", "average.decay": [0.5, 1.0], "average.warmup": 0.5}
    made = build_method(load_recipe("mae-vit-micro-cifar", keys, environment={}))
    assert made.average is not None
    assert [made.average.decay_at(x) for x in (0, 0.25, 0.5, 1)] == [0.5, 0.75, 1.0, 1.0]
    backbone = create_beit("beit_micro", (32, 32), MEAN, STD)
    simmim(backbone, Masking(0.5), MovingAverage(backbone, outputs="block"))
    with pytest.raises(UserError, match=r"average\.warmup has no use with method.target.kind pixels"):
        load_recipe("mae-vit-micro-cifar", {"average.warmup": 0.5}, environment={})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"top": 4}, "top: the backbone has 3 blocks, and not 4"),
        ({"layers": [3]}, "blocks 0 to 2"),
        ({"layers": [1, 1]}, "each once"),
        ({"layers": []}, "name some"),
    ],
)
def test_blocks_that_do_not_exist_are_refused(settings: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        MovingAverage(vit(), **settings)  # type: ignore[arg-type]


def test_networks_whose_layers_differ_are_refused() -> None:
    with pytest.raises(UserError, match="different grids"):
        MovingAverage(create_swin("swin_micro", (64, 64), MEAN, STD), outputs="block")
    with pytest.raises(UserError, match='choose outputs "block"'):
        MovingAverage(create_beit("beit_micro", (32, 32), MEAN, STD))


def test_finer_masks_are_refused() -> None:
    from remask.backbones.masked_input import PixelsReplaced

    backbone = vit()
    target = MovingAverage(backbone)
    branch = Branch("masked", Linear(12, 12), target, squared, "masked")
    with pytest.raises(UserError, match="masks are finer"):
        Method(backbone, Masking(0.5), [branch], PixelsReplaced((2, 2)))
