"""methods/{simmim,maskfeat,beit}.py: the published losses by hand, the published initial weights."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.masked_input import TokensReplaced
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Method
from remask.methods import beit, dm, jd, maskfeat, simmim
from remask.targets import Hog, Pixels
from remask.tokens import unpatchify
from remask.views import Views

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = (32, 32)
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "beit": lambda: create_beit("beit_micro", SIZE, MEAN, STD, overrides={"patch_size": 8, "depth": 2}),
    "vit": lambda: create_vit(
        "vit_micro", SIZE, MEAN, STD, positions="learned", overrides={"patch_size": 8, "depth": 2}
    ),
    "swin": lambda: create_swin("swin_micro", SIZE, MEAN, STD, overrides={"depth": 1}),
}


class Words(nn.Module):
    """Ids that follow from an image's pixels, beside a network of their own, as a tokenizer has one."""

    width = 11

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(2, 3)
        self.before = self.network.weight.detach().clone()

    def forward(self, images: Tensor, views: Views) -> Tensor:
        return images.unfold(2, 8, 8).unfold(3, 8, 8)[..., 0, 0].sum(1).flatten(1).long().remainder(11).unsqueeze(-1)

    def describe(self) -> str:
        return "words"


def pictures(batch: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, 3, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(1))


def pixels() -> Pixels:
    return Pixels((8, 8), MEAN, STD, per_patch=False)


def hog() -> Hog:
    return Hog((8, 8), MEAN, STD, flavour="sobel", cell=4, norm="l2")


def made(kind: str, backbone: str = "beit") -> Method:
    torch.manual_seed(0)
    f, masking = BACKBONES[backbone](), Masking(0.4, Blocks())
    kinds = {
        "simmim": lambda: simmim(f, Masking(0.6), pixels()),
        "maskfeat": lambda: maskfeat(f, masking, hog()),
        "beit": lambda: beit(f, masking, Words()),  # type: ignore[arg-type]
    }
    return kinds[kind]()


def predicted(method: Method, images: Tensor, views: Views) -> Tensor:
    """The head's output for every token, [VB, N, P]."""
    features = method.backbone.encode(method.backbone.embed(images), views, mask_token=method.sees.mask_token)[-1]
    return method.branches[0].head.predict(features.tokens)  # type: ignore[attr-defined]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_simmim_is_the_mean_error_of_masked_pixels(backbone: str) -> None:
    """As published: the sum of |x - x'| over masked pixels, over their number and the channels."""
    method, images = made("simmim", backbone), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    x = (images / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    restored = unpatchify(predicted(method, images, views), (4, 4), (8, 8))
    mask = unpatchify(views.mask[0].float().unsqueeze(-1).expand(-1, -1, 64), (4, 4), (8, 8))
    expected = ((x - restored).abs() * mask).sum() / (mask.sum() + 1e-5) / 3
    assert method(images, views)["total"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_maskfeat_is_the_mean_square_over_masked_tokens(backbone: str) -> None:
    method, images = made("maskfeat", backbone), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    error = (predicted(method, images, views) - hog()(images)).square()
    assert method(images, views)["total"].item() == pytest.approx(error[views.mask[0]].mean().item(), rel=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_beit_is_the_cross_entropy_of_masked_tokens(backbone: str) -> None:
    method, images = made("beit", backbone), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    logits, ids = predicted(method, images, views), Words()(images, views)[..., 0]
    assert logits.shape == (3, 16, 11)
    expected = F.cross_entropy(logits[views.mask[0]], ids[views.mask[0]])
    assert method(images, views)["total"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_final_norm_comes_before_the_head() -> None:
    method, images = made("maskfeat", "vit"), pictures()
    views = method.draw(images, Generator().manual_seed(0))
    before = method(images, views)["total"]
    nn.init.zeros_(method.backbone.network.norm.weight)
    assert not torch.equal(method(images, views)["total"], before)


@pytest.mark.parametrize("kind", ["simmim", "maskfeat", "beit"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_with_dm_and_jd_every_parameter_learns(kind: str, backbone: str) -> None:
    method = jd(dm(made(kind, backbone)), hog(), 8)
    losses = method(pictures())
    assert list(losses) == ["masked", "visible", "total"]
    losses["total"].backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert trained == {name for name, p in method.named_parameters() if ".target." not in name}


def spread(tensor: Tensor) -> float:
    return tensor.detach().std().item()


CUT = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(1 / math.sqrt(2)))
"""The standard deviation of a normal of .02 that is cut off at .02."""


@pytest.mark.parametrize("kind", ["simmim", "beit"])
def test_published_start_of_a_beit(kind: str) -> None:
    method = made(kind)
    network = method.backbone.network
    first, second = network.blocks
    for weight in (network.patch_embed.proj.weight, second.attn.qkv.weight, first.mlp.fc1.weight):
        assert weight.abs().max().item() <= 0.02
        assert spread(weight) == pytest.approx(CUT, rel=0.05)
    for number, block in enumerate(network.blocks, 1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.abs().max().item() <= 0.02 / math.sqrt(2 * number) + 1e-9
            assert spread(weight) == pytest.approx(CUT / math.sqrt(2 * number), rel=0.05)
        assert not block.attn.q_bias.any()
        assert not block.mlp.fc1.bias.any()
        assert bool((block.gamma_1 == 0.1).all())
    assert not network.patch_embed.proj.bias.any()
    assert not network.rel_pos_bias.relative_position_bias_table.any()
    for token in (network.cls_token, method.sees.mask_token):
        assert 0 < token.abs().max().item() <= 0.02


def test_heads_start_as_published() -> None:
    """BEiT's as the rest; SimMIM's as PyTorch makes a convolution; MaskFeat's a normal of .02."""
    widths = {"simmim": 1 / math.sqrt(3 * 128), "beit": CUT, "maskfeat": 0.02}
    for kind, deviation in widths.items():
        head = made(kind).branches[0].head.predict  # type: ignore[attr-defined]
        assert spread(head.weight) == pytest.approx(deviation, rel=0.05), kind
        assert bool(head.bias.any()) == (kind == "simmim")


def test_published_start_of_maskfeat() -> None:
    method = made("maskfeat", "vit")
    network = method.backbone.network
    last = network.blocks[1]
    for weight in (last.attn.proj.weight, last.mlp.fc2.weight, network.pos_embed, method.sees.mask_token):
        assert spread(weight) == pytest.approx(0.02, rel=0.2)
        assert weight.abs().max().item() > 0.03
    assert network.pos_embed.requires_grad
    assert method.sees.mask_token is not None
    assert not network.blocks[0].attn.qkv.bias.any()


def test_a_swin_keeps_the_weights_of_timm() -> None:
    torch.manual_seed(0)
    before = BACKBONES["swin"]().network.state_dict()
    after = made("simmim", "swin").backbone.network.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert made("simmim", "swin").sees.mask_token.shape == (32,)  # type: ignore[union-attr]


def test_a_tokenizer_keeps_its_weights() -> None:
    target = made("beit").branches[0].target
    assert isinstance(target, Words)
    assert torch.equal(target.network.weight, target.before)


def test_a_frozen_table_stays() -> None:
    torch.manual_seed(0)
    backbone = create_vit("vit_micro", SIZE, MEAN, STD, overrides={"patch_size": 8, "depth": 1})
    table = backbone.network.pos_embed.detach().clone()
    assert torch.equal(simmim(backbone, Masking(0.6), pixels()).backbone.network.pos_embed, table)


def test_masked_tokens_are_replaced_never_dropped() -> None:
    for kind in ("simmim", "maskfeat", "beit"):
        method = made(kind)
        assert isinstance(method.sees, TokensReplaced)
        assert method.sees.mask_token is not None
        assert method.sees.mask_token.shape == (128,)


def test_a_backbone_that_cannot_replace_is_refused() -> None:
    backbone = BACKBONES["vit"]()
    backbone.modes = ("drop",)
    with pytest.raises(UserError, match="cannot replace masked tokens"):
        simmim(backbone, Masking(0.6), pixels())
