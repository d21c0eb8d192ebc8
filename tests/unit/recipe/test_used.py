"""recipe/used.py: keys without use are refused where they are set, and nowhere else."""

from pathlib import Path

import pytest

from remask.backbones.makers import NETWORKS
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.recipe import Recipe, choose, dump, load_recipe, recipe_keys, recipe_names, shrink
from remask.recipe.downstream import TASKS
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.recipe.used import PLAIN, RULES, unused


def refused(recipe: str, *settings: str, **environment: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, settings, environment=environment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "setting", "owner"),
    [
        ("moma-vit-b", "method.target=hog", "moma's students predict"),
        ("moma-vit-b", "method.target.norm=l2", "moma's students predict"),
        ("moma-vit-b", "method.decoder_depth=2", "mae, convmae, fastmim, dmae"),
        ("simmim-vit-b", "method.decoder_width=2", "mae, convmae, fastmim, dmae"),
        ("maskfeat-vit-b", "method.decoder_heads=2", "mae, convmae, fastmim, dmae"),
        ("beit-vit-b", "method.decoder_mlp_ratio=2", "mae, convmae, fastmim, dmae"),
        ("mae-vit-b", "method.initial=xavier", "simmim, maskfeat, beit"),
        ("mae-vit-b", "method.initial=published", "simmim, maskfeat, beit"),
        ("convmae-convit-b", "method.initial=xavier", "simmim, maskfeat, beit"),
        ("fastmim-vit-b", "method.initial=xavier", "simmim, maskfeat, beit"),
        ("dmae-vit-b", "method.initial=xavier", "simmim, maskfeat, beit"),
        ("dmae-vit-b", "distill.learned=true", "moma"),
        ("simmim-swin-b", "backbone.positions=learned", "plain ViTs"),
        ("convmae-convit-b", "backbone.positions=learned", "plain ViTs"),
        ("fastmim-cmt-s", "backbone.positions=learned", "plain ViTs"),
        ("mae-vit-b", "optim.lr_rule=linear", r"\[dm\]"),
        ("simmim-vit-b", "optim.min_lr=1e-6", "cosine"),
        ("beit-vit-b", "method.target.weights=x", "over = "),
        ("fastmim-vit-b", "masking.cell=1", "counted in patches"),
    ],
)
def test_a_key_without_use_names_its_owner(recipe: str, setting: str, owner: str) -> None:
    said = refused(recipe, setting)
    assert said.startswith(setting.partition("=")[0])
    assert owner.replace("\\", "") in said


def test_variables_files_and_several_keys(tmp_path: Path) -> None:
    said = refused("simmim-vit-b", REMASK_METHOD__DECODER_DEPTH="2")
    assert said.endswith("(REMASK_METHOD__DECODER_DEPTH)")
    said = refused("dmae-vit-b", "distill.jitter=0.4", "distill.cache=x")
    assert said.startswith("distill.jitter, distill.cache have no use with method.name dmae: they belong to moma")
    file = tmp_path / "mine.toml"
    file.write_text('extends = "simmim-vit-b"\n[method]\ndecoder_width = 3\n')
    assert refused(str(file)).endswith(f"({file})")


def test_what_is_inherited_is_dropped_in_silence(tmp_path: Path) -> None:
    """A method chosen over a recipe, by a file or a flag, need not take back what the old one needed."""
    file = tmp_path / "mine.toml"
    file.write_text('extends = "mae-vit-b"\n[method]\nname = "simmim"\ntarget = "pixels"\n')
    for recipe in (load_recipe(file, environment={}), choose("mae-vit-b", method="simmim")):
        assert recipe.method.decoder_width == 512  # the default
        assert "decoder" not in dump(recipe)
    assert "target" not in dump(choose("dmae-vit-micro-cifar", method="moma"))


def test_a_runs_own_recipe_may_hold_every_key(tmp_path: Path) -> None:
    text = dump(load_recipe("simmim-vit-b", environment={}))
    file = tmp_path / "recipe.toml"
    file.write_text(text.replace("[method]\n", "[method]\ndecoder_width = 96\n"))
    assert "decoder_width" in refused(str(file))
    assert load_recipe(file, environment={}, strict=False).method.decoder_width == 512
    (tmp_path / "env.json").write_text("{}")
    assert load_recipe(file, environment={}).method.name == "simmim"
    assert "decoder_depth" in refused(str(file), "method.decoder_depth=3")


def test_rules_name_keys_that_there_are() -> None:
    schemas = {"pretrain": Recipe, **TASKS}
    assert {*RULES} == {*schemas}
    for name, rules in RULES.items():
        known = recipe_keys(schemas[name])
        assert not [key for rule in rules for key in (*rule.keys.split(), rule.on) if key not in known]


def test_plain_vits_are_those_that_are_made_as_such() -> None:
    assert {*PLAIN} == {start for start, make in NETWORKS.items() if make is create_vit}


@pytest.mark.parametrize("name", recipe_names())
def test_a_dump_holds_nothing_in_vain(name: str) -> None:
    recipe = load_recipe(name, environment={})
    for one in (recipe, shrink(recipe)):
        assert unused(one) == unused(Recipe.model_validate(one.model_dump()))
        keys = {line.partition(" = ")[0] for line in dump(one).splitlines()}
        if one.method.name in ("simmim", "maskfeat", "beit", "moma"):
            assert not {key for key in keys if key.startswith("decoder_")}


@pytest.mark.parametrize(
    ("task", "recipe", "setting", "owner"),
    [
        ("finetune", "vit-b", "augment.jitter=0.4", "RandAugment"),
        ("finetune", "vit-b", "optim.power=2", "poly"),
        ("segment", "small", "optim.base_lr=1e-3", "absolute"),
        ("segment", "small", "optim.drops=[0.5]", "steps"),
        ("detect", "coco-mask-rcnn-vit-b", "optim.min_lr=1e-6", "steps end"),
        ("detect", "small", "runtime.parallel=fsdp", "one process"),
    ],
)
def test_tasks_have_rules_too(task: str, recipe: str, setting: str, owner: str) -> None:
    with pytest.raises(UserError, match=owner):
        load(TASKS[task], FOLDER / task, recipe, [setting], environment={})


def test_mixing_that_is_off_has_no_share() -> None:
    off = ["augment.mixup=0", "augment.cutmix=0"]
    recipe = load(TASKS["finetune"], FOLDER / "finetune", "small", off, environment={})
    assert (recipe.augment.mixup, recipe.augment.cutmix, recipe.augment.mix_prob) == (0, 0, 1.0)
    with pytest.raises(UserError, match=r"mixing: set augment\.mixup"):
        load(TASKS["finetune"], FOLDER / "finetune", "small", [*off, "augment.mix_prob=0.5"], environment={})
