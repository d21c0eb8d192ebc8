"""teaching.py: the teachers that [distill] names, the blocks that are aligned, and a student's first weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remask.backbones.vit import create_vit
from remask.build.pretraining import build_method
from remask.build.training import gflops_per_image
from remask.color_jitter import BatchColorJitter
from remask.errors import UserError
from remask.interop.export import export_backbone
from remask.method import Method
from remask.recipe import Recipe, choose, dump, load_recipe
from remask.runs.reopen import untrained
from remask.targets import TokenTeacher
from remask.targets.cached import Cached
from remask.targets.map_teacher import MapTeacher

TOY = {"backbone.width": 16, "backbone.depth": 4, "backbone.heads": 2, "data.image_size": "16x24"}


def recipe(name: str, **keys: Any) -> Recipe:
    given = {key.replace("__", "."): value for key, value in keys.items()}
    decoder = {"method.decoder_width": 16} if name == "dmae" else {}
    return load_recipe(f"{name}-vit-micro-cifar", {**TOY, **decoder, **given}, environment={})


@pytest.mark.parametrize(
    ("name", "sees", "norm", "layer"), [("dmae", "view", "unit", 3), ("moma", "image", "layer", 5)]
)
def test_teachers_see_what_their_paper_says(name: str, sees: str, norm: str, layer: int) -> None:
    """vit_micro has six blocks: dmae reads block 3, at three quarters, moma the last."""
    method = build_method(recipe(name))
    target = method.branches[-1].target
    assert isinstance(target, TokenTeacher)
    assert (target.per_view, target.norm, target.layer) == (sees == "view", norm, layer)
    assert method.branches[-1].layer == (2 if name == "dmae" else -1)


def test_every_key_of_a_teacher_is_taken() -> None:
    one = {"source": "untrained:vit_micro", "layer": 1, "weight": 0.25}
    two = {"source": "untrained:vit_micro", "final_norm": True, "layer": 5, "size": [32, 32]}
    method = build_method(
        recipe("moma", distill={"teachers": [one, two], "beta": 2.0, "head": "mlp", "layers": [0, 0]})
    )
    first, second = (branch.target for branch in method.branches)
    assert isinstance(first, TokenTeacher)
    assert isinstance(second, TokenTeacher)
    assert (first.layer, second.layer, second.size) == (1, -1, (32, 32))
    assert [branch.weight for branch in method.branches] == [0.25, 0.5]
    assert [branch.layer for branch in method.branches] == [0, 0]
    assert "MLP" in method.branches[0].head.describe()


def plain_file(folder: Path, channels: int = 3, size: tuple[int, int] = (16, 24)) -> str:
    """A ViT under timm's names, which says nothing of its heads and of its pictures."""
    small = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    network = create_vit("vit_micro", size, [0.5] * channels, [0.5] * channels, overrides=small).network
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, folder / "vit.safetensors")
    return f"dino:{folder / 'vit.safetensors'}"


def black_and_white(method: Method) -> list[float]:
    target: Any = method.branches[0].target
    return [round(float(value), 3) for ends in (target.black, target.white) for value in ends.flatten()]


@pytest.mark.parametrize(
    ("stated", "ends"),
    [
        ("normalise=imagenet", [-2.118, -2.036, -1.804, 2.249, 2.429, 2.64]),
        ("normalise=half", [-1, -1, -1, 1, 1, 1]),
        ("normalise=clip", [-1.792, -1.752, -1.48, 1.93, 2.075, 2.146]),
        ("mean=[0.5, 0.25, 0.0],std=[0.25, 0.5, 1.0]", [-2, -0.5, 0, 2, 1.5, 1]),
    ],
)
def test_a_teachers_normalisation_is_stated(tmp_path: Path, stated: str, ends: list[float]) -> None:
    chosen = choose("moma-vit-micro-cifar", TOY, teachers=[f"{plain_file(tmp_path)},heads=2,{stated}"])
    assert black_and_white(build_method(chosen)) == pytest.approx(ends, abs=2e-3)
    assert load_written(dump(chosen)).distill == chosen.distill


def test_a_normalisation_that_nobody_stated_is_no_guess(tmp_path: Path) -> None:
    spec = plain_file(tmp_path)
    with pytest.raises(UserError, match=r"normalise=imagenet .*, half or clip, or mean and std") as caught:
        build_method(recipe("moma", distill={"teachers": [{"source": spec, "heads": 2}]}))
    assert "\n" not in str(caught.value)
    gray = plain_file(tmp_path, 1)
    with pytest.raises(UserError, match="has 1 channel, not 3"):
        build_method(recipe("moma", distill={"teachers": [{"source": gray, "heads": 2, "normalise": "half"}]}))


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"source": "untrained:resnet18", "normalise": "half"}, "in its own way: leave out distill.teachers.normalise"),
        ({"source": "timm:vit_tiny_patch16_224", "mean": [0.5] * 3, "std": [0.5] * 3}, "brings its own mean and std"),
    ],
)
def test_a_normalisation_of_ones_own_is_not_restated(teacher: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_method(recipe("moma", distill={"teachers": [teacher]}))


def test_a_student_of_gray_pictures_starts_from_a_gray_file(tmp_path: Path) -> None:
    keys = {"data.channels": 1, "data.mean": [0.5], "data.std": [0.25], "backbone.depth": 2, "data.image_size": 16}
    spec = plain_file(tmp_path, 1, (16, 16))
    method = build_method(
        load_recipe("moma-vit-micro-cifar", {**TOY, **keys, "backbone.weights": spec}, environment={})
    )
    assert torch.equal(method.backbone.network.state_dict()["norm.weight"], torch.ones(16))
    assert method.backbone.channels == 1


def test_jitter_and_cache_reach_their_parts(tmp_path: Path) -> None:
    teachers = ["untrained:vit_micro"]
    assert build_method(recipe("moma", distill={"teachers": teachers, "jitter": 0.4})).jitter == BatchColorJitter(0.4)
    assert build_method(recipe("moma", distill={"teachers": teachers})).jitter is None
    fixed = {"data__crop_scale": [1, 1], "data__flip": False}
    kept = {"teachers": teachers, "cache": str(tmp_path / "kept")}
    target = build_method(recipe("moma", distill=kept, **fixed)).branches[0].target
    assert isinstance(target, Cached)
    assert (target.folder, target.shelf) == (tmp_path / "kept", None)
    assert not any(tmp_path.iterdir()), "nothing is written before training"


def test_dmae_of_vit_l_costs_no_more_than_its_blocks() -> None:
    """1 + (teacher blocks used × teacher visible FLOPs) / (student FLOPs), within 5 %: at published sizes."""
    named = {"distill": {"teachers": [{"source": "untrained:vit_large_patch16_224", "layer": 17}], "layers": [8]}}
    dmae, mae = (
        gflops_per_image(load_recipe(name, keys, environment={}))
        for name, keys in (("dmae-vit-b", named), ("mae-vit-b", {}))
    )
    tokens, width = 1 + 49, 1024
    block = (24 * tokens * width**2 + 4 * tokens**2 * width) / 1e9
    assert 1 + 18 * block / mae < dmae / mae < 1.05 * (1 + 18 * block / mae)


def test_learned_weights_are_parameters() -> None:
    method = build_method(recipe("moma", distill={"teachers": ["untrained:vit_micro"] * 2, "learned": True}))
    found = {name: p.item() for name, p in method.named_parameters() if name.endswith("log_variance")}
    assert [round(value, 4) for value in found.values()] == [0.6931, 0.6931]  # exp(-s) = 1/2


def test_a_network_without_tokens_teaches_moma_alone() -> None:
    target = build_method(recipe("moma", distill={"teachers": ["untrained:resnet18"]})).branches[0].target
    assert isinstance(target, MapTeacher)
    assert target.norm == "layer"
    named = {"teachers": [{"source": "untrained:resnet18", "layer": 0, "heads": 4}]}
    with pytest.raises(UserError, match=r"leave out distill\.teachers\.heads and distill\.teachers\.layer"):
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
        ("dmae", {"distill": {"teachers": ["untrained:vit_micro"], "learned": True}}, "it belongs to moma"),
        (
            "dmae",
            {"distill": {"teachers": ["untrained:vit_micro"], "jitter": 0.4, "cache": "x"}},
            "jitter, distill.cache",
        ),
        ("dmae", {"distill": {"teachers": [{"source": "untrained:vit_micro", "weight": 0.0}]}}, "above 0"),
        ("moma", {"distill": {"teachers": ["untrained:vit_micro"], "jitter": 1.5}}, "at most 1"),
        ("moma", {"distill": {"teachers": ["untrained:vit_micro"], "cache": "x"}}, "these are random: leave it out"),
        (
            "moma",
            {"distill": {"teachers": [{"source": "dino:x", "mean": [0.5]}]}},
            "teachers.mean of dino:x is there without",
        ),
        ("moma", {"distill": {"teachers": [{"source": "dino:x", "normalise": "minmax"}]}}, "imagenet"),
        (
            "moma",
            {"distill": {"teachers": [{"source": "dino:x", "normalise": "half", "mean": [0.5], "std": [0.5]}]}},
            "give one or the other",
        ),
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
        ({"teachers": [{"source": "untrained:vit_micro", "weights": "x"}]}, "leave out distill.teachers.weights"),
    ],
)
def test_teachers_that_do_not_fit_are_one_line(distill: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_method(recipe("dmae", distill=distill))
