"""No key of a recipe is silent: every one of every shipped recipe, changed, changes what is built, or is refused.

Recipes are made small first. A key does in two recipes the same where what decides about it is the same (`context`):
it is then tried in the first of them. What is built is what the commands' own code hands to its trainer
(tests/built.py).

A new key fails here until it is known how to change it: VALUES below has what to try where the type does not tell. If
it changes nothing for some methods, say whose it is in src/remask/recipe/used.py.
"""

import copy
import functools
import json
import tomllib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import remask.backbones.vit
import remask.build.codebook
import remask.build.pixel_rule
import remask.build.pretraining
import remask.build.teachers
import remask.build.training
import remask.downstream.detect.task
import remask.downstream.finetune.task
import remask.downstream.network
import remask.downstream.segment.task
import remask.downstream.training
import remask.interop.encoders
import remask.runs.data_sources
import remask.runs.session
import remask.targets.hog
from remask.downstream.build import build_task
from remask.errors import UserError
from remask.recipe import Recipe, dump, load_recipe, recipe_names, shrink
from remask.recipe.distill import TeacherSection
from remask.recipe.downstream import TASKS, Downstream
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.recipe.sections import DISTILLING, METHODS
from remask.recipe.used import unused
from remask.recipe.values import SHORTHANDS, Target
from remask.training.runtime import resolve
from tests.built import fingerprint
from tests.tried import SAID, candidates, leaves, silent, value_of

VALUES: dict[str, list[Any]] = {
    "data.source": ["digits:val"],
    "data.val": ["digits:train"],
    "data.image_size": [[64, 128]],
    "data.mean": [[0.4]],
    "data.std": [[0.3]],
    "data.crop_scale": [[0.3, 0.9]],
    "data.crop_ratio": [[0.9, 1.1]],
    "data.scale": [[0.4, 1.9]],
    "data.channels": [1],
    "data.limit": [16],
    "data.exclude": [["3*"], ["*3*"]],
    "data.crops": [2],
    "data.share": [0.5],
    "data.ignore": [1],
    "data.classes": [9],
    "backbone.name": ["deit_tiny_patch16_224"],
    "backbone.weights": ["mae:missing.pth"],
    "backbone.patch_size": [2],
    "masking.ratio": [0.5],
    "masking.cell": [2, 1],
    "masking.cell_pixels": [16, 8],
    "masking.blob": [1.5],
    "method.name": ["mae", "simmim"],
    "method.target": ["hog", "pixels"],
    "jd.target": ["pixels", "hog-l2"],
    "method.target.file": ["missing.safetensors"],
    "jd.target.file": ["missing.safetensors"],
    "method.target.teacher": ["untrained:test_vit2"],
    "jd.target.teacher": ["untrained:test_vit2"],
    "method.target.weights": ["missing.pth"],
    "jd.target.weights": ["missing.pth"],
    "average.decay": [[0.5, 0.9]],
    "refine.blocks": [2],
    "refine.layers": [[0]],
    "method.target.layers": [[0]],
    "jd.target.layers": [[0]],
    "method.target.top": [1, 2],
    "jd.target.top": [1, 2],
    "method.decoder_heads": [1],
    "method.decoder_layers": [[0], ["input", "end"]],
    "backbone.heads": [1],
    "method.cells": [[2, 4], [4]],
    "distill.cache": ["features"],
    "distill.teachers": [["untrained:vit_tiny"]],
    "progress.sizes": [[16, 32], [32, 64], [64, 128]],
    "progress.epochs": [[3, 1]],
    "probe.source": ["digits:val"],
    "runtime.device": ["cuda:7"],
    "runtime.workers": [1],
    "optim.betas": [[0.8, 0.9]],
    "optim.drops": [[0.5]],
    "model.source": ["untrained:vit_tiny"],
    "model.heads": [2],
    "augment.randaugment": ["rand-m5-mstd0.5-inc1", "rand-m4-mstd0.5-inc1"],
}  # fmt: skip
"""What to try for keys whose types do not tell: the first that is new."""

EVERY: dict[str, list[Any]] = {
    "method.name": list(METHODS),
    "method.target": [word for word in SHORTHANDS if word != "clip"],  # which is fetched
    "jd.target": [word for word in SHORTHANDS if word != "clip"],
    "data.range": ["full", "byte", [0, 5000]],
    "masking.predicted": ["all", "once", 0.25],
}
"""Enumerations that are no Literal: all members but the one at hand."""

BESIDE: dict[str, dict[str, Any]] = {
    "data.range": {"data.source": "deep", "data.range": "auto"},
    "data.keep": {"data.source": "others", "data.keep": "auto"},
    "data.exclude": {"data.source": "others"},
    "data.channels": {"data.mean": "off", "data.std": "off"},
}
"""What a key is tried with, where the small recipe's other values would hide it: pictures of a kind."""

FLAGS = {"data.source": "--data", "data.exclude": "--exclude", "runtime.device": "--device"}
"""What a message may say in place of the key: the flag that a person types."""

ALIKE = {"masking.pattern": ("random", "cells")}
"""Members of an enumeration that say the same: what differs is masking.cell, a key of its own."""

NEUTRAL = {
    "data.crop_scale": [0.2, 1.0], "optim.epochs": 4, "optim.warmup_epochs": 1.0, "optim.batch_size": 8,
    "optim.weight_decay": 0.05, "optim.betas": [0.9, 0.95], "optim.max_steps": 4, "data.source": "digits:train",
    "optim.clip": None, "optim.min_lr": 0.0, "optim.base_lr": 1e-3, "probe.source": "digits:train", "data.limit": 32,
    "data.max_bad": 0.01, "data.channels": 3, "data.mean": [0.5, 0.5, 0.5], "data.std": [0.5, 0.5, 0.5],
    "data.reduced": False,
    "data.flip": True, "masking.ratio": 0.75, "backbone.drop_path": 0.1, "dm.prediction": 1.0, "jd.beta": 2.0,
    "jd.weight": 1.0,
}  # fmt: skip
"""Numbers that are the same in all small recipes."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """What a trainer was to be made of."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__("stopped")
        self.given = (given, named)


def _stop(*given: Any, **named: Any) -> None:
    raise Stopped(*given, **named)


@pytest.fixture(scope="module", autouse=True)
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands stop where training would begin; what costs time and tells nothing of a key is left out or kept."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("keys"))
        _toys(Path())
        base, sizes = remask.backbones.vit.SMALL["vit_micro"]  # teachers, and what a task starts from
        patch.setitem(remask.backbones.vit.SMALL, "vit_micro", (base, {**sizes, "depth": 4}))
        patch.setitem(copy._deepcopy_dispatch, OrderedDict, _copied)  # type: ignore[attr-defined]
        patch.setattr(remask.build.training, "Trainer", _stop)
        patch.setattr(remask.downstream.training, "Trainer", _stop)
        patch.setattr(remask.runs.session, "build_method", functools.partial(_method, {}))
        for module in (remask.runs.session, remask.downstream.finetune.task):
            for name in ("open_source", "open_second"):
                patch.setattr(module, name, functools.partial(_kept, getattr(module, name), {}))
        patch.setattr(
            remask.runs.data_sources, "inventory", functools.partial(_kept, remask.runs.data_sources.inventory, {})
        )
        for module in (remask.build.pixel_rule, remask.downstream.network):
            patch.setattr(module, "measure", functools.partial(_measured, module.measure, {}))
        patch.setattr(
            remask.targets.hog, "gradient_table", functools.partial(_table, {}, remask.targets.hog.gradient_table)
        )
        patch.setattr(remask.build.training, "gflops_per_image", lambda recipe: 0.0)
        patch.setattr(remask.build.teachers, "open_encoder", functools.partial(_opened, {}))
        patch.setattr(remask.build.codebook, "fit", lambda *_: None)
        for module in (remask.build.training, remask.runs.session):  # as on a machine whose GPU decodes
            patch.setattr(module, "no_decoder", lambda device, channels: None)
        for task in (remask.downstream.finetune.task, remask.downstream.segment.task, remask.downstream.detect.task):
            patch.setattr(task, "gflops", lambda *_: 0.0)
        yield
    torch.set_num_threads(threads)


def _method(kept: dict[Any, Any], recipe: Recipe, start: bool = True) -> Any:
    """A copy of the method that a recipe with the same sections had; schedules and runtimes do not shape it.

    What is wanted once is not copied.
    """
    key = recipe.model_dump_json(exclude={"optim", "runtime", "probe", *SAID}), start, torch.get_default_device()
    if kept.setdefault(key) is None:
        method = remask.build.pretraining.build_method(recipe, start)
        kept[key] = functools.partial(remask.build.pretraining.build_method, recipe, start)
        return method
    if isinstance(kept[key], functools.partial):
        kept[key] = kept[key]()
    return deepcopy(kept[key])


def _copied(given: OrderedDict[Any, Any], memo: dict[int, Any]) -> OrderedDict[Any, Any]:
    """A copy of what a module holds of hooks, more than ten of which are empty: deepcopy is slow at telling so."""
    copied = memo[id(given)] = OrderedDict[Any, Any]()
    copied.update((key, deepcopy(value, memo)) for key, value in given.items())
    return copied


def _kept(opens: Any, kept: dict[str, Any], *given: Any, **named: Any) -> Any:
    """The pictures that were opened with the same arguments."""
    key = repr((given, named))
    if key not in kept:
        kept[key] = opens(*given, **named)
    return kept[key]


def _measured(measure: Any, kept: dict[Any, Any], source: Any, *given: Any, **named: Any) -> Any:
    """What was measured of the same pictures, which are kept too, so that no others get their id."""
    key = id(source), repr((given, named))
    if key not in kept:
        kept[key] = measure(source, *given, **named), source
    return kept[key][0]


def _table(kept: dict[Any, Any], made: Any, *given: Any) -> Any:
    """A large table that nobody writes into."""
    key = given, torch.get_default_device()
    if key not in kept:
        kept[key] = made(*given)
    return kept[key]


def _opened(kept: dict[str, Any], *given: Any, **named: Any) -> Any:
    """A copy of the teacher that was opened with the same arguments."""
    key = repr((given, named, torch.get_default_device()))
    if key not in kept:
        kept[key] = remask.interop.encoders.open_encoder(*given, **named)
    return deepcopy(kept[key])


def _toys(folder: Path) -> None:
    """Two folders of pictures, of masks, two files of boxes; pictures that EXIF turns; pictures of 12 bits."""
    random = np.random.default_rng(0)
    sets = (("pictures", "masks", "boxes", 2), ("others", "other_masks", "others", 4))
    for pixels, masks, boxes, corner in sets:
        for name in (pixels, masks):
            (folder / name).mkdir()
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "dot"}]}
        for i in range(8):
            Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / pixels / f"{i}.png")
            Image.fromarray(random.integers(0, 6, (40, 40), np.uint8)).save(folder / masks / f"{i}.png")
            content["images"].append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 40})
            content["annotations"].append(
                {"id": i, "image_id": i, "category_id": 1, "bbox": [corner, 2, 20, 20], "area": 400, "iscrowd": 0}
            )
        (folder / f"clean_{boxes}.json").write_text(json.dumps(content))
        content["annotations"].append({**content["annotations"][0], "id": 8, "bbox": [2, 2, 0, 0], "area": 0})
        (folder / f"{boxes}.json").write_text(json.dumps(content))
    for name in ("turned", "deep", "deep_pictures"):
        (folder / name).mkdir()
    for i in range(8):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "turned" / f"{i}.png", exif=exif)
        for name in ("deep/a", "deep/b", "deep_pictures"):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, 4000, (40, 40), np.uint16)).save(folder / name / f"{i}.png")


def fault_of(
    key: str, recipe: Any, tries: list[Any], build: Callable[..., str], before: str,
    others: Mapping[str, dict[str, Any]] = BESIDE,
) -> str | None:  # fmt: skip
    """Why a key is silent, tried with what stands beside it."""
    beside, now, flag = others.get(key), value_of(recipe, key), FLAGS.get(key, "")
    if key == "progress.epochs" and not recipe.progress:
        height, width = recipe.data.image_size
        beside = {"progress.sizes": [[height // 2, width // 2], [height, width]]}
    if beside is not None:
        before, now = build(beside), beside.get(key, now)
    alike = ALIKE.get(key, ())
    tries = [value for value in tries if value != now and not (value in alike and now in alike)]
    return silent(key, now, tries, lambda key, value: build({**(beside or {}), key: value}), before, flag)


def tried(key: str, schema: type[Any], recipe: Any, values: dict[str, list[Any]]) -> list[Any]:
    """The values that are tried for a key."""
    now = value_of(recipe, key)
    if key.endswith("target"):
        return [word for word in EVERY[key] if Target.model_validate(word) != now]
    if key in EVERY:
        return EVERY[key]
    if key == "backbone.patch_size" and recipe.backbone.name.startswith("swin"):
        return [4]
    if key == "distill.layers":  # another than the default: three quarters of two blocks, or the last
        return [[0 if recipe.method.name == "moma" else 1]]
    return candidates(key, schema, now, values)


# ------------------------------------------------------------------------------------------------- pre-training


@functools.cache
def small(name: str) -> str:
    """A shipped recipe as text, shrunk, with neutral numbers."""
    recipe = shrink(load_recipe(name, environment={}))
    values = {key: value for key, value in recipe.model_dump().items() if key not in SAID}
    values["optim"] |= {"drop_epoch": 3.0} if recipe.optim.drop_epoch else {}
    for key, value in {**NEUTRAL, **_network(recipe)}.items():
        section, _, inner = key.rpartition(".")
        if section and (values.get(section) or section == "probe"):
            values[section] = {**(values[section] or {}), inner: value}
    if recipe.masking.pattern == "none":
        values["masking"]["ratio"] = 0.0
    for section in ("method", "jd"):
        if values[section]:
            values[section]["target"] |= {"cell": None}
    return dump(Recipe.model_validate({**values, "name": "small"}))


def _network(recipe: Recipe) -> dict[str, Any]:
    """The smallest network of its family, on tokens of 4 px where the family can."""
    family = next((name for name in ("vit", "beit", "convvit") if recipe.backbone.name.startswith(name)), None)
    if family is None:
        return {"progress.epochs": [2, 2], "data.image_size": recipe.data.image_size if recipe.progress else [128, 128]}
    patch, cells = recipe.backbone.patch or 4, recipe.masking.cell_pixels
    cells = cells and cells * 4 // patch
    teachers = [{"source": "untrained:vit_micro"} for _ in recipe.distill.teachers] if recipe.distill else []
    return {
        "backbone.name": f"{family}_micro", "backbone.patch_size": 4, "masking.cell_pixels": cells,
        "data.image_size": [32, 32], "distill.teachers": teachers,
    }  # fmt: skip


def context(key: str, recipe: Recipe) -> tuple[Any, ...]:
    """What decides about a key, so that it does the same in two recipes where this is the same.

    A section's keys are read by the method, for its kind of network; by the section's own switches, which are the
    deciding keys of remask.recipe.used; and the loader's and the trainer's, whatever the method, by neither.
    """
    method, network = recipe.method.name, recipe.backbone.name.partition("_")[0]
    masking, dm, jd, optim = recipe.masking, recipe.dm, recipe.jd, recipe.optim

    def kind(target: Any) -> tuple[Any, ...]:
        return target.kind, target.tokenizer, target.over, target.file is None

    deciding: dict[str, tuple[Any, ...]] = {
        "data": (bool(recipe.progress), recipe.data.crop),
        "backbone": (method, network),
        "masking": (method, network, masking.pattern, masking.cell_pixels is None),
        "method": (method, network, *kind(recipe.method.target)),
        "dm": (method, dm and dm.independent),
        "jd": (method, *((*kind(jd.target), jd.layers > 1) if jd else ())),
        "uniformity": (bool(recipe.uniformity),),
        "optim": (method, optim.lr is None, optim.drop_epoch is None, bool(dm)),
        "distill": (method, recipe.distill and len(recipe.distill.teachers)),
        "progress": (network, bool(recipe.progress)),
    }
    disjoint = (bool(dm),) if key == "masking.predicted" else ()
    return deciding.get(key.partition(".")[0], ()) + disjoint


SEEN: set[tuple[Any, ...]] = set()
KEYS: dict[str, list[str]] = {}
"""The keys that are tried in each recipe."""
for _name in recipe_names():
    _recipe = Recipe.model_validate(tomllib.loads(small(_name)))
    for _key in leaves(Recipe):
        if (_context := (_key, *context(_key, _recipe))) not in SEEN:
            SEEN.add(_context)
            KEYS.setdefault(_name, []).append(_key)


@pytest.mark.parametrize("name", KEYS)
def test_no_key_of_pretraining_is_silent(name: str, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text(small(name))

    def build(values: dict[str, Any]) -> str:
        torch.set_num_threads(1)
        return pretraining(load_recipe(file, values, environment={}))

    recipe, before = load_recipe(file, environment={}), build({})
    assert build({"seed": 0}) == before, "the fingerprint is not its own"
    faults = [fault_of(key, recipe, tried(key, Recipe, recipe, VALUES), build, before) for key in KEYS[name]]
    if recipe.distill and "distill.teachers" in KEYS[name]:
        faults += [_silent_teacher(recipe, key, build, before) for key in TeacherSection.model_fields]
    assert not (found := [fault for fault in faults if fault]), found


def _silent_teacher(recipe: Recipe, key: str, build: Callable[..., str], before: str) -> str | None:
    """A key of the first teacher."""
    assert recipe.distill
    first, *rest = [teacher.model_dump(exclude_none=True) for teacher in recipe.distill.teachers]
    values = {
        "source": ["untrained:vit_tiny"], "weights": ["file"], "size": [[64, 64]], "heads": [2], "layer": [1],
        "mean": [[0.1, 0.2, 0.3]], "std": [[0.1, 0.2, 0.3]],
    }  # fmt: skip
    extra = {"std": {"mean": [0.5, 0.5, 0.5]}, "mean": {"std": [0.5, 0.5, 0.5]}}.get(key, {})
    tries = candidates(key, TeacherSection, first.get(key), values)
    tables = [[{**first, **extra, key: value}, *rest] for value in tries]
    return silent(f"distill.teachers.{key}", None, tables, lambda _, value: build({"distill.teachers": value}), before)


def pretraining(recipe: Recipe) -> str:
    """What `session.train` hands to its trainer."""
    try:
        remask.runs.session.train(recipe, Path("run"), quiet=True, fresh=True)
    except Stopped as stop:
        return fingerprint(stop.given, torch.get_num_threads())
    raise AssertionError("the trainer was not reached")


@pytest.mark.parametrize("name", recipe_names())
def test_small_recipes_stand_for_the_shipped_ones(name: str) -> None:
    recipe = load_recipe(name, environment={})
    stand_in = Recipe.model_validate(tomllib.loads(small(name)))
    assert {*unused(stand_in)} - {"dm.prediction"} == {*unused(recipe)} - {"dm.prediction"}


# ------------------------------------------------------------------------------------------------- downstream

TOY: dict[str, dict[str, Any]] = {
    "finetune": {"data.source": "digits:train", "data.val": "digits:val", "data.limit": 40, "data.image_size": 32},
    "segment": {
        "data.source": "pictures", "data.masks": "masks", "data.val": "pictures", "data.val_masks": "masks",
        "model.width": 16,
    },
    "detect": {
        "data.source": "pictures", "data.annotations": "boxes.json", "data.val": "pictures",
        "data.val_annotations": "boxes.json", "model.width": 16, "data.skip_bad": True,
    },
}  # fmt: skip
ALL = {
    "model.source": "untrained:vit_micro", "optim.epochs": 4, "optim.warmup_epochs": 1.0, "optim.batch_size": 4,
    "optim.max_steps": 4, "runtime.device": "cpu", "runtime.workers": 0, "data.image_size": 32,
}  # fmt: skip
OTHERS = {
    "data.source": ["others"], "data.val": ["others"], "data.masks": ["other_masks"], "data.val_masks": ["other_masks"],
    "data.annotations": ["others.json"], "data.val_annotations": ["others.json"],
    "data.limit": [6], "data.image_size": [[64, 32]],
}  # fmt: skip


DEEP = {"data.source": "deep_pictures", "data.val": "deep_pictures", "data.range": "auto"}
BESIDE_TASKS: dict[str, dict[str, dict[str, Any]]] = {
    "finetune": {
        "data.range": {"data.source": "deep", "data.val": "deep", "data.range": "auto", "augment.randaugment": "off"},
    },
    "segment": {"data.range": DEEP, "data.exif": {"data.source": "turned", "data.exif": "stored"}},
    "detect": {"data.range": DEEP, "data.exif": {"data.source": "turned", "data.exif": "stored"}},
}  # fmt: skip


def of_task(task: str, recipe: str | Path, values: Mapping[str, Any] = {}) -> Downstream:
    """A shipped recipe of a task, made small, or a file."""
    small = {} if isinstance(recipe, Path) else {**ALL, **TOY[task]}
    found: Downstream = load(TASKS[task], FOLDER / task, recipe, {**small, **values}, environment={})
    return found


def context_of_task(key: str, recipe: Any) -> tuple[Any, ...]:
    """As `context`: the switches of a key's own section."""
    optim, model, augment = recipe.optim, recipe.model, getattr(recipe, "augment", None)
    deciding: dict[str, tuple[Any, ...]] = {
        "optim": (optim.schedule, optim.lr is None),
        "model": (getattr(model, "head", None), model.frozen),
        "augment": augment and (augment.randaugment in (None, "off"), augment.mixup > 0, augment.cutmix > 0),
    }
    return deciding.get(key.partition(".")[0], ())


TASK_KEYS: dict[tuple[str, str], list[str]] = {}
for _task in TASKS:
    for _name in recipe_names(FOLDER / _task):
        _downstream = of_task(_task, _name)
        for _key in leaves(TASKS[_task]):
            if (_context := (_task, _key, *context_of_task(_key, _downstream))) not in SEEN:
                SEEN.add(_context)
                TASK_KEYS.setdefault((_task, _name), []).append(_key)


@pytest.mark.parametrize(("task", "name"), TASK_KEYS)
def test_no_key_of_a_task_is_silent(task: str, name: str, tmp_path: Path) -> None:
    file, schema, keys = tmp_path / "small.toml", TASKS[task], TASK_KEYS[task, name]
    recipe = of_task(task, name)
    said = {key: "" for key in SAID if key not in ("notes", "task")}
    file.write_text(dump(recipe.model_copy(update={**said, "notes": []})))

    def build(values: dict[str, Any]) -> str:
        torch.set_num_threads(1)
        return downstream(of_task(task, file, values))

    before = build({})
    assert build({"seed": 0}) == before, "the fingerprint is not its own"
    values = {**VALUES, **(OTHERS if task != "finetune" else {"data.limit": [36]})}
    faults = [
        fault_of(key, recipe, tried(key, schema, recipe, values), build, before, BESIDE_TASKS[task]) for key in keys
    ]
    assert not (found := [fault for fault in faults if fault]), found


def downstream(recipe: Downstream) -> str:
    """What `downstream.fit` hands to its trainer, and the task beside it."""
    part = recipe.runtime
    runtime = resolve(part.device, recipe.optim.precision, part.compile, part.threads)
    task = build_task(recipe, runtime)
    try:
        remask.downstream.training.train(task, recipe, runtime, Path("run"), fresh=True, quiet=True)
    except Stopped as stop:
        return fingerprint(stop.given, task, torch.get_num_threads())
    raise AssertionError("the trainer was not reached")


# ------------------------------------------------------------------------------------------------- the fewest keys


MINIMAL = """
[data]
image_size = 32
{crops}
[backbone]
name = "{network}"
[masking]
{masking}
[method]
name = "{method}"
{target}
[optim]
epochs = 2
warmup_epochs = 0
batch_size = {batch}
base_lr = 1e-3
{distill}
"""
NETWORKS = {"beit": "beit_micro", "convmae": "convvit_micro"}
TARGETS = {"beit": 'target = "tokens"', "moma": "", "refiner": "", "localmim": 'target = "hog-l2"'}
TEACHERS = """
[distill]
teachers = ["untrained:vit_micro"]
"""


@pytest.mark.parametrize("method", METHODS)
def test_the_keys_that_must_be_given_are_enough_to_train(method: str, tmp_path: Path) -> None:
    """What a schema has by default is taken by the command: no default is refused."""
    file = tmp_path / "least.toml"
    file.write_text(
        MINIMAL.format(
            method=method,
            network=NETWORKS.get(method, "vit_micro"),
            target=TARGETS.get(method, 'target = "pixels"'),
            distill=TEACHERS if method in DISTILLING else "",
            masking='pattern = "none"\nratio = 0' if method == "refiner" else 'pattern = "random"\nratio = 0.5',
            crops="crops = 2" if method == "refiner" else "",
            batch=32 if method == "refiner" else 4,
        )
    )
    given = {"data.source": "digits:train", "runtime.device": "cpu"}
    assert pretraining(load_recipe(file, given, environment={}))


PLACES = {
    "finetune": {"data.source": "digits:train"},
    "segment": {"data.source": "pictures", "data.masks": "masks"},
    "detect": {
        "data.source": "pictures", "data.annotations": "clean_boxes.json",
        "data.val": "others", "data.val_annotations": "clean_others.json",
    },
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_keys_that_must_be_given_are_enough_for_a_task(task: str, tmp_path: Path) -> None:
    needed = {"epochs": "1", "batch_size": "4", "lr": "1e-3"}
    given = {**PLACES[task], "model.source": "untrained:vit_micro", "runtime.device": "cpu"}

    def least(keys: list[str]) -> Downstream:
        lines = [f"{key} = {needed[key]}" for key in keys]
        (tmp_path / "least.toml").write_text("\n".join([f'task = "{task}"', "[optim]", *lines, ""]))
        return of_task(task, tmp_path / "least.toml", given)

    assert downstream(least([*needed]))
    for key in needed:
        with pytest.raises(UserError, match=f"optim.{key} is missing"):
            least([other for other in needed if other != key])


# ------------------------------------------------------------------------------------------------- the test's own eyes


def test_what_counts_as_silent_and_as_refused() -> None:
    """One value without effect is a fault; an error is a refusal by the key's full name or flag alone."""

    def refusing(line: str) -> Callable[[str, Any], str]:
        def build(key: str, value: Any) -> str:
            raise UserError(line)

        return build

    def unmoved(key: str, value: Any) -> str:
        return "same"

    assert silent("data.flip", True, [False], unmoved, "same") == "data.flip: [False] changes nothing"
    assert silent("data.flip", True, [False], unmoved, "other") is None
    for line, refused in {
        "data.flip is for photographs": True,
        "--flip is for photographs": True,
        "flip is for photographs": False,
        "data.flipped is for photographs": False,
        "jd.data.flip is for photographs": False,
        "--flip-all is for photographs": False,
    }.items():
        assert (silent("data.flip", True, [False], refusing(line), "same", "--flip") is None) is refused, line
    three = lambda key, value: "same" if value == "cpu" else value  # noqa: E731
    assert silent("data.decode", "auto", ["cpu", "cuda"], three, "same") is None  # auto stands for one
    assert silent("data.decode", "fast", ["cpu", "cuda"], three, "same") == "data.decode: ['cpu'] changes nothing"


def test_the_fingerprint_sees_what_a_function_reads_and_no_more() -> None:
    """A recipe in a closure counts by the attributes that are read; a builtin of a key's name is none."""

    def made(recipe: Recipe) -> tuple[Callable[[], Any], Callable[[], Any]]:
        return (lambda: recipe.data.range), (lambda: [*range(3)] and recipe.data.flip)

    one, other = (load_recipe("demo", {"data.range": value}, environment={}) for value in ("full", [0, 100]))
    (reads, passes), (reads_too, passes_too) = made(one), made(other)
    assert fingerprint(reads) != fingerprint(reads_too)
    assert fingerprint(passes) == fingerprint(passes_too)
