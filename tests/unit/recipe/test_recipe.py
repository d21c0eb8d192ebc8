"""recipe/: every shipped recipe, precedence, and what is written loads back equal; mistakes in test_recipe_mistakes."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from remask.errors import UserError
from remask.recipe import (
    Recipe,
    dump,
    load_recipe,
    method_label,
    method_overrides,
    parse_settings,
    recipe_keys,
    recipe_names,
    shrink,
)

NAMES = recipe_names()
MINIMAL = """
[data]
image_size = 32
[backbone]
name = "vit_micro"
patch_size = 4
[masking]
pattern = "random"
ratio = 0.75
[method]
name = "mae"
target = "pixels"
[optim]
epochs = 10
warmup_epochs = 1
batch_size = 8
base_lr = 1e-3
"""


def load(name: str = "mae-vit-b", *settings: str, **environment: str) -> Recipe:
    return load_recipe(name, settings, environment=environment)


@pytest.fixture
def write(tmp_path: Path):
    def file(text: str, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return file


# ---- what ships


def test_the_recipes_of_the_issue_ship():
    wanted = "mae-vit-b mae-vit-l mae-dm-vit-b mae-dm-block-vit-b mae-dm-block-vit-l mae-dmjd-vit-b mae-dmjd-vit-l"
    assert {*wanted.split(), "mae-vit-micro-cifar", "dmjd-vit-micro-cifar", "demo"} <= set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_states_its_source_and_survives_the_round_trip(name, write):
    recipe = load(name)
    assert recipe.name == name
    for key in ("title", "paper", "table", "expected", "command", "cost", "notes"):
        assert getattr(recipe, key), f"{name} does not state its {key}"
    assert f"--recipe {name} " in recipe.command
    assert load(write(dump(recipe), "recipe.toml")) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_shrink_keeps_the_method_and_passes_every_check(name, write):
    recipe = load(name)
    small = shrink(recipe)
    for section in ("masking", "dm"):
        assert getattr(small, section) == getattr(recipe, section)
    share = min(small.data.image_size) / min(recipe.data.image_size)
    assert small.method.target == local(recipe.method.target, share)
    patch, masking = small.backbone.patch or 0, recipe.masking
    assert patch == (8 if recipe.backbone.name.startswith("swin") else recipe.backbone.patch)
    assert method_label(small) == method_label(recipe)
    assert (small.jd and small.jd.target) == (recipe.jd and local(recipe.jd.target, share))
    grows = recipe.progress is not None
    assert (small.optim.epochs, small.optim.max_steps) == ((2, 6) if grows else (1, 4))
    assert (small.data.limit, small.runtime.device) == (32, "cpu")
    coarse, unit = masking.cell > 1 or masking.cell_pixels, max(patch * masking.cell, masking.cell_pixels or 0)
    cells = next(n for n in (2, 4, 8) if n >= (2 if coarse else 4) and int(n**2 * (1 - masking.ratio)) >= 1)
    side = cells * unit
    assert small.data.image_size == ((2 * side, 2 * side) if grows else (side, side))
    assert (small.progress and small.progress.sizes) == ([(side, side), (2 * side, 2 * side)] if grows else None)
    assert load(write(dump(small))) == small


def local(target, share):
    """The target of a shrunk recipe: the same, unless it would need a file, a download, more than two blocks, or sides
    of which the small ones are a share."""
    if target.low_pass:
        return target.model_copy(update={"low_pass": target.low_pass * share})
    if target.kind == "average":
        return target.model_copy(update={"top": 1})
    if target.kind == "features":
        return target.model_copy(update={"teacher": "untrained:test_vit", "weights": None})
    if target.kind == "tokens":
        return target.model_copy(update={"tokenizer": "codebook", "over": "hog", "vocabulary": 16, "file": None})
    return target


def test_published_settings():
    mae, dm, block = (load(name) for name in ("mae-vit-b", "mae-dm-vit-b", "mae-dm-block-vit-b"))
    assert (mae.optim.epochs, mae.optim.batch_size, mae.optim.base_lr, mae.optim.warmup_epochs) == (
        1600,
        4096,
        1.5e-4,
        40,
    )
    assert (mae.masking.pattern, mae.masking.ratio, mae.method.target.norm, mae.dm) == ("random", 0.75, "patch", None)
    assert dm.dm is not None
    assert (dm.optim.epochs * dm.dm.views, dm.masking.ratio, dm.jd) == (1600, 0.75, None)
    assert (block.optim.epochs, block.masking.pattern, block.masking.ratio, block.masking.cell) == (
        400,
        "cells",
        0.6,
        2,
    )
    assert load("mae-dmjd-vit-b").expected == load("mae-dmjd-vit-l").expected == "not published"


def test_fewer_epochs_keep_the_share_of_the_warmup():
    assert load("mae-vit-b", "optim.epochs=16").optim.warmup_epochs == pytest.approx(0.4)
    assert load("mae-vit-b", REMASK_OPTIM__EPOCHS="800").optim.warmup_epochs == pytest.approx(20)
    assert load("mae-vit-b", "optim.epochs=16", "optim.warmup_epochs=3").optim.warmup_epochs == 3


def test_torch_is_not_imported():
    code = (
        "import sys, remask.recipe as r; [r.load_recipe(n) for n in r.recipe_names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- merging


def test_precedence_recipe_environment_flags():
    assert load("demo").optim.epochs != load("dmjd-vit-micro-cifar").optim.epochs
    assert load("demo").optim.batch_size == load("mae-vit-micro-cifar").optim.batch_size
    assert load("demo", REMASK_OPTIM__EPOCHS="7").optim.epochs == 7
    assert load("demo", "optim.epochs=9", REMASK_OPTIM__EPOCHS="7").optim.epochs == 9
    assert load_recipe("demo", {"optim.epochs": 9, "data.image_size": "96x160"}, environment={}).data.image_size == (
        96,
        160,
    )


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("REMASK_SEED", "5")
    monkeypatch.setenv("REMASK_CACHE", "anywhere")
    monkeypatch.setenv("REMASK_GOLDEN", "elsewhere")
    assert load_recipe("demo").seed == 5


def test_extends_merges_key_by_key_and_leaves_the_parents_claims_behind(write):
    write('extends = "mae-dm-vit-b"\n[optim]\nepochs = 30\n', "parent.toml")
    child = load(write('extends = "parent.toml"\ntitle = "mine"\n[optim]\nbatch_size = 64\n'))
    parent = load("mae-dm-vit-b")
    assert (child.name, child.title, child.expected, child.notes) == ("mine", "mine", "", [])
    assert child.paper == parent.paper
    assert (child.optim.epochs, child.optim.batch_size, child.optim.warmup_epochs) == (30, 64, 20)
    assert child.dm == parent.dm


def test_sections_switch_on_and_off(write):
    assert load("demo", "dm=off").dm is None
    assert load("demo", "jd=false").jd is None
    assert load("demo", "dm.views=3", "dm=on").dm.views == 3
    assert load("mae-vit-b", "jd=on").jd.target == load("mae-dmjd-vit-b").jd.target
    assert load("mae-vit-b", REMASK_DM="on").dm.views == 2
    assert load("mae-dmjd-vit-l", "optim.clip=off").optim.clip is None
    assert load(write('extends = "demo"\njd = "off"\n')).jd is None


def test_settings_are_toml_values_or_text():
    texts = ["a.b=1", "c=1e-3", "d=true", "e=96x160", "f=[1, 2]", "g=digits:train", "h='7'", "i=x=y", "j=2024-01-01"]
    values = list(parse_settings(texts).values())
    assert values == [1, 1e-3, True, "96x160", [1, 2], "digits:train", "7", "x=y", "2024-01-01"]


@pytest.mark.parametrize(
    ("spec", "label"),
    [("mae", "mae"), ("mae+dm", "mae+dm"), ("mae+jd", "mae+jd"), ("mae+dmjd", "mae+dmjd"), ("dmjd", "mae+dmjd")],
)
@pytest.mark.parametrize("name", ["mae-vit-b", "mae-dmjd-vit-b"])
def test_method_overrides(name, spec, label):
    assert method_label(load_recipe(name, method_overrides(spec), environment={})) == label


def test_method_overrides_keep_the_settings_there(write):
    path = write('extends = "demo"\n[dm]\nviews = 3\n')
    assert load_recipe(path, method_overrides("dmjd"), environment={}).dm.views == 3
    with pytest.raises(
        UserError, match=r'^unknown method "mae\+vd"; known: mae, mae\+dm, mae\+jd, mae\+dmjd, simmim, '
    ):
        method_overrides("mae+vd")


# ---- values


@pytest.mark.parametrize(("text", "size"), [("48", (48, 48)), ("[96, 160]", (96, 160)), ("96x160", (96, 160))])
def test_image_sizes(text, size):
    assert load("demo", f"data.image_size={text}").data.image_size == size


@pytest.mark.parametrize(
    ("word", "kind", "norm", "flavour"),
    [
        ("pixels", "pixels", "none", "central"),
        ("pixels-norm", "pixels", "patch", "central"),
        ("hog", "hog", "layer", "central"),
        ("hog-l2", "hog", "l2", "sobel"),
    ],
)
def test_targets_by_one_word(word, kind, norm, flavour):
    target = load("demo", f"method.target={word}").method.target
    assert (target.kind, target.norm, target.flavour) == (kind, norm, flavour)


def test_a_key_of_a_target_given_by_one_word_can_be_set():
    target = load("demo", "method.target=hog-l2", "method.target.bins=12").method.target
    assert (target.norm, target.flavour, target.bins) == ("l2", "sobel", 12)
    assert load("demo", "jd.target.cell=4").jd.target.cell == 4


def test_mean_and_std_follow_the_channels():
    assert load("dmjd-vit-micro-cifar").data.mean == [0.485, 0.456, 0.406]
    grey = load("dmjd-vit-micro-cifar", "data.channels=1").data
    assert (grey.mean, grey.std) == ([0.5], [0.25])
    assert load("demo", "data.channels=4", "data.std=[0.3]").data.std == [0.3] * 4


def test_defaults_and_immutability(write):
    recipe = load(write(MINIMAL))
    assert (recipe.dm, recipe.jd, recipe.probe, recipe.optim.lr_rule, recipe.masking.cell) == (
        None,
        None,
        None,
        "dmjd",
        1,
    )
    assert load(write(MINIMAL.replace('"random"', '"cells"'))).masking.cell == 2
    with pytest.raises(ValidationError):
        recipe.optim.epochs = 3  # type: ignore[misc]


def test_every_key_has_a_line_of_help():
    keys = recipe_keys()
    assert {"seed", "optim", "optim.epochs", "jd.target.cell", "probe.k", "runtime.compile"} <= set(keys)
    assert not [key for key, text in keys.items() if not text or "\n" in text]


@given(st.text(), st.lists(st.text(), min_size=1))
def test_any_text_survives_the_round_trip(title, notes):
    recipe = load_recipe("demo", {"seed": 1}, environment={}).model_copy(update={"title": title, "notes": notes})
    assert Recipe.model_validate(tomllib.loads(dump(recipe))) == recipe


@pytest.mark.parametrize(
    "settings", [("masking.ratio=0.95",), ("masking.cell=3", "masking.pattern=cells"), ("dm.views=4",)]
)
def test_shrink_finds_a_grid_for_unusual_maskings(settings):
    small = shrink(load("mae-dm-vit-b", "data.image_size=240", *settings))
    unit = 16 * small.masking.cell
    cells = (small.data.image_size[0] // unit) ** 2
    assert int(cells * (1 - small.masking.ratio)) >= max(1, small.dm.views - 1)
