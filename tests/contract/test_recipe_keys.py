"""No key of a recipe is silent: every one of every shipped recipe, changed, changes what is built, or is refused.

Recipes are made small first, and those that then differ in nothing but numbers are tried once. What is built is what
the commands' own code hands to its trainer (tests/built.py).

A new key fails here until it is known how to change it: VALUES below has what to try where the type does not tell. If
it changes nothing for some methods, say whose it is in src/remask/recipe/used.py.
"""

import functools
import json
import tomllib
import types
import typing
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

import remask.build
import remask.codebook
import remask.downstream
import remask.interop.encoders
import remask.session
import remask.tasks.boxes
import remask.tasks.classes
import remask.tasks.masks
import remask.teaching
from remask.errors import UserError
from remask.recipe import Recipe, dump, load_recipe, method_label, recipe_keys, recipe_names, shrink
from remask.recipe.distill import TeacherSection
from remask.recipe.downstream import TASKS, Downstream
from remask.recipe.load import FOLDER, load
from remask.recipe.used import unused
from remask.runtime import resolve
from remask.tasks import build_task
from tests.built import fingerprint

SAID = ("name", "title", "paper", "table", "expected", "command", "cost", "notes", "task")
"""What a recipe says of itself, and nothing is built from."""

VALUES: dict[str, list[Any]] = {
    "data.source": ["digits:val", "photos"],
    "data.image_size": [[64, 128]],
    "data.mean": [[0.4]],
    "data.std": [[0.3]],
    "data.crop_scale": [[0.3, 0.9]],
    "data.crop_ratio": [[0.9, 1.1]],
    "data.scale": [[0.4, 1.9]],
    "data.channels": [1],
    "data.limit": [16],
    "data.range": ["full", [0, 100], "auto"],
    "data.exclude": [["3*"], ["*3*"]],
    "data.crops": [2],
    "data.share": [0.5],
    "data.ignore": [1],
    "data.classes": [5],
    "backbone.name": ["vit_tiny", "beit_tiny", "swin_micro", "convvit_micro", "resnet18"],
    "backbone.weights": ["mae:missing.pth"],
    "backbone.patch_size": [2, 8, 16],
    "masking.ratio": [0.5],
    "masking.cell": [2, 1],
    "masking.cell_pixels": [8, 16, 32],
    "method.name": ["mae", "simmim", "fastmim"],
    "method.target": ["hog", "pixels"],
    "jd.target": ["pixels", "hog-l2"],
    "method.target.file": ["missing.safetensors"],
    "jd.target.file": ["missing.safetensors"],
    "method.target.teacher": ["untrained:test_vit2"],
    "jd.target.teacher": ["untrained:test_vit2"],
    "method.target.weights": ["missing.pth"],
    "jd.target.weights": ["missing.pth"],
    "method.decoder_heads": [1],
    "backbone.heads": [1],
    "distill.cache": ["features"],
    "distill.layers": [[0], [1]],
    "distill.teachers": [["untrained:vit_tiny"]],
    "progress.sizes": [[16, 32], [32, 64], [64, 128]],
    "progress.epochs": [[3, 1]],
    "probe.source": ["digits:val"],
    "runtime.device": ["cuda:7"],
    "runtime.compile": [True],
    "runtime.workers": [1],
    "optim.betas": [[0.8, 0.9]],
    "optim.drops": [[0.5]],
    "model.source": ["untrained:vit_tiny"],
    "model.heads": [2],
    "model.normalise": ["clip", "half"],
    "augment.randaugment": ["rand-m5-mstd0.5-inc1"],
}  # fmt: skip
"""What to try for keys whose types do not tell, in turn until one of them is new."""

NEUTRAL = {
    "data.crop_scale": [0.2, 1.0], "optim.epochs": 4, "optim.warmup_epochs": 1.0, "optim.batch_size": 8,
    "optim.weight_decay": 0.05, "optim.betas": [0.9, 0.95], "optim.max_steps": 4, "data.source": "digits:train",
    "optim.clip": None, "optim.min_lr": 0.0, "optim.base_lr": 1e-3, "probe.source": "digits:train", "data.limit": 32,
    "data.max_bad": 0.01, "data.mean": [0.5, 0.5, 0.5], "data.std": [0.5, 0.5, 0.5], "data.reduced": False,
    "data.flip": True, "masking.ratio": 0.75, "backbone.drop_path": 0.1, "dm.prediction": 1.0, "jd.beta": 2.0,
    "jd.weight": 1.0,
}  # fmt: skip
"""Numbers that are the same in all small recipes, so that equal ones are found."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """What a trainer was to be made of."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__("stopped")
        self.given = (given, named)


def _stop(*given: Any, **named: Any) -> None:
    raise Stopped(*given, **named)


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Commands stop where training would begin; what costs time and tells nothing of a key is left out or kept."""
    threads, open_source = torch.get_num_threads(), functools.partial(_source, remask.session.open_source, {})
    monkeypatch.setattr(remask.build, "Trainer", _stop)
    monkeypatch.setattr(remask.downstream, "Trainer", _stop)
    monkeypatch.setattr(remask.session, "build_method", functools.partial(_kept, {}))
    monkeypatch.setattr(remask.session, "open_source", open_source)
    monkeypatch.setattr(remask.tasks.classes, "open_source", open_source)
    monkeypatch.setattr(remask.build, "gflops_per_image", lambda recipe: 0.0)
    monkeypatch.setattr(remask.teaching, "open_encoder", functools.partial(_opened, {}))
    monkeypatch.setattr(remask.codebook, "fit", lambda *_: None)
    for module in (remask.build, remask.session):  # as on a machine whose GPU decodes
        monkeypatch.setattr(module, "no_decoder", lambda device, channels: None)
    for task in (remask.tasks.classes, remask.tasks.masks, remask.tasks.boxes):
        monkeypatch.setattr(task, "gflops", lambda *_: 0.0)
    yield
    torch.set_num_threads(threads)


def _kept(kept: dict[str, Any], recipe: Recipe) -> Any:
    """A copy of the method that a recipe with the same sections had; schedules and runtimes do not shape it."""
    if torch.get_default_device().type == "meta":
        return remask.build.build_method(recipe)
    shape = {"optim", "runtime", "probe", *SAID}
    key = recipe.model_dump_json(exclude=shape)
    if key not in kept:
        kept[key] = remask.build.build_method(recipe)
    return deepcopy(kept[key])


def _source(opens: Any, kept: dict[str, Any], *given: Any, **named: Any) -> Any:
    """The pictures that were opened with the same arguments."""
    key = repr((given, named))
    if key not in kept:
        kept[key] = opens(*given, **named)
    return kept[key]


def _opened(kept: dict[str, Any], *given: Any, **named: Any) -> Any:
    """A copy of the teacher that was opened with the same arguments."""
    key = repr((given, named, torch.get_default_device()))
    if key not in kept:
        kept[key] = remask.interop.encoders.open_encoder(*given, **named)
    return deepcopy(kept[key])


# ------------------------------------------------------------------------------------------------- what is tried


def candidates(key: str, schema: type[BaseModel], now: Any) -> list[Any]:
    """Other values than the one at hand."""
    if key in VALUES:
        return [value for value in VALUES[key] if value != now]
    found = _by_type(_annotation(key, schema), now)
    assert found, f"{key}: say in VALUES of {Path(__file__).name} what to try for it"
    return found


def _by_type(annotation: Any, now: Any) -> list[Any]:
    arms = _arms(annotation)
    choices = [choice for arm in arms if typing.get_origin(arm) is Literal for choice in typing.get_args(arm)]
    if bool in arms:
        return [not now]
    if int in arms:
        return [now + 1 if isinstance(now, int) else 3]
    if choices:
        return [choice for choice in choices if choice != now]
    if float in arms:
        return [now / 2 if now else 0.25, 0.7]
    return []


def _arms(annotation: Any) -> list[Any]:
    """The plain types of an annotation: of a union, of Annotated."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [arm for part in typing.get_args(annotation) for arm in _arms(part)]
    return _arms(typing.get_args(annotation)[0]) if origin is typing.Annotated else [annotation]


def _annotation(key: str, schema: type[BaseModel]) -> Any:
    first, _, rest = key.partition(".")
    annotation = schema.model_fields[first].annotation
    if not rest:
        return annotation
    return _annotation(rest, next(arm for arm in _arms(annotation) if isinstance(arm, type) and arm is not type(None)))


def value_of(recipe: Any, key: str) -> Any:
    for name in key.split("."):
        recipe = getattr(recipe, name, None)
    return recipe


def leaves(schema: type[BaseModel]) -> list[str]:
    """The keys that hold values, and none that holds keys; a target and teachers are given as a whole too."""
    known = [key for key in recipe_keys(schema) if not key.startswith("distill.teachers.")]
    sections = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    return [key for key in known if key not in sections - {"method.target", "jd.target"}]


def silent(key: str, tries: list[Any], build: Any, before: str) -> str | None:
    """Why a key is silent; None where a change of it is seen, or refused by its name."""
    said = []
    for value in tries:
        try:
            if build(key, value) != before:
                return None
            said.append(f"{value!r} changes nothing")
        except UserError as error:
            if any(word in str(error) for word in _names(key, value)):
                return None
            said.append(f"{value!r}: {error}")
    return f"{key}: {'; '.join(said)}"


def _names(key: str, value: Any) -> tuple[str, ...]:
    """What an error may say so that a user knows which key it means."""
    section, _, last = key.rpartition(".")
    return key, last.split("_")[0], last.split("_")[-1], f"[{section}]", f"{section}.sizes is missing", str(value)


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


GROUPS: dict[str, list[str]] = {}
LABELS: dict[str, str] = {}
for _name in recipe_names():
    GROUPS.setdefault(small(_name), []).append(_name)
    LABELS.setdefault(method_label(load_recipe(_name, environment={})), small(_name))

SHARED = (
    "optim.",
    "runtime.",
    "probe.",
    "data.crop",
    "data.max",
    "data.keep",
    "data.decode",
    "data.reduced",
    "data.fl",
)
"""Keys that the loader and the trainer read, whatever the backbone and target are: tried once for each method."""


@pytest.mark.parametrize("text", GROUPS, ids=lambda text: GROUPS[text][0])
def test_no_key_of_pretraining_is_silent(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "small.toml"
    file.write_text(text)

    def build(key: str = "seed", value: Any = 0) -> str:
        torch.set_num_threads(1)
        return pretraining(load_recipe(file, {key: value}, environment={}))

    recipe, before = load_recipe(file, environment={}), build()
    assert build() == before, "the fingerprint is not its own"
    shared = text in LABELS.values()
    keys = [key for key in leaves(Recipe) if key not in SAID and (shared or not key.startswith(SHARED))]
    faults = [silent(key, candidates(key, Recipe, value_of(recipe, key)), build, before) for key in keys]
    keys = [*TeacherSection.model_fields] if recipe.distill else []
    faults += [_silent_teacher(recipe, key, build, before) for key in keys]
    assert not [fault for fault in faults if fault], GROUPS[text]


def _silent_teacher(recipe: Recipe, key: str, build: Any, before: str) -> str | None:
    """A key of the first teacher."""
    assert recipe.distill
    first, *rest = [teacher.model_dump(exclude_none=True) for teacher in recipe.distill.teachers]
    tries = {
        "source": ["untrained:vit_tiny"], "weights": ["file"], "normalise": ["clip"], "size": [[64, 64]],
        "mean": [[0.1, 0.2, 0.3]], "std": [[0.1, 0.2, 0.3]],
    }.get(key) or _by_type(TeacherSection.model_fields[key].annotation, first.get(key))  # fmt: skip
    other = {"std": "mean", "mean": "std"}.get(key)
    extra = {other: [0.5, 0.5, 0.5]} if other else {}
    tables = [[{**first, **extra, key: value}, *rest] for value in tries]

    def teachers(_: str, value: Any) -> str:
        return build("distill.teachers", value)

    return silent(key, tables, teachers, before)


def pretraining(recipe: Recipe) -> str:
    """What `session.train` hands to its trainer."""
    try:
        remask.session.train(recipe, Path("run"), quiet=True, fresh=True)
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
    "segment": {"data.source": "pictures", "data.masks": "masks", "data.val": "pictures", "data.val_masks": "masks"},
    "detect": {
        "data.source": "pictures", "data.annotations": "boxes.json", "data.val": "pictures",
        "data.val_annotations": "boxes.json",
    },
}  # fmt: skip
ALL = {
    "model.source": "untrained:vit_micro", "optim.epochs": 4, "optim.warmup_epochs": 1.0, "optim.batch_size": 4,
    "optim.max_steps": 4, "runtime.device": "cpu", "runtime.workers": 0, "data.image_size": 32,
}  # fmt: skip
OTHERS = {
    "data.source": ["others"], "data.val": ["others"], "data.masks": ["other_masks"], "data.val_masks": ["other_masks"],
    "data.skip_bad": [False], "data.annotations": ["others.json"], "data.val_annotations": ["others.json"],
    "data.limit": [6],
    "data.image_size": [[64, 32]],
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders of pictures, of masks, two files of boxes."""
    random = np.random.default_rng(0)
    for pixels, masks, boxes, count in (("pictures", "masks", "boxes", 8), ("others", "other_masks", "others", 7)):
        for folder in (pixels, masks):
            (tmp_path / folder).mkdir()
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "dot"}]}
        for i in range(count):
            Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / pixels / f"{i}.png")
            Image.fromarray(random.integers(0, 3, (40, 40), np.uint8)).save(tmp_path / masks / f"{i}.png")
            content["images"].append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 40})
            content["annotations"].append(
                {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
            )
        content["annotations"].append({**content["annotations"][0], "id": count, "bbox": [2, 2, 0, 0], "area": 0})
        (tmp_path / f"{boxes}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("task", TASKS)
def test_no_key_of_a_task_is_silent(task: str, tmp_path: Path) -> None:
    schema, texts = TASKS[task], dict[str, list[str]]()
    narrow = {"model.width": 16} if task != "finetune" else {}
    narrow |= {"data.skip_bad": True} if task == "detect" else {}
    for name in recipe_names(FOLDER / task):
        recipe = load(schema, FOLDER / task, name, {**TOY[task], **ALL, **narrow}, environment={})
        said = {key: "" for key in SAID if key not in ("notes", "task")}
        texts.setdefault(dump(recipe.model_copy(update={**said, "notes": []})), []).append(name)
    file = tmp_path / "small.toml"
    for text in texts:
        file.write_text(text)

        def build(key: str = "seed", value: Any = 0) -> str:
            torch.set_num_threads(1)
            return downstream(load(schema, FOLDER / task, file, {key: value}, environment={}))

        recipe, before = load(schema, FOLDER / task, file, environment={}), build()
        assert build() == before, "the fingerprint is not its own"
        keys = [key for key in leaves(schema) if key not in SAID]
        tries = {key: OTHERS.get(key) or candidates(key, schema, value_of(recipe, key)) for key in keys}
        own = {"data.source": ["digits:val"], "data.val": ["digits:train"], "data.limit": [36]}
        tries |= own if task == "finetune" else {}
        faults = [silent(key, tries[key], build, before) for key in keys]
        assert not [fault for fault in faults if fault], texts[text]


def downstream(recipe: Downstream) -> str:
    """What `downstream.fit` hands to its trainer, and the task beside it."""
    part = recipe.runtime
    runtime = resolve(part.device, recipe.optim.precision, part.compile, part.threads)
    task = build_task(recipe, runtime)
    try:
        remask.downstream.fit(task, recipe, runtime, Path("run"), fresh=True, quiet=True)
    except Stopped as stop:
        return fingerprint(stop.given, task, torch.get_num_threads())
    raise AssertionError("the trainer was not reached")
