"""Segmentation and detection from the command's side, on pictures that are drawn here."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from remask import commands
from remask.downstream.detect.average_precision import average_precision
from remask.downstream.export import load_export
from remask.errors import UserError

SETTINGS = ["runtime.threads=1", "optim.precision=fp32", "runtime.workers=0"]
NETWORK = {"model.source": "untrained:vit_micro", "data.image_size": 32}


def drawn(folder: Path, count: int) -> Path:
    """Pictures of a bright box on noise, its mask, and COCO's JSON of it."""
    numbers = np.random.default_rng(count)
    images, annotations = [], []
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = numbers.integers(0, 60, (40, 48, 3), dtype=np.uint8)
        top, left = int(numbers.integers(2, 20)), int(numbers.integers(2, 26))
        pixels[top : top + 16, left : left + 18] += 180
        mask = np.zeros((40, 48), np.uint8)
        mask[top : top + 16, left : left + 18] = 1
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 48})
        corners = [left, top, left + 18, top, left + 18, top + 16, left, top + 16]
        annotations.append(
            {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [left, top, 18, 16], "area": 288, "iscrowd": 0,
             "segmentation": [corners]}
        )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "box"}]}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("dense")
    return drawn(root / "train", 12), drawn(root / "val", 4)


def of_masks(sets: tuple[Path, Path]) -> dict[str, object]:
    train, val = sets
    paths = {"data.source": train / "images", "data.masks": train / "masks", "data.val": val / "images"}
    return {key: str(path) for key, path in {**paths, "data.val_masks": val / "masks"}.items()}


def of_boxes(sets: tuple[Path, Path]) -> dict[str, object]:
    train, val = sets
    paths = {"data.source": train / "images", "data.annotations": train / "boxes.json", "data.val": val / "images"}
    return {key: str(path) for key, path in {**paths, "data.val_annotations": val / "boxes.json"}.items()}


def exported(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    """What is exported has the weights of the run, and its script says something about a picture."""
    written = commands.export(run, folder / "export")
    stored = load_file(run / "checkpoints" / "last" / "model.safetensors")
    own = load_export(written)[0].state_dict()
    assert own.keys() == stored.keys()
    assert all(torch.equal(own[name], stored[name]) for name in own)
    monkeypatch.setattr("sys.argv", ["load_example.py"])
    runpy.run_path(str(written / "load_example.py"))
    assert words in capsys.readouterr().out


def test_segment(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        **NETWORK,
        **of_masks(sets),
        "data.classes": 2,
        "model.width": 16,
        "optim.epochs": 25,
        "optim.batch_size": 4,
        "optim.lr": 2e-3,
    }
    run = commands.segment(None, None, given, settings=SETTINGS, out=tmp_path / "run", quiet=True)
    found = json.loads((run / "eval" / "segment.json").read_text())
    assert found["images"] == 4
    assert found["mIoU"] > 50, "background alone has 42: a bright box on dark noise is not found"
    assert Image.open(run / "pictures" / "frames.png").size[0] > 300
    assert commands.evaluate(run, quiet=True)["mIoU"] == pytest.approx(found["mIoU"])
    exported(run, tmp_path, monkeypatch, capsys, "%")


def test_detect(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        **NETWORK,
        **of_boxes(sets),
        "data.image_size": 64,
        "model.width": 16,
        "test.detections": 10,
        "optim.epochs": 1,
    }
    run = commands.detect(None, None, given, settings=SETTINGS, out=tmp_path / "run", quiet=True)
    found = json.loads((run / "eval" / "detect.json").read_text())
    assert {"bbox", "segm"} <= set(found)
    assert 0 <= found["AP"] <= 100
    results = json.loads((run / "eval" / "detections.json").read_text())
    assert len(results) == found["detections"] > 0
    assert average_precision(json.loads((sets[1] / "boxes.json").read_text()), results)["bbox"] == {
        key: value for key, value in found["bbox"].items() if key != "per_class"
    }
    assert Image.open(run / "pictures" / "detections.png").size[0] > 300
    assert commands.evaluate(run, quiet=True)["AP"] == pytest.approx(found["AP"])
    exported(run, tmp_path, monkeypatch, capsys, "found; masks inside the boxes: True")


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"data.classes": 1}, "classes"), ({"data.masks": "/nowhere"}, "nowhere"), ({"data.source": None}, "--data")],
)
def test_mistakes_with_masks(sets: tuple[Path, Path], tmp_path: Path, changed: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        commands.segment(
            None, None, {**NETWORK, **of_masks(sets), **changed}, settings=SETTINGS, out=tmp_path / "run", quiet=True
        )
    assert not (tmp_path / "run").exists()


def test_mistakes_with_boxes(sets: tuple[Path, Path], tmp_path: Path) -> None:
    content = json.loads((sets[0] / "boxes.json").read_text())
    content["annotations"][3]["bbox"][2] = 0
    (tmp_path / "bad.json").write_text(json.dumps(content))
    given = {**NETWORK, **of_boxes(sets), "data.image_size": 64}
    for changed, words in (
        ({"data.annotations": str(tmp_path / "bad.json")}, "3.png"),
        ({"data.val_annotations": None}, "--val-annotations"),
    ):
        with pytest.raises(UserError, match=words):
            commands.detect(None, None, {**given, **changed}, settings=SETTINGS, out=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()
