"""evaluation/classifier.py: timm's own classifiers, what is trained, slices of a mixed batch, checkpointing."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from remask.backbones.beit import create_beit
from remask.backbones.checkpointing import set_checkpointing
from remask.backbones.convvit import create_convvit
from remask.backbones.convvit_network import ConvViTNetwork
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.downstream.finetune.classifier import Classifier, MixedLabels
from remask.downstream.finetune.mixing import Mixing, soft_targets
from remask.errors import UserError
from remask.masking import Masking
from remask.training.optim import parameter_groups

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLASSES = 5
TOY = {"embed_dim": 24, "depth": 3, "num_heads": 2}
SWIN = {"embed_dim": 8, "num_heads": (1, 2, 2)}
CONV = {"width": 24, "depth": 2, "num_heads": 2}
PVT = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}

MAKERS: dict[str, Callable[..., Any]] = {
    "vit": partial(create_vit, "vit_micro", overrides=TOY),
    "beit": partial(create_beit, "beit_micro", overrides=TOY),
    "swin": partial(create_swin, "swin_micro", overrides=SWIN),
    "convvit": partial(create_convvit, "convvit_micro", overrides=CONV),
    "pvt": partial(create_hierarchical, "pvt_v2_b0", overrides=PVT),
}
BLOCKS = {"vit": "blocks.1", "beit": "blocks.1.mlp", "swin": "layers.1.blocks.0", "convvit": "blocks3.1", "pvt": None}


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor | None


def randomised(module: nn.Module, std: float = 0.2) -> nn.Module:
    for parameter in module.parameters():  # tables and biases start at 0 and would test nothing
        nn.init.normal_(parameter, std=std)
    return module


def made(kind: str, pool: str = "mean", size: tuple[int, int] = (32, 32), **keys: Any) -> Classifier:
    torch.manual_seed(0)
    creator_of = {key: keys.pop(key) for key in ("drop_path",) if key in keys}
    classifier = Classifier(MAKERS[kind](size, MEAN, STD, **creator_of), CLASSES, pool=pool, **keys).eval()
    return randomised(classifier)  # type: ignore[return-value]


def batch(n: int = 6, size: tuple[int, int] = (32, 32)) -> Batch:
    generator = Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(0, CLASSES, (n,), generator=generator))


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def their_classifier(kind: str, pool: str, classifier: Classifier) -> nn.Module:
    """The same network as timm or its authors classify with it, with the weights of ours."""
    state = dict(classifier.backbone.network.state_dict())
    if kind == "convvit":
        net = classifier.backbone.network
        theirs: nn.Module = ConvViTNetwork((32, 32), 3, net.sizes, 0.0, CLASSES, "mean" if pool == "mean" else "first")
    else:
        name, arguments = classifier.backbone.origin
        pooling = {"vit": {"mean": "avg", "cls": "token"}, "beit": {"mean": "avg", "cls": "token"}}.get(kind, {})
        own = {"fc_norm": pool == "mean"} if kind == "vit" else {}
        changed = {**arguments, **own, "num_classes": CLASSES, "global_pool": pooling.get(pool, "avg")}
        theirs = timm.create_model(name, **changed)
    if classifier.fc_norm is not None:
        state = {key: value for key, value in state.items() if not key.startswith("norm.")}
        state |= {f"fc_norm.{key}": value for key, value in classifier.fc_norm.state_dict().items()}
    head = "head.fc." if any(key.startswith("head.fc.") for key in theirs.state_dict()) else "head."
    theirs.load_state_dict(state | {head + key: value for key, value in classifier.head.state_dict().items()})
    return theirs.eval()


CASES = [("vit", "mean"), ("vit", "cls"), ("beit", "mean"), ("beit", "cls"), ("swin", "mean"), ("convvit", "mean")]


@pytest.mark.parametrize(("kind", "pool"), [*CASES, ("convvit", "cls"), ("pvt", "mean")])
def test_logits_are_those_of_the_networks_own_classifier(kind: str, pool: str) -> None:
    classifier = made(kind, pool)
    images = batch().images
    with torch.no_grad():
        theirs = their_classifier(kind, pool, classifier)(normalised(images))
        assert torch.allclose(classifier.logits(images), theirs, atol=1e-4, rtol=1e-4)
        assert torch.allclose(classifier.logits(normalised(images)), theirs, atol=1e-4, rtol=1e-4)
        assert torch.allclose(classifier.head(classifier.features(images)), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "pool"), [*CASES, ("convvit", "cls"), ("pvt", "mean")])
def test_everything_that_is_trained_gets_a_gradient(kind: str, pool: str) -> None:
    classifier, given = made(kind, pool), batch()
    classifier(given.images, classifier.draw(given, Generator()))["total"].backward()
    idle = [name for name, p in classifier.named_parameters() if p.requires_grad and p.grad is None]
    frozen = {name for name, p in classifier.named_parameters() if not p.requires_grad}
    assert not idle
    unused = {"convvit": {"backbone.fusions"}}.get(kind, set())
    unused |= {"backbone.network.norm"} if classifier.fc_norm is not None else set()
    assert {name.rsplit(".", 2 if "fusions" in name else 1)[0] for name in frozen} == unused


def test_positions_are_trained_though_frozen_in_pretraining() -> None:
    for kind in ("vit", "convvit"):
        backbone = MAKERS[kind]((32, 32), MEAN, STD)
        assert not backbone.network.pos_embed.requires_grad
        assert Classifier(backbone, CLASSES).backbone.network.pos_embed.requires_grad


def test_beits_shared_table_goes_into_every_block() -> None:
    torch.manual_seed(0)
    backbone, images = create_beit("beit_micro", (32, 32), MEAN, STD, drop_path=0.2, overrides=TOY), batch().images
    randomised(backbone)
    set_checkpointing(backbone)
    with torch.no_grad():
        before = backbone.eval()(images)
        shared = backbone.network.rel_pos_bias.relative_position_bias_table.clone()
        classifier = Classifier(backbone, CLASSES).eval()
        after = classifier.backbone(images)
    assert torch.allclose(before.tokens, after.tokens, atol=1e-6)
    tables = [block.attn.relative_position_bias_table for block in backbone.network.blocks]
    assert all(torch.equal(table, shared) for table in tables)
    assert backbone.network.rel_pos_bias is None
    assert backbone.network.grad_checkpointing  # asked for before, and kept
    assert [getattr(block.drop_path1, "drop_prob", 0) for block in backbone.network.blocks] == pytest.approx(
        [0, 0.1, 0.2]
    )
    name, arguments = backbone.origin
    timm.create_model(name, **arguments).load_state_dict(backbone.network.state_dict())


@pytest.mark.parametrize(("scale", "std"), [(1e-3, 2e-5), (1.0, 0.02)])
def test_first_head(scale: float, std: float) -> None:
    torch.manual_seed(0)
    classifier = Classifier(MAKERS["vit"]((32, 32), MEAN, STD), 400, init_scale=scale)
    assert float(classifier.head.weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert not classifier.head.bias.any()
    assert torch.equal(classifier.fc_norm.weight, torch.ones(24))


def test_losses() -> None:
    given = batch()
    for mixing, share in ((None, 1.0), (Mixing(prob=0.0), 1.0)):
        classifier = made("vit", smoothing=0.2, mixing=mixing)
        loss = classifier(given.images, classifier.draw(given, Generator()))["total"]
        log = F.log_softmax(classifier.logits(given.images), dim=1)
        assert torch.allclose(loss, -(soft_targets(given.labels, CLASSES, 0.2, share) * log).sum(1).mean(), atol=1e-6)


@pytest.mark.parametrize("mixing", [Mixing(0.8, 0.0), Mixing(0.0, 1.0)], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("kind", ["vit", "convvit"])
def test_the_mixed_loss_by_hand(kind: str, mixing: Mixing) -> None:
    classifier, given = made(kind, mixing=mixing), batch()
    mix = mixing.draw((32, 32), Generator().manual_seed(5))
    loss = classifier(given.images, classifier.draw(given, Generator().manual_seed(5)))["total"]
    own, others = normalised(given.images), normalised(given.images.flip(0))
    if mix.box is None:
        images = mix.share * own + (1 - mix.share) * others
    else:
        images, (top, bottom, left, right) = own.clone(), mix.box
        images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    log = F.log_softmax(classifier.logits(images), dim=1)
    expected = -(soft_targets(given.labels, CLASSES, 0.1, mix.share) * log).sum(1).mean()
    assert torch.allclose(loss, expected, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("mixing", [None, Mixing(0.8, 0.0), Mixing(0.0, 1.0)], ids=["plain", "mixup", "cutmix"])
def test_slices_of_a_batch_give_its_loss(mixing: Mixing | None, parts: int) -> None:
    """As the trainer accumulates: pictures are mixed across slices, and uneven slices weigh what they hold."""
    classifier, given = made("vit", mixing=mixing), batch(7)
    draw = classifier.draw(given, Generator().manual_seed(2))
    whole = classifier(given.images, draw)["total"]
    slices = zip(given.images.tensor_split(parts), draw.split(parts), strict=True)
    losses = [classifier(images, part)["total"] * len(images) / 7 for images, part in slices]
    assert len(losses) == parts
    assert torch.allclose(torch.stack(losses).sum(), whole, atol=1e-5)


def test_draws_are_the_generators_alone() -> None:
    classifier, given = made("vit", mixing=Mixing()), batch()
    first, second = (classifier.draw(given, Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.targets, second.targets)
    assert torch.equal(first.partners, given.images.flip(0))
    assert torch.equal(first.weights, second.weights)
    assert not torch.equal(first.targets, classifier.draw(given, Generator().manual_seed(4)).targets)


def test_it_learns_a_batch() -> None:
    torch.manual_seed(0)
    classifier, given = Classifier(MAKERS["vit"]((32, 32), MEAN, STD), CLASSES, smoothing=0.0), batch(8)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3)
    for _ in range(40):
        loss = classifier(given.images, MixedLabels(given.labels))["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (classifier.logits(given.images).argmax(1) == given.labels).all()


@pytest.mark.parametrize("kind", ["vit", "swin", "convvit", "beit"])
def test_layer_decay_counts_from_the_head(kind: str) -> None:
    classifier = made(kind)
    named = [(name, p) for name, p in classifier.named_parameters() if p.requires_grad]
    groups = parameter_groups(
        named, 0.05, no_decay=classifier.no_decay(), depth_of=classifier.param_depth, depth=classifier.depth,
        layer_decay=0.5,
    )  # fmt: skip
    found = {name: (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found["head.weight"] == (1.0, 0.05)
    assert found["head.bias"] == (1.0, 0.0)
    first = (
        "backbone.network.patch_embed1.proj.weight" if kind == "convvit" else "backbone.network.patch_embed.proj.weight"
    )
    assert found[first] == (0.5 ** (classifier.depth + 1), 0.05)
    exempt = [name for name in found if name.endswith(("pos_embed", "cls_token", "relative_position_bias_table"))]
    assert exempt
    assert all(found[name][1] == 0 for name in exempt)


def gradients_of(classifier: Classifier, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    classifier.zero_grad(set_to_none=True)
    torch.manual_seed(7)  # of drop path: what is computed again draws the same
    loss().backward()
    return {name: p.grad for name, p in classifier.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", MAKERS)
def test_checkpointing_changes_no_gradient(kind: str) -> None:
    classifier, given = made(kind, drop_path=0.3).train(), batch(4)
    draw = classifier.draw(given, Generator())
    calls: list[int] = []
    if BLOCKS[kind] is not None:
        classifier.backbone.network.get_submodule(BLOCKS[kind]).register_forward_pre_hook(lambda *_: calls.append(1))
    before = gradients_of(classifier, lambda: classifier(given.images, draw)["total"])
    once = len(calls)
    set_checkpointing(classifier.backbone)
    after = gradients_of(classifier, lambda: classifier(given.images, draw)["total"])
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-7, rtol=1e-5) for name in before)
    assert len(calls) == 3 * once  # once, then once and once again
    set_checkpointing(classifier.backbone, False)
    gradients_of(classifier, lambda: classifier(given.images, draw)["total"])
    assert len(calls) == 4 * once


@pytest.mark.parametrize("kind", ["vit", "convvit"])
def test_checkpointing_of_masked_views(kind: str) -> None:
    classifier, given = made(kind), batch(2)
    backbone = classifier.backbone
    views = Masking(0.5, views=2)(2, backbone.grid((32, 32)), Generator().manual_seed(0))

    def loss() -> Tensor:
        return backbone.encode(backbone.embed(given.images), views)[-1].tokens.square().mean()

    before = gradients_of(classifier, loss)
    set_checkpointing(backbone)
    after = gradients_of(classifier, loss)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-7, rtol=1e-5) for name in before)


def test_mistakes() -> None:
    swin, cmt = (MAKERS["swin"]((32, 32), MEAN, STD), create_hierarchical("cmt_micro", (32, 32), MEAN, STD))
    with pytest.raises(UserError, match='pool "cls" needs a class token'):
        Classifier(swin, CLASSES, pool="cls")
    with pytest.raises(UserError, match="1 classes"):
        Classifier(swin, 1)
    with pytest.raises(UserError, match="Cmt has no gradient checkpointing"):
        set_checkpointing(cmt)
    classifier, given = made("vit"), batch()
    with pytest.raises(UserError, match="needs labels"):
        classifier.draw(given._replace(labels=None), Generator())
    with pytest.raises(UserError, match=r"class number 5 .* 5 classes"):
        classifier.draw(given._replace(labels=given.labels * 0 + CLASSES), Generator())


def test_of_several_class_tokens_the_mean_is_classified() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
    backbone = create_vit("vit_micro", (32, 32), MEAN, STD, overrides=sizes, class_tokens=3)
    torch.nn.init.normal_(backbone.network.reg_token)
    classifier, images = Classifier(backbone, CLASSES, pool="cls").eval(), batch().images
    with torch.no_grad():
        assert torch.allclose(classifier.features(images), backbone(images).prefix.mean(1), atol=1e-6)
        assert not torch.allclose(classifier.features(images), backbone(images).prefix[:, 0], atol=1e-3)
