"""teaching.py: the teachers that [distill] names, the blocks that are aligned, and a student's first weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from remask.build import build_method
from remask.interop.export import export_backbone
from remask.recipe import Recipe, choose, dump, load_recipe
from remask.runs import untrained
from remask.targets import Encoded
from remask.targets.teacher import Teacher
from remask.types import UserError

TOY = {"backbone.width": 16, "backbone.depth": 4, "backbone.heads": 2, "data.image_size": "16x24"}


def recipe(name: str, **keys: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in keys.items()}
    return load_recipe(f"{name}-vit-micro-cifar", {**TOY, "method.decoder_width": 16, **given}, environment={})


@pytest.mark.parametrize(
    ("name", "sees", "norm", "layer"), [("dmae", "view", "unit", 3), ("moma", "image", "layer", 5)]
)
def test_teachers_see_what_their_paper_says(name: str, sees: str, norm: str, layer: int) -> None:
    """vit_micro has six blocks: dmae reads block 3, at three quarters, moma the last."""
    method = build_method(recipe(name))
    target = method.branches[-1].target
    assert isinstance(target, Encoded)
    assert (target.per_view, target.norm, target.layer) == (sees == "view", norm, layer)
    assert method.branches[-1].layer == (2 if name == "dmae" else -1)


def test_every_key_of_a_teacher_is_taken() -> None:
    one = {"source": "untrained:vit_micro", "layer": 1, "weight": 0.25}
    two = {"source": "untrained:vit_micro", "final_norm": True, "layer": 5, "size": [32, 32]}
    method = build_method(
        recipe("moma", distill={"teachers": [one, two], "beta": 2.0, "head": "mlp", "layers": [0, 0]})
    )
    first, second = (branch.target for branch in method.branches)
    assert isinstance(first, Encoded)
    assert isinstance(second, Encoded)
    assert (first.layer, second.layer, second.size) == (1, -1, (32, 32))
    assert [branch.weight for branch in method.branches] == [0.25, 0.5]
    assert [branch.layer for branch in method.branches] == [0, 0]
    assert "MLP" in method.branches[0].head.describe()


def test_learned_weights_are_parameters() -> None:
    method = build_method(recipe("moma", distill={"teachers": ["untrained:vit_micro"] * 2, "learned": True}))
    found = {name: p.item() for name, p in method.named_parameters() if name.endswith("log_variance")}
    assert [round(value, 4) for value in found.values()] == [0.6931, 0.6931]  # exp(-s) = 1/2


def test_a_network_without_tokens_teaches_moma_alone() -> None:
    target = build_method(recipe("moma", distill={"teachers": ["untrained:resnet18"]})).branches[0].target
    assert isinstance(target, Teacher)
    assert target.norm == "layer"
    named = {"teachers": [{"source": "untrained:resnet18", "layer": 0, "heads": 4}]}
    with pytest.raises(UserError, match="leave out heads and layer"):
        build_method(recipe("moma", distill=named))
    with pytest.raises(UserError, match="use method moma"):
        build_method(recipe("dmae", distill={"teachers": ["untrained:resnet18"]}))


def test_a_student_starts_from_a_run_and_all_of_it_is_trained(tmp_path: Path) -> None:
    own = build_method(recipe("moma", seed=7))
    export_backbone(own.backbone, tmp_path, (16, 24), [0.5] * 3, [0.5] * 3)
    method = build_method(recipe("moma", backbone__weights=f"run:{tmp_path}"))
    state, wanted = method.backbone.network.state_dict(), own.backbone.network.state_dict()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    fresh = untrained(recipe("moma", backbone__weights=f"run:{tmp_path}")).backbone.network.state_dict()
    assert not torch.equal(fresh["blocks.0.attn.qkv.weight"], wanted["blocks.0.attn.qkv.weight"])
    frozen = [name for name, p in method.backbone.network.named_parameters() if not p.requires_grad]
    assert frozen == ["pos_embed"]


def test_flags_name_teachers() -> None:
    chosen = choose("moma-vit-micro-cifar", teachers=["untrained:vit_micro,layer=2", "run:runs/b,weight=0.5"])
    assert chosen.distill
    teachers = [(t.source, t.layer, t.weight) for t in chosen.distill.teachers]
    assert teachers == [("untrained:vit_micro", 2, None), ("run:runs/b", None, 0.5)]
    assert load_written(dump(chosen)).distill == chosen.distill


def load_written(text: str) -> Recipe:
    import tomllib

    return Recipe.model_validate(tomllib.loads(text))


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("mae", {"distill": {"teachers": ["untrained:vit_micro"]}}, "has no teachers"),
        ("mae", {"method.name": "moma"}, "learns from teachers: name one with --teacher"),
        ("moma", {"distill": {"teachers": []}}, "distill.teachers"),
        ("dmae", {"distill": {"teachers": ["untrained:vit_micro"], "layers": [1, 2]}}, "2 blocks for 1 teachers"),
        ("moma", {"distill": {"teachers": ["a:b", "c:d"], "layers": [1, 2]}}, "one block of the student"),
        ("dmae", {"distill": {"teachers": ["untrained:vit_micro"], "learned": True}}, "belong to moma"),
        ("dmae", {"distill": {"teachers": [{"source": "untrained:vit_micro", "weight": 0.0}]}}, "above 0"),
    ],
)
def test_mistakes_are_one_line(name: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_recipe(f"{name}-vit-micro-cifar", keys, environment={})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("distill", "words"),
    [
        ({"teachers": ["untrained:vit_micro"], "layers": [9]}, "blocks 0 to 3"),
        ({"teachers": [{"source": "untrained:vit_micro", "layer": 6}]}, "no block 6"),
        ({"teachers": ["mae:nowhere.pth"]}, "does not exist"),
        ({"teachers": ["magic:x"]}, "names no encoder"),
        ({"teachers": [{"source": "untrained:vit_micro", "weights": "x"}]}, "leave out weights"),
    ],
)
def test_teachers_that_do_not_fit_are_one_line(distill: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_method(recipe("dmae", distill=distill))
