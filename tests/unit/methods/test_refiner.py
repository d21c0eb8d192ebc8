"""methods/refiner.py: its row of the table, what is trained and when, and that the queue follows in training."""

import pytest
import torch
from torch import Generator, Tensor

from remask.backbones.makers import create_backbone
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.heads import InstanceHead
from remask.masking.unmasked import Unmasked
from remask.methods import jd, refiner
from remask.targets import Hog
from remask.targets.neighbours import Neighbours

MEAN, STD = [0.5] * 3, [0.25] * 3
SMALL = {"hidden": 8, "predictor": 8, "queue": 16, "neighbours": 2}


def vit(**overrides: object) -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 6, "num_heads": 2, "patch_size": 4, **overrides}
    return create_vit("vit_micro", (16, 16), MEAN, STD, overrides=sizes)  # type: ignore[arg-type]


def crops(images: int = 3) -> Tensor:
    return torch.randint(0, 256, (2 * images, 3, 16, 16), dtype=torch.uint8, generator=Generator().manual_seed(1))


def test_it_is_its_row_of_the_table() -> None:
    method = refiner(vit(), **SMALL)  # type: ignore[arg-type]
    assert isinstance(method.masking, Unmasked)
    assert [(b.name, b.layer, b.region, b.weight) for b in method.branches] == [
        ("block4", 4, "pooled", 0.5), ("end", -1, "pooled", 0.5)
    ]  # fmt: skip
    for branch in method.branches:
        assert isinstance(branch.head, InstanceHead)
        assert isinstance(branch.target, Neighbours)
    text = str(method)
    assert "info-nce temperature=0.2( projector and predictor on the class token, width 16 at block 4 ; " in text
    assert "sees whole images" in text
    assert "v  nothing hidden" in text
    losses = method(crops(), generator=Generator().manual_seed(0))
    assert losses["total"].item() == pytest.approx((losses["block4"] + losses["end"]).item() / 2)


def test_the_loss_is_cross_entropy_of_a_double_loop() -> None:
    """With an empty queue: the positive is the other crop's projection by the average, negatives are other images'."""
    method = refiner(vit(), layers=[-1], temperature=0.5, **SMALL)  # type: ignore[arg-type]
    (branch,) = method.branches
    with torch.no_grad():
        for p in branch.head.parameters():  # type: ignore[attr-defined]
            p.add_(0.1 * torch.randn(p.shape, generator=Generator().manual_seed(2)))
    images = crops()
    found = method(images, generator=Generator().manual_seed(0))["total"]
    encoded = method.backbone(images).prefix[:, 0]
    unit = torch.nn.functional.normalize
    student = unit(branch.head.predict(branch.head.project(encoded)), dim=-1)  # type: ignore[attr-defined]
    teacher = unit(branch.target.projector(encoded), dim=-1)  # type: ignore[attr-defined]
    expected = []
    for image in range(3):
        for crop in (0, 1):
            logits = [float(student[2 * image + crop] @ teacher[2 * j + 1 - crop]) / 0.5 for j in range(3)]
            expected.append(torch.tensor(logits).logsumexp(0).item() - logits[image])
    assert found.item() == pytest.approx(sum(expected) / 6, rel=1e-5)


def test_the_first_blocks_are_not_trained() -> None:
    method = refiner(vit(), **SMALL)  # type: ignore[arg-type]
    trained = {name for name, p in method.backbone.network.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in trained if name.startswith("blocks")} == {"4", "5"}
    assert not any(name.startswith(("patch_embed", "cls_token", "pos_embed")) for name in trained)
    assert {"norm.weight", "norm.bias"} <= trained
    everything = refiner(vit(), blocks=6, **SMALL)  # type: ignore[arg-type]
    frozen = {name for name, p in everything.backbone.network.named_parameters() if not p.requires_grad}
    assert frozen <= {"pos_embed"}


def test_heads_come_first() -> None:
    method = refiner(vit(), frozen=0.5, **SMALL).train()  # type: ignore[arg-type]
    for progress, moves in ((0.0, False), (0.49, False), (0.5, True), (1.0, True)):
        method.zero_grad(set_to_none=True)
        method.before_step(progress)
        method(crops(), generator=Generator().manual_seed(0))["total"].backward()
        assert (method.backbone.network.blocks[5].mlp.fc1.weight.grad is not None) == moves, progress
        assert method.branches[0].head.project[1].weight.grad is not None  # type: ignore[attr-defined]


def test_the_queue_follows_a_step_and_knows_the_images() -> None:
    method = refiner(vit(), **SMALL).train()  # type: ignore[arg-type]
    views = method.draw(crops(), Generator().manual_seed(0)).of_images(torch.tensor([4, 4, 9, 9, 2, 2]))
    method(crops(), views)
    for branch in method.branches:
        assert (branch.target.owners == -1).all()  # type: ignore[attr-defined]
    method.after_step(0.1)
    for branch in method.branches:
        assert branch.target.owners.tolist()[:6] == [4, 4, 9, 9, 2, 2]  # type: ignore[attr-defined]


def test_rows_of_a_rank_draw_what_they_draw_among_all() -> None:
    method = refiner(vit(), jitter=0.4, **SMALL)  # type: ignore[arg-type]
    among = method.draw(crops(), Generator().manual_seed(3))
    some = method.draw(crops()[2:4], Generator().manual_seed(3), slice(2, 4), 6)
    assert among.chance is not None
    assert some.chance is not None
    assert torch.equal(among.chance[2:4], some.chance)
    assert torch.equal(among.colours[2:4], some.colours)  # type: ignore[index]


def test_other_networks() -> None:
    no_class = refiner(vit(class_token=False, global_pool="avg"), **SMALL)  # type: ignore[arg-type]
    assert all(branch.head.pool == "mean" for branch in no_class.branches)  # type: ignore[attr-defined]
    swin = refiner(create_backbone("swin_micro", 32), **SMALL)  # type: ignore[arg-type]
    assert [branch.layer for branch in swin.branches] == [-1]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert swin(images, generator=Generator().manual_seed(0))["total"].isfinite()


@pytest.mark.parametrize("name", ["vit_micro", "beit_micro", "swin_micro", "convvit_micro"])
def test_it_is_a_plug_in_to_backbones_and_jd_one_to_it(name: str) -> None:
    """JD keeps what pre-training taught the visible tokens, which are all of them here."""
    backbone = create_backbone(name, 64)
    method = jd(refiner(backbone, **SMALL), Hog(backbone.patch, MEAN, STD), width=8)  # type: ignore[arg-type]
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=Generator().manual_seed(1))
    losses = method(images, generator=Generator().manual_seed(0))
    assert {"end", "visible", "total"} <= set(losses)
    losses["total"].backward()
    trained = [
        (n, p) for n, p in method.named_parameters() if p.requires_grad and "fusions" not in n
    ]  # of masked views
    assert not [n for n, p in trained if p.grad is None]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"blocks": 7}, "blocks: the backbone has 6 blocks, of which 1 to 6 can be trained, not 7"),
        ({"blocks": 0}, "of which 1 to 6 can be trained, not 0"),
        ({"layers": [6]}, r"layers: the backbone has blocks 0 to 5, -1 is its end: each once, not \[6\]"),
        ({"layers": []}, r"each once, not \[\]"),
        ({"layers": [4, 4]}, r"each once, not \[4, 4\]"),
    ],
)
def test_wrong_numbers_are_one_line(wrong: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        refiner(vit(), **{**SMALL, **wrong})  # type: ignore[arg-type]


def test_networks_that_lack_something_are_refused() -> None:
    with pytest.raises(UserError, match='pool "class": the backbone has no class token; choose "mean"'):
        refiner(vit(class_token=False, global_pool="avg"), pool="class", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"the layers of .* have different widths"):
        refiner(create_backbone("swin_micro", 32), layers=[0], **SMALL)  # type: ignore[arg-type]


def test_untrained_weights_are_a_control() -> None:
    backbone = vit()
    before = backbone.network.blocks[0].mlp.fc1.weight.clone()
    refiner(backbone, **SMALL)  # type: ignore[arg-type]
    assert torch.equal(backbone.network.blocks[0].mlp.fc1.weight, before)
    refiner(backbone, pretrained=False, **SMALL)  # type: ignore[arg-type]
    assert not torch.equal(backbone.network.blocks[0].mlp.fc1.weight, before)
