"""targets/token_teacher.py: which tokens of a frozen backbone are read, and that it is never trained."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.masking import Masking
from remask.targets import Pixels, TokenTeacher, per_view, prefix
from remask.targets.map_teacher import resized
from remask.views import Views

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
OWN_MEAN, OWN_STD = [0.5, 0.4, 0.3], [0.25, 0.5, 0.2]
SIZE, PATCH = (16, 24), (4, 4)


def network(patch: int = 4, size: tuple[int, int] = SIZE, mean: list[float] = OWN_MEAN) -> ViT:
    torch.manual_seed(0)
    small = {"patch_size": patch, "embed_dim": 12, "depth": 3, "num_heads": 2}
    return create_vit("vit_micro", size, mean, OWN_STD, overrides=small, drop_path=0.5)


def encoded(net: ViT, **options: object) -> TokenTeacher:
    return TokenTeacher(net, PATCH, MEAN, STD, **{"norm": "none", "name": "tiny", **options})  # type: ignore[arg-type]


def pictures(batch: int = 2, size: tuple[int, int] = SIZE, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return (images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def drawn(views: int = 3, batch: int = 2) -> Views:
    return Masking(0.6, views=views)(batch, (4, 6), torch.Generator().manual_seed(0))


@contextmanager
def watched(net: ViT) -> Iterator[dict[int, Tensor]]:
    """What each block that ran has put out."""
    found: dict[int, Tensor] = {}

    def watch(number: int) -> object:
        return net.network.blocks[number].register_forward_hook(
            lambda module, inputs, output: found.update({number: output})
        )

    hooks = [watch(number) for number in range(net.depth)]
    yield found
    for hook in hooks:
        hook.remove()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("layer", "read"), [(0, 0), (1, 1), (-1, 2)])
def test_the_whole_image_is_read_at_a_block_beyond_which_nothing_runs(layer: int, read: int) -> None:
    net = network()
    target = encoded(net, layer=layer)
    with watched(net) as blocks:
        rows = target(pictures(), drawn())
    assert sorted(blocks) == list(range(read + 1))
    assert rows.shape == (2, 1 + 24, 12), "once an image, however many views"
    assert torch.equal(rows, blocks[read])
    with watched(net) as blocks:
        net.network(normalised(pictures(), OWN_MEAN, OWN_STD))
    assert torch.allclose(rows, blocks[read], atol=1e-5), "by the teacher's own constants, in timm's own pass"


def test_behind_the_final_norm() -> None:
    net = network()
    nn.init.normal_(net.network.norm.weight)
    rows, raw = encoded(net, final_norm=True)(pictures()), encoded(net)(pictures())
    assert torch.equal(rows, net.network.norm(raw))
    assert not torch.allclose(rows, raw)


def test_a_view_is_what_the_student_sees_of_it() -> None:
    """Prefix and visible tokens in raster order, and no masked pixel reaches them."""
    net, images, views = network(), pictures(), drawn()
    target = encoded(net, layer=1, sees="view")
    assert (per_view(target), prefix(target)) == (True, 1)
    with watched(net) as blocks:
        rows = target(images, views)
    assert rows.shape == (3 * 2, 1 + views.visible.shape[1], 12)
    assert sorted(blocks) == [0, 1]
    assert torch.equal(rows, blocks[1])
    for v in range(3):
        alone = Views(views.mask[v : v + 1], views.grid, views.hidden)
        hidden = alone.pixels(PATCH)[0].unsqueeze(1)
        assert torch.equal(target(torch.where(hidden, 255 - images, images), alone), target(images, alone))
        assert not torch.equal(target(torch.where(hidden, images, 255 - images), alone), target(images, alone))
        features = net.encode(net.embed(images), alone, layers=(1,))[1]
        assert torch.allclose(rows[2 * v : 2 * v + 2], torch.cat(features, dim=1), atol=1e-5)


@pytest.mark.parametrize("sees", ["image", "view"])
def test_norms_of_a_vector(sees: str) -> None:
    raw, layer, unit = (encoded(network(), norm=n, sees=sees)(pictures(), drawn()) for n in ("none", "layer", "unit"))
    spread = raw.var(-1, unbiased=False, keepdim=True)
    assert torch.allclose(layer, (raw - raw.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt(), atol=1e-5)
    assert torch.allclose(unit, raw / raw.square().sum(-1, keepdim=True).sqrt(), atol=1e-6)


@pytest.mark.parametrize("sees", ["image", "view"])
def test_prefix_tokens_may_be_left_out(sees: str) -> None:
    net = network()
    whole, without = (encoded(net, sees=sees, prefix=kept) for kept in (True, False))
    assert (prefix(whole), prefix(without), prefix(Pixels(PATCH, MEAN, STD))) == (1, 0, 0)
    assert torch.equal(whole(pictures(), drawn())[:, 1:], without(pictures(), drawn()))


def test_floats_are_turned_back_unless_they_were_made_for_the_teacher() -> None:
    images, net = pictures(), network()
    rows = encoded(net)(images)
    assert torch.allclose(encoded(net)(normalised(images, MEAN, STD)), rows, atol=1e-5)
    alike = TokenTeacher(net, PATCH, OWN_MEAN, OWN_STD, norm="none", name="tiny")
    exactly = torch.randn(2, 3, *SIZE)
    assert torch.equal(alike(exactly), torch.cat(net.encode(net.embed(exactly), layers=(2,))[2], dim=1))
    assert (alike.alike, encoded(net).alike) == (True, False)


@pytest.mark.parametrize("sees", ["image", "view"])
def test_another_patch_on_another_size_makes_the_same_grid(sees: str) -> None:
    size = (8, 12)
    net, images, views = network(2, size), pictures(), drawn()
    rows = encoded(net, size=size, sees=sees)(images, views)
    smaller = resized(images.float(), size).to(torch.uint8)
    by_hand = net.encode(net.embed(smaller), views if sees == "view" else None, layers=(2,))[2]
    assert torch.allclose(rows, torch.cat(by_hand, dim=1), atol=1e-5)


@pytest.mark.parametrize("patch", [8, 2])
def test_another_grid_is_resized_to_the_students(patch: int) -> None:
    net, own = network(patch), (16 // patch, 24 // patch)
    rows = encoded(net)(pictures())
    front, tokens = net.encode(net.embed(pictures()), layers=(2,))[2]
    maps = F.interpolate(tokens.mT.reshape(2, 12, *own), (4, 6), mode="bilinear", antialias=True)
    assert torch.equal(rows[:, :1], front)
    assert torch.allclose(rows[:, 1:], maps.flatten(2).mT, atol=1e-6)
    with pytest.raises(UserError, match=f"tiny has a grid of {own[0]}×{own[1]} tokens and the student one of 4×6"):
        encoded(net, sees="view")(pictures(), drawn())


def test_gray_pictures_are_repeated() -> None:
    gray = TokenTeacher(network(), PATCH, [0.5], [0.5], norm="none", name="tiny")
    images = pictures(channels=1)
    assert torch.allclose(gray(images), encoded(network())(images.repeat(1, 3, 1, 1)), atol=1e-6)


def test_it_is_never_trained_and_never_saved() -> None:
    net = network().train()
    target = encoded(net)
    owner = nn.ModuleDict({"target": target})
    owner.train()
    assert list(owner.state_dict()) == list(owner.parameters()) == []
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    images = pictures()
    first = target(images)
    assert not target(normalised(images, MEAN, STD).requires_grad_()).requires_grad
    assert torch.equal(target(images), first), "drop path is off"
    assert copy.deepcopy(target).network.networks[0] is not net


def test_it_follows_its_owner() -> None:
    target = encoded(network(), size=(32, 48))
    nn.Sequential(target).to("meta")
    assert target(pictures().to("meta")).shape == (2, 25, 12)
    with torch.device("meta"):
        counted = encoded(network(), sees="view")
    assert counted(pictures().to("meta"), drawn().to(torch.device("meta"))).shape == (6, 1 + 9, 12)


def test_features_are_fp32_under_autocast() -> None:
    target = encoded(network())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = target(pictures())
    assert lowered.dtype == torch.float32
    assert not torch.equal(lowered, target(pictures()))
    assert torch.allclose(lowered, target(pictures()), atol=0.1)


def test_what_does_not_fit_is_named_in_one_line() -> None:
    for options, line in [
        ({"layer": 3}, "the teacher tiny has blocks 0 to 2, and no block 3"),
        ({"layer": 1, "final_norm": True}, "the norm of the teacher tiny follows its last block, not block 1"),
    ]:
        with pytest.raises(UserError, match=line):
            encoded(network(), **options)
    resnet = create_hierarchical("resnet18", (32, 32), MEAN, STD)
    with pytest.raises(UserError, match="the teacher tiny cannot drop masked tokens: choose a ViT"):
        encoded(resnet, sees="view")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the teacher tiny sees 3 channels, not 2"):
        TokenTeacher(network(), PATCH, [0.5] * 2, [0.5] * 2, name="tiny")
    with pytest.raises(UserError, match="the teacher tiny gives 64 channels there, not 512"):
        encoded(resnet, layer=1)(pictures(size=(32, 32)))  # type: ignore[arg-type]


def test_words() -> None:
    assert encoded(network()).describe() == "features of tiny at block 2, which sees the image"
    described = encoded(network(), final_norm=True, norm="layer").describe()
    assert described == "features of tiny at its end, which sees the image, LayerNorm"
    unit = encoded(network(), layer=1, sees="view", norm="unit").describe()
    assert unit == "features of tiny at block 1, which sees the view, of unit length"
