"""Pictures deeper than 8 bits in downstream tasks: data.range says what is black and white."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.levels import Levels
from remask.recipe.downstream import TASKS
from remask.recipe.load import FOLDER, load
from remask.runtime import resolve
from remask.tasks import build_model, build_task

TOP = 3000
"""The largest value in the pictures, of 12 bits."""

EXPECTED: dict[Any, tuple[float, float]] = {
    "auto": (0, 4095),
    "full": (0, 65535),
    (0.0, 6000.0): (0, 6000),
    (1000.0, 2000.0): (1000, 2000),
}
"""Black and white by what data.range says."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of 12 bits in two classes, with masks and boxes: each goes evenly from 0 to TOP."""
    monkeypatch.chdir(tmp_path)
    content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "dot"}]}
    ramp = np.linspace(0, TOP, 32 * 32).reshape(32, 32).astype(np.uint16)
    (tmp_path / "flat").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(8):
        inside = tmp_path / "classes" / f"class{i % 2}"
        inside.mkdir(parents=True, exist_ok=True)
        for path in (inside / f"{i}.png", tmp_path / "flat" / f"{i}.png"):
            Image.fromarray(ramp).save(path)
        Image.fromarray(np.arange(1024).reshape(32, 32).astype(np.uint8) % 3).save(tmp_path / "masks" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 32})
        content["annotations"].append(
            {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 20, 20], "area": 400, "iscrowd": 0}
        )
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


GIVEN: dict[str, dict[str, Any]] = {
    "finetune": {"data.source": "classes", "data.crop_scale": [1, 1], "data.crop_ratio": [1, 1]},
    "segment": {
        "data.source": "flat", "data.masks": "masks", "data.scale": [1, 1], "data.photometric": False,
        "model.width": 16,
    },
    "detect": {
        "data.source": "flat", "data.annotations": "boxes.json", "data.val": "flat", "data.scale": [1, 1],
        "data.val_annotations": "boxes.json", "model.width": 16,
    },
}  # fmt: skip


def task_of(name: str, rule: Any, facts: Any = None, begun: Any = None) -> tuple[Any, Any]:
    """The recipe and its task; without augmentation, so that pixels are those of the files."""
    given = {
        **GIVEN[name], "data.image_size": 32, "data.flip": False, "optim.batch_size": 2, "data.range": rule,
        "model.source": "untrained:vit_micro", "runtime.device": "cpu", "runtime.workers": 0,
    }  # fmt: skip
    recipe = load(TASKS[name], FOLDER / name, "small", given, environment={})
    return recipe, build_task(recipe, resolve("cpu", "fp32"), facts=facts, begun=begun)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("rule", EXPECTED, ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_black_and_white_are_those_of_the_range(name: str, rule: Any) -> None:
    """Pictures are cut to 256 steps of the range, and not of their type: 12 bits in 16 keep more than 16 levels."""
    _, task = task_of(name, rule if isinstance(rule, str) else list(rule))
    images = next(iter(task.train.epoch(0))).images
    low, high = EXPECTED[rule]
    values = np.linspace(0, TOP, 32 * 32).astype(np.uint16).astype(np.float64)
    expected = np.clip(np.round(255 * (values - low) / (high - low)), 0, 255)
    assert images.dtype == torch.uint8
    assert np.abs(images[0, 0].flatten().numpy() - expected).max() <= 1
    assert Levels.of(task.facts["range"]) == task.model.backbone.normalise.levels
    assert task.model.backbone.normalise.levels.bounds(torch.uint16) == (low, high)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", TASKS)
def test_byte_reads_as_runs_of_before_did(name: str) -> None:
    _, task = task_of(name, "byte")
    images = next(iter(task.train.epoch(0))).images
    assert int(images.max()) == TOP >> 8
    assert task.model.backbone.normalise.levels is None


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", TASKS)
def test_a_run_that_goes_on_is_tested_or_exported_keeps_its_range(name: str) -> None:
    recipe, first = task_of(name, "auto")
    facts = {**first.facts, "range": [0.0, 5000.0]}
    for part in ({"begun": facts}, {"facts": facts}):
        _, task = task_of(name, "auto", **part)
        assert task.model.backbone.normalise.levels == Levels(0.0, 5000.0)
    model, _ = build_model(recipe, facts)
    assert model.backbone.normalise.levels == Levels(0.0, 5000.0)


def test_a_picture_beyond_the_range_is_named(folder: Path) -> None:
    said: list[str] = []
    given = {
        **GIVEN["finetune"], "data.image_size": 32, "optim.batch_size": 8, "data.range": [0, 2000],
        "model.source": "untrained:vit_micro", "runtime.device": "cpu", "runtime.workers": 0,
    }  # fmt: skip
    recipe = load(TASKS["finetune"], FOLDER / "finetune", "small", given, environment={})
    task = build_task(recipe, resolve("cpu", "fp32"), remark=said.append)
    assert task.train
    for _ in task.train.epoch(0):
        pass
    assert said
    assert "values reach from 0 to 3000, beyond 0 to 2000 of data.range" in said[0]
