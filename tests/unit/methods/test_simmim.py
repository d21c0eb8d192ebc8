"""SimMIM's own count of hidden cells, and cells finer than a Swin's tokens, against the loss as it is published."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from remask.backbones.beit import create_beit
from remask.backbones.swin import create_swin
from remask.build.pretraining import build_method, counts
from remask.errors import UserError
from remask.interop import simmim as interop
from remask.masking import COUNTS, Count, Masking
from remask.method import Method
from remask.methods import simmim
from remask.recipe import load_recipe
from remask.recipe.formats import rules_of
from remask.targets import Pixels
from remask.tokens import cell_of

MEAN, STD, SIZE = interop.MEAN, interop.STD, (48, 48)
SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 4), "window_size": 3}
"""Tokens of 16 px, of which a mask token replaces 2×2."""
SWIN_MICRO = {
    "backbone.name": "swin_micro", "backbone.patch_size": "off", "backbone.width": "off", "backbone.depth": "off",
    "backbone.heads": "off", "data.image_size": 48, "masking.pattern": "cells",
}  # fmt: skip


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = create_swin("swin_tiny_patch4_window7_224", SIZE, MEAN, STD, overrides=SWIN)
    method = simmim(backbone, Masking(0.6), Pixels(backbone.patch, MEAN, STD, per_patch=False))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return {key: tensor.clone() for key, tensor in interop.to_official(method).items()}


def loaded(official: dict[str, Tensor], cell: int, ratio: float = 0.6) -> Method:
    return interop.load(official, size=SIZE, cell=cell, ratio=ratio).eval()


@pytest.mark.parametrize("cell", [2, 4, 6, 8, 12, 16, 24])
def test_loss_is_the_published_one_whatever_the_cell(official: dict[str, Tensor], cell: int) -> None:
    """The official decoder, PixelShuffle and sum over hidden pixels, on a mask of cells of that many pixels."""
    method, images = loaded(official, cell), torch.randn(2, 3, *SIZE, generator=Generator().manual_seed(1))
    views = method.draw(images, Generator().manual_seed(2))
    hidden = views.pixels(method.mask_unit)[0].unsqueeze(1)
    side = SIZE[0] // cell
    whole = hidden.unfold(2, cell, cell).unfold(3, cell, cell).flatten(4)
    assert (whole == whole[..., :1]).all()
    assert (whole[..., 0].sum((1, 2, 3)) == math.ceil(0.6 * side**2)).all()
    tokens = method.backbone.encode(method.backbone.embed(images), views, mask_token=method.sees.mask_token)[-1].tokens
    maps = tokens.mT.unflatten(2, method.backbone.grid(SIZE))
    restored = F.pixel_shuffle(F.conv2d(maps, official["decoder.0.weight"], official["decoder.0.bias"]), 16)
    expected = ((images - restored).abs() * hidden).sum() / (hidden.sum() + 1e-5) / 3
    torch.testing.assert_close(method(images, views)["total"], expected, atol=1e-6, rtol=1e-5)
    back = interop.to_official(method)
    assert all(torch.equal(back[key], official[key]) for key in official)


@pytest.mark.parametrize("cell", [2, 6, 8])
def test_what_is_hidden_reaches_nothing(official: dict[str, Tensor], cell: int) -> None:
    method, images = loaded(official, cell), torch.randn(1, 3, *SIZE, requires_grad=True)
    views = method.draw(images.detach(), Generator().manual_seed(2))
    method.backbone.encode(method.backbone.embed(images), views, mask_token=method.sees.mask_token)[
        -1
    ].tokens.sum().backward()
    hidden = views.pixels(method.mask_unit)[0].unsqueeze(1).expand_as(images)
    assert not images.grad[hidden].any()
    assert images.grad[~hidden].any()


@pytest.mark.parametrize("cell", [1, 3, 5, 7, 9])
def test_a_cell_that_a_swin_cannot_hide_is_refused(official: dict[str, Tensor], cell: int) -> None:
    with pytest.raises(
        UserError, match=f"masking cell of {cell} does not fit tokens of 16×16 px: a cell is whole patches of 2×2 px"
    ) as e:
        loaded(official, cell)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("cell", [4, 12, 20, 8, 16, 32])
def test_a_vit_hides_whole_patches(cell: int) -> None:
    overrides = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    backbone = create_beit("beit_base_patch16_224", (32, 32), MEAN, STD, overrides=overrides)
    state = interop.to_official(simmim(backbone, Masking(0.6), Pixels((8, 8), MEAN, STD, per_patch=False)))
    if cell % 8:
        with pytest.raises(
            UserError, match=f"masking cell of {cell} does not fit tokens of 8×8 px: a cell is whole patches of 8×8 px"
        ):
            interop.load(state, cell=cell)
    else:
        method = interop.load(state, cell=cell)
        assert (method.masking.cell * 8, method.mask_unit) == (cell, (8, 8))


def test_cells_into_units() -> None:
    assert cell_of(16, (32, 32), (4, 4)) == (1, (16, 16))
    assert cell_of(12, (32, 32), (4, 4)) == (3, (4, 4))
    assert cell_of(48, (32, 32), (4, 4)) == (3, (16, 16))
    assert cell_of(64, (32, 32), (4, 4)) == (2, (32, 32))
    with pytest.raises(UserError, match="given in patches"):
        cell_of(16, (16, 8), (16, 8))


@pytest.mark.parametrize(
    ("cells", "ratio", "hidden"),
    [
        (25, 0.8, {"mae": 21, "simmim": 20, "maskfeat": 20}),
        (36, 0.6, {"mae": 22, "simmim": 22, "maskfeat": 22}),
        (49, 0.6, {"mae": 30, "simmim": 30, "maskfeat": 29}),
        (196, 0.4, {"mae": 79, "simmim": 79, "maskfeat": 78}),
        (16, 0.75, {"mae": 12, "simmim": 12, "maskfeat": 12}),
        (100, 0.9, {"mae": 91, "simmim": 90, "maskfeat": 90}),
        (64, 0.55, {"mae": 36, "simmim": 36, "maskfeat": 35}),
    ],
)
def test_every_method_counts_as_its_code_does(cells: int, ratio: float, hidden: dict[Count, int]) -> None:
    for count, expected in hidden.items():
        assert COUNTS[count](cells, ratio) == expected, count
        masking = Masking(ratio, count=count)
        assert masking.counts((1, cells)).hidden == expected
        views = Masking(ratio, count=count, views=2)(3, (1, cells), Generator().manual_seed(0))
        assert (views.mask.sum(-1) == expected).all()


@pytest.mark.parametrize(
    ("recipe", "keys", "hidden"),
    [
        ("simmim-vit-micro-cifar", {}, 20 * 4),
        ("simmim-vit-micro-cifar", {"masking.count": "mae"}, 21 * 4),
        ("simmim-vit-micro-cifar", rules_of(1), 21 * 4),
        ("mae-vit-micro-cifar", {}, 81),
        ("mae-vit-micro-cifar", {"masking.count": "simmim"}, 80),
        ("fastmim-vit-micro", {"method.decoder_heads": 1}, 81),
        ("maskfeat-vit-micro-cifar", {"masking.ratio": 0.555}, 56),
        ("maskfeat-vit-micro-cifar", {"masking.ratio": 0.555, **rules_of(1)}, 56),
    ],
)
def test_recipes_count_so_and_old_runs_as_they_were_started(recipe: str, keys: dict, hidden: int) -> None:
    size = 80 if recipe == "fastmim-vit-micro" else 40
    given = {"masking.ratio": 0.8, "data.image_size": size, **keys}
    known = {key: value for key, value in given.items() if key != "data.range"}
    loaded_recipe = load_recipe(recipe, known, environment={})
    assert counts(build_method(loaded_recipe), loaded_recipe).hidden == hidden


@pytest.mark.parametrize(("pixels", "unit", "cell"), [(8, 8, 1), (4, 4, 1), (2, 2, 1), (6, 2, 3), (24, 8, 3)])
def test_a_recipe_hides_cells_finer_than_a_swins_tokens(pixels: int, unit: int, cell: int) -> None:
    keys = {**SWIN_MICRO, "jd": "on"}
    recipe = load_recipe("simmim-vit-micro-cifar", {**keys, "masking.cell_pixels": pixels}, environment={})
    method = build_method(recipe)
    assert (method.mask_unit, method.masking.cell) == ((unit, unit), cell)
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    losses = method(images, method.draw(images, Generator().manual_seed(0)))
    losses["total"].backward()
    assert losses["total"].isfinite()
    with pytest.raises(UserError, match=r"masking\.cell_pixels 3 does not fit tokens of 8×8 px"):
        build_method(load_recipe("simmim-vit-micro-cifar", {**keys, "masking.cell_pixels": 3}, environment={}))


@pytest.mark.parametrize("method", ["maskfeat", "beit"])
def test_other_replacing_methods_hide_whole_tokens(method: str) -> None:
    """Their targets are of a token: HOG of a patch, one word."""
    target = {"maskfeat": "hog-l2", "beit": "tokens"}[method]
    keys = {**SWIN_MICRO, "method.target": target}
    with pytest.raises(UserError, match=f"method {method} hides whole patches; only fastmim hides parts of one"):
        load_recipe("simmim-vit-micro-cifar", {**keys, "method.name": method, "masking.cell_pixels": 4}, environment={})


@pytest.mark.parametrize("count", ["mae", "simmim", "maskfeat"])
@pytest.mark.parametrize(("side", "ratio"), [(5, 0.8), (7, 0.6), (6, 0.6), (14, 0.75), (9, 0.55), (13, 0.9)])
def test_two_views_hide_everything_however_cells_are_counted(count: Count, side: int, ratio: float) -> None:
    masking = Masking(ratio=ratio, views=2, count=count)
    counts = masking.counts((side, side))
    mask = masking(3, (side, side), torch.Generator().manual_seed(0)).mask
    assert counts.predicted == side**2
    assert mask.any(0).all()
    assert (mask.sum(-1) == counts.hidden).all()
