"""What methods take from their backbone and their paper: the same objects as when everything is spelt out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

import remask
from remask.backbones.makers import create_backbone
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Method
from remask.methods import dm, fastmim, jd, mae, maskfeat, simmim
from remask.targets import Hog, Pixels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(size: int) -> Tensor:
    return torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=Generator().manual_seed(1))


def alike(short: Callable[[Any], Method], spelt_out: Callable[[Any], Method], name: str, size: int) -> None:
    methods = []
    for make in (short, spelt_out):
        torch.manual_seed(0)
        methods.append(make(create_backbone(name, size, MEAN, STD)))
    losses = [method(images(size), generator=Generator().manual_seed(2)) for method in methods]
    assert {key: loss.item() for key, loss in losses[0].items()} == {
        key: loss.item() for key, loss in losses[1].items()
    }


def test_mae_needs_a_backbone_and_a_ratio() -> None:
    alike(
        lambda f: mae(f, 0.6, width=32, depth=1, heads=2),
        lambda f: mae(f, Masking(0.6), Pixels((4, 4), MEAN, STD, per_patch=True), (32, 32), 32, 1, 2),
        "vit_micro",
        32,
    )


def test_dmjd_in_one_line() -> None:
    alike(
        lambda f: jd(dm(mae(f, 0.75, width=32, depth=1, heads=2)), width=16),
        lambda f: jd(
            dm(mae(f, Masking(0.75), Pixels((4, 4), MEAN, STD), (32, 32), 32, 1, 2)), Hog((4, 4), MEAN, STD, cell=2), 16
        ),
        "vit_micro",
        32,
    )


@pytest.mark.parametrize(("size", "cell"), [(32, 1), (128, 8)])
def test_simmim_hides_cells_of_32_px_where_images_have_them(size: int, cell: int) -> None:
    def spelt_out(f: Any) -> Method:
        return simmim(f, Masking(0.6, cell=cell, count="simmim"), Pixels((4, 4), MEAN, STD, per_patch=False))

    alike(simmim, spelt_out, "vit_micro", size)


def test_maskfeat_and_fastmim_take_their_own_hog() -> None:
    hog = Hog((4, 4), MEAN, STD, "sobel", 2, norm="l2")
    alike(maskfeat, lambda f: maskfeat(f, Masking(0.4, Blocks(), count="maskfeat"), hog), "vit_micro", 32)
    alike(fastmim, lambda f: fastmim(f, Masking(0.75), hog), "vit_micro", 32)


@pytest.mark.parametrize(("patch", "cell"), [((16, 16), 8), ((8, 8), 8), ((4, 4), 2), ((16, 24), 8), ((1, 1), 1)])
def test_hog_cells_follow_the_patch(patch: tuple[int, int], cell: int) -> None:
    assert Hog(patch, MEAN, STD).cell == cell


@pytest.mark.parametrize("name", ["vit_micro", "beit_base_patch16_224", "swin_micro", "convvit_micro", "resnet18"])
def test_every_backbone_knows_the_size_it_was_built_for(name: str) -> None:
    with torch.device("meta") if name.startswith("beit") else torch.device("cpu"):
        assert create_backbone(name, 64).size == (64, 64)


def test_a_generator_decides_the_views() -> None:
    method = mae(create_backbone("vit_micro", 32), 0.5, width=32, depth=1, heads=2)
    first, again, other = (method(images(32), generator=Generator().manual_seed(seed))["total"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_method_is_printed_as_its_equation() -> None:
    method = remask.dm(remask.mae(remask.create_backbone("vit_micro", 32), 0.75))
    assert str(method) == remask.equation(method, (32, 32))
    assert str(method).startswith(
        "L(x) = 1 · mean over 2 views, 48 masked tokens each, of squared( decoder of 8 blocks"
    )
