"""Paths of a pre-training recipe that cannot be opened, in the words of who opens them."""

from pathlib import Path
from typing import Any

import pytest

from remask.build.pretraining import build_method
from remask.errors import UserError
from remask.recipe import Recipe, choose
from remask.runs.checks import check_recipe

TOY = {"backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "data.image_size": 16, "data.source": "photos"}


def chosen(method: str = "mae", teachers: tuple[str, ...] = (), **keys: Any) -> Recipe:
    named = {name.replace("__", "."): value for name, value in keys.items()}
    return choose("mae-vit-micro-cifar", {**TOY, **named}, method=method, teachers=teachers)


@pytest.mark.parametrize(
    "recipe",
    [
        lambda: chosen("moma", ("mae:absent,heads=2",)),
        lambda: chosen("moma", ("resnet:x",)),
        lambda: chosen("moma", ("tae:,weights=absent",)),
        lambda: chosen("dmae", ("run:absent",)),
        lambda: chosen(backbone__weights="dino:absent,heads=2"),
        lambda: chosen("beit", method__target={"kind": "tokens", "file": "absent"}),
        lambda: chosen("beit", method__target={"kind": "tokens", "tokenizer": "dalle", "file": "absent"}),
        lambda: chosen(method__target={"kind": "features", "teacher": "tae:", "weights": "absent"}),
        lambda: chosen("mae+jd", jd__target={"kind": "features", "teacher": "resnet:x"}),
    ],
)
def test_the_refusal_has_the_builder_s_words(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as early:
        check_recipe(recipe())
    with pytest.raises(UserError) as late:
        build_method(recipe())
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize("source", [None, "absent"])
def test_images(source: str | None) -> None:
    with pytest.raises(UserError, match=r"no pictures to train on|there is no file"):
        check_recipe(chosen(data__source=source))
    with pytest.raises(UserError, match="there is no file"):
        check_recipe(chosen(probe__source="absent"))


def test_a_recipe_whose_paths_exist_passes() -> None:
    check_recipe(chosen())
    check_recipe(chosen("moma", ("timm:any_name", "untrained:vit_micro")))
