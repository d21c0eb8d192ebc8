"""Paths of a downstream recipe that cannot be opened, in the words of who opens them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.downstream.build import build_task
from remask.downstream.inputs import check_task_recipe
from remask.errors import UserError
from remask.recipe.downstream import TASKS
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.training.runtime import Runtime

NET = {"model.source": "untrained:vit_micro", "data.image_size": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "no images": ("finetune", {}),
    "images": ("finetune", {"data.source": "absent"}),
    "test images": ("finetune", {"data.source": "digits", "data.val": "absent"}),
    "no masked images": ("segment", {}),
    "masked images": ("segment", {"data.source": "absent"}),
    "masks": ("segment", {"data.source": "images", "data.masks": "absent"}),
    "no test boxes": ("detect", {"data.source": "images"}),
    "annotated images": ("detect", {"data.val": "absent", "data.val_annotations": "a.json"}),
    "annotations": ("detect", {"data.val": "images", "data.val_annotations": "absent.json"}),
    "no boxes": ("detect", {"data.val": "images", "data.val_annotations": "a.json"}),
    "no network": ("finetune", {"data.source": "digits", "model.source": None}),
    "network": ("finetune", {"data.source": "digits", "model.source": "mae:absent"}),
    "network and heads": ("finetune", {"data.source": "digits", "model.source": "mae:absent", "model.heads": 3}),
    "kind of network": ("finetune", {"data.source": "digits", "model.source": "resnet:x"}),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image and its annotations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((16, 16, 3), 60, np.uint8)).save(tmp_path / "images" / "0.png")
    content = {
        "images": [{"id": 1, "file_name": "0.png", "height": 16, "width": 16}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_the_refusal_has_the_builder_s_words(case: str, home: Path) -> None:
    task, keys = CASES[case]
    recipe = load(TASKS[task], FOLDER / task, "small", {**NET, **keys}, environment={})
    with pytest.raises(UserError) as early:
        check_task_recipe(recipe)
    with pytest.raises(UserError) as late:
        build_task(recipe, Runtime(torch.device("cpu")))
    assert str(early.value) == str(late.value)


def test_a_run_that_is_tested_on_other_images_needs_none_to_learn_from(home: Path) -> None:
    keys = {**NET, "data.source": "gone", "data.val": "digits:val"}
    recipe = load(TASKS["finetune"], FOLDER / "finetune", "small", keys, environment={})
    check_task_recipe(recipe, tested=True)
    with pytest.raises(UserError, match="'gone'"):
        check_task_recipe(recipe)
