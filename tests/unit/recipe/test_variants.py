"""recipe/variants.py: what flags change besides the key they name: another network's sizes, another method's target."""

from typing import Any

import pytest

from remask.recipe import Recipe, choose, load_recipe, shrink

SIZES = ("patch_size", "width", "depth", "heads")


def sizes(recipe: Recipe) -> tuple[int | None, ...]:
    return tuple(getattr(recipe.backbone, key) for key in SIZES)


def model(name: str, recipe: str = "fastmim-vit-micro", **options: Any) -> Recipe:
    return choose(recipe, {"backbone.name": name}, **options)


def test_another_network_brings_its_own_sizes() -> None:
    assert sizes(load_recipe("fastmim-vit-micro", environment={})) == (8, 96, 4, 3)
    assert sizes(model("pvt_v2_b0")) == (None, None, None, None)
    assert sizes(model("vit_tiny")) == (None, None, None, None)
    assert model("pvt_v2_b0").backbone.name == "pvt_v2_b0"


def test_the_recipes_own_network_keeps_the_recipes_sizes() -> None:
    assert sizes(model("vit_micro")) == (8, 96, 4, 3)
    assert sizes(choose("fastmim-vit-micro")) == (8, 96, 4, 3)


def test_sizes_that_the_flags_name_are_kept() -> None:
    chosen = choose(
        "fastmim-vit-micro", {"backbone.name": "vit_tiny"}, settings=["backbone.depth=3", "backbone.heads=2"]
    )
    assert sizes(chosen) == (None, None, 3, 2)
    assert sizes(choose("fastmim-vit-micro", settings=["backbone.name=resnet18"])) == (None, None, None, None)


def test_other_keys_of_the_backbone_stay() -> None:
    settings = ["backbone.name=vit_tiny", "backbone.drop_path=0.1"]
    assert choose("fastmim-vit-micro", settings=settings).backbone.drop_path == 0.1


@pytest.mark.parametrize(
    ("name", "method", "target"), [("resnet18", "fastmim+dmjd", "hog"), ("vit_tiny", "mae", "pixels")]
)
def test_a_method_and_a_network_together(name: str, method: str, target: str) -> None:
    chosen = model(name, method=method)
    assert (chosen.method.name, chosen.backbone.name) == (method.split("+")[0], name)
    assert (bool(chosen.dm), bool(chosen.jd)) == ("dm" in method, "jd" in method)
    assert chosen.method.target.kind == target
    assert sizes(chosen) == (None, None, None, None)


def test_another_method_brings_its_papers_target() -> None:
    target = choose("mae-vit-micro-cifar", method="fastmim").method.target
    assert (target.kind, target.norm, target.flavour) == ("hog", "l2", "sobel")
    assert choose("fastmim-vit-micro", method="fastmim+dm").method.target.cell == 8  # the recipe's own


@pytest.mark.parametrize(
    ("name", "toy", "own", "side"),
    [
        ("cmt_s", "cmt_micro", (None, None, None, None), 128),
        ("pvt_v2_b5", "pvt_v2_b0", (None, None, None, None), 128),
        ("swin_base_patch4_window7_224", "swin_micro", (None, None, None, None), 32),
        ("deit_small_patch16_224", "deit_small_patch16_224", (None, 32, 2, 2), 64),
        ("resnet50", "resnet50", (None, None, None, None), 128),
        ("vitamin_small_224", "vitamin_small_224", (None, None, None, None), 128),  # no plain ViT
        ("swinv2_tiny_window8_256", "swinv2_tiny_window8_256", (None, None, None, None), 128),
    ],
)
def test_what_stands_for_a_network_in_a_smoke_run(name: str, toy: str, own: tuple[int | None, ...], side: int) -> None:
    small = model(name, smoke=True)
    assert small == shrink(model(name))
    assert (small.backbone.name, sizes(small), small.data.image_size) == (toy, own, (side, side))


@pytest.mark.parametrize(("pixels", "side"), [(32, 64), (16, 64), (8, 128)])
def test_smoke_keeps_masking_cells_in_pixels(pixels: int, side: int) -> None:
    """On the fewest cells that the ratio allows, or the fewest tokens."""
    small = choose("fastmim-vit-micro", {"backbone.name": "resnet18"}, settings=[f"masking.cell_pixels={pixels}"])
    assert shrink(small).masking == small.masking
    assert shrink(small).data.image_size == (side, side)
