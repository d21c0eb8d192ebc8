"""Test pictures that cannot be used: left out and counted, or a run that has failed and is tested by resuming it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.errors import UserError
from remask.images.loading.loader import TooManyBad
from remask.report.reading import Fact
from remask.report.task import _results

SETTINGS = ["runtime.threads=1", "optim.precision=fp32", "runtime.workers=0", "optim.batch_size=4"]
TASKS = ("finetune", "segment", "detect")
COUNT = 8


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A set for every task: two classes of pictures, each with a box and its mask."""
    numbers, images, annotations = np.random.default_rng(0), [], []
    for i in range(COUNT):
        x, y, w, h = (int(v) for v in (numbers.integers(2, 20), numbers.integers(2, 20), 16, 14))
        pixels, mask = np.full((40, 48, 3), 40, np.uint8), np.zeros((40, 48), np.uint8)
        pixels[y : y + h, x : x + w, i % 2], mask[y : y + h, x : x + w] = 220, 1
        for folder, one in (("images", pixels), ("masks", mask), (f"classes/{'ab'[i % 2]}", pixels)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(one).save(tmp_path / folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 48})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, w, h],
                            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})  # fmt: skip
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    for folder in ("images", "classes"):
        shutil.copytree(tmp_path / folder, tmp_path / f"test-{folder}")
    return tmp_path


def given(task: str, root: Path) -> dict[str, Any]:
    small = {"model.source": "untrained:vit_micro", "data.image_size": 32}
    if task == "finetune":
        return small | {"data.source": str(root / "classes"), "data.val": str(root / "test-classes")}
    paths = {"data.source": str(root / "images"), "data.val": str(root / "test-images")}
    if task == "segment":
        masks = str(root / "masks")
        return small | paths | {"data.masks": masks, "data.val_masks": masks, "data.classes": 2, "model.width": 16}
    boxes = str(root / "boxes.json")
    files = {"data.annotations": boxes, "data.val_annotations": boxes}
    return small | paths | files | {"data.image_size": 64, "model.width": 16, "test.detections": 10}


def spoil(task: str, root: Path, numbers: range, training: bool = False) -> None:
    """Cut pictures short: their headers can be read, their pixels cannot."""
    folder = root / (("" if training else "test-") + ("classes" if task == "finetune" else "images"))
    for path in sorted(folder.rglob("*.png"), key=lambda path: path.name):
        if int(path.stem) in numbers:
            path.write_bytes(path.read_bytes()[:60])


def run(task: str, root: Path, **more: Any) -> Path:
    command = {"finetune": commands.finetune, "segment": commands.segment, "detect": commands.detect}[task]
    return command(
        None, None, given(task, root) | {"optim.epochs": 1} | more, settings=SETTINGS, out=root / "run", quiet=True
    )


@pytest.mark.parametrize("task", TASKS)
def test_one_that_cannot_be_read_is_left_out_and_counted(
    pictures: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(task, pictures, range(3, 4))
    done = run(task, pictures)
    found = json.loads((done / "eval" / f"{task}.json").read_text())
    assert (found["images"], found["bad_images"]) == (COUNT - 1, 1)
    assert json.loads((done / "status.json").read_text())["state"] == "finished"
    assert "3.png" in (done / "bad_images.txt").read_text()
    assert "test pictures that could not be used" in (done / "report.html").read_text()
    capsys.readouterr()
    commands.evaluate(done)
    assert "without 1 of 8 test pictures that cannot be used" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_too_many_end_the_run_and_resuming_tests_it(pictures: Path, task: str) -> None:
    whole = pictures / ("test-classes" if task == "finetune" else "test-images")
    shutil.copytree(whole, pictures / "whole")
    spoil(task, pictures, range(4))
    with pytest.raises(TooManyBad, match="of 8 images cannot be used"):
        run(task, pictures)
    status = json.loads((pictures / "run" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", status["steps"])
    assert len((pictures / "run" / "bad_images.txt").read_text().splitlines()) == 4
    assert not (pictures / "run" / "eval" / f"{task}.json").exists()
    weights = (pictures / "run" / "checkpoints" / "last" / "model.safetensors").read_bytes()
    shutil.rmtree(whole)
    (pictures / "whole").rename(whole)
    commands.resume(pictures / "run", quiet=True, accept_changed_data=True)
    found = json.loads((pictures / "run" / "eval" / f"{task}.json").read_text())
    assert (found["images"], found["bad_images"]) == (COUNT, 0)
    assert json.loads((pictures / "run" / "status.json").read_text())["state"] == "finished"
    assert (pictures / "run" / "checkpoints" / "last" / "model.safetensors").read_bytes() == weights
    with pytest.raises(UserError, match="is finished"):
        commands.resume(pictures / "run", quiet=True)


def test_a_test_on_the_way_ends_the_run_with_its_weights_kept(pictures: Path) -> None:
    spoil("detect", pictures, range(4))
    with pytest.raises(TooManyBad):
        run("detect", pictures, **{"optim.epochs": 5, "test.every_epochs": 2})
    state = json.loads((pictures / "run" / "checkpoints" / "last" / "state.json").read_text())
    assert state["step"] == 4
    shutil.rmtree(pictures / "test-images")
    shutil.copytree(pictures / "images", pictures / "test-images")
    done = commands.resume(pictures / "run", quiet=True, accept_changed_data=True)
    assert json.loads((done / "status.json").read_text())["step"] == 10


@pytest.mark.parametrize("task", TASKS)
def test_of_the_training_pictures_the_next_takes_its_place(pictures: Path, task: str) -> None:
    spoil(task, pictures, range(3, 4), training=True)
    done = run(task, pictures)
    assert "3.png" in (done / "bad_images.txt").read_text()
    assert json.loads((done / "eval" / f"{task}.json").read_text())["images"] == COUNT


def test_annotations_that_are_skipped_are_counted_in_the_result(pictures: Path) -> None:
    content = json.loads((pictures / "boxes.json").read_text())
    content["annotations"][2]["bbox"] = [1, 1, 0, 5]
    content["annotations"][5]["iscrowd"] = "maybe"
    content["images"][7]["width"] = 50
    (pictures / "bad.json").write_text(json.dumps(content))
    done = run("detect", pictures, **{"data.annotations": str(pictures / "bad.json"), "data.skip_bad": True})
    found = json.loads((done / "eval" / "detect.json").read_text())
    assert found["skipped"] == {
        "train": {"annotations": 2, "pictures": 1},
        "test": {"annotations": 0, "pictures": 0},
    }
    named = (done / "bad_images.txt").read_text().splitlines()
    assert ["2.png" in named[1], "5.png" in named[2], "7.png" in named[0]] == [True] * 3


def test_no_objects_give_no_number(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((pictures / "boxes.json").read_text())
    (pictures / "none.json").write_text(json.dumps(content | {"annotations": []}))
    done = run("detect", pictures, **{"data.val_annotations": str(pictures / "none.json"), "test.every_epochs": 1})
    found = json.loads((done / "eval" / "detect.json").read_text())
    assert (found["AP"], found["AP50"], found["bbox"]["per_class"]) == (None, None, {"1": None})
    assert Fact("AP of boxes, %", "–") in _results(found)
    capsys.readouterr()
    commands.evaluate(done)
    assert "AP n/a: there is nothing to find" in capsys.readouterr().out
