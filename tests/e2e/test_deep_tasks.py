"""Fine-tuning, segmentation and detection of pictures of 12 bits: no level is lost, and the range goes with the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask import commands
from remask.downstream.detect.boxes import BoxLoader, Letterbox
from remask.downstream.detect.coco import open_coco
from remask.downstream.export import load_export
from remask.downstream.segment.mask_source import open_masks
from remask.downstream.segment.pairs import PairLoader, ScaleCropFlip, full_pairs
from remask.images.levels import Levels, Scaling

STEPS: dict[str, Any] = {
    "data.image_size": 32, "optim.max_steps": 2, "optim.batch_size": 4, "optim.epochs": 1, "optim.warmup_epochs": 0.0,
    "runtime.device": "cpu", "runtime.workers": 0, "runtime.tensorboard": False, "runtime.threads": 1,
}  # fmt: skip
SCALING = Scaling(Levels(0, 4095), (0.5,) * 3, (0.25,) * 3, deep=True)


def noise(level: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).normal(level, 300, (32, 32)).clip(0, 4095)
    return Image.fromarray(values.astype(np.uint16))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classes")
    for name, level in {"dark": 700, "light": 3300}.items():
        (root / name).mkdir()
        for i in range(8):
            noise(level, i).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for i in range(8):
        noise(2000, i).save(root / "images" / f"{i}.png")
        Image.fromarray((np.arange(1024).reshape(32, 32) % 32 > 15).astype(np.uint8)).save(root / "masks" / f"{i}.png")
    entries = [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(8)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 16, 12], "area": 192, "iscrowd": 0} for i in range(8)
    ]
    content = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    (root / "boxes.json").write_text(json.dumps(content))
    return root


def test_a_classifier_keeps_its_range(classes: Path, tmp_path: Path) -> None:
    source = {"data.source": str(classes), "data.val": str(classes), "augment.erasing": 0.5}
    run = commands.finetune("untrained:vit_micro", None, {**STEPS, **source}, out=tmp_path / "run", quiet=True)
    told = json.loads((run / "task.json").read_text())
    assert (told["range"], told["deep"]) == ([0, 4095], True)
    again = commands.evaluate(run, quiet=True)
    assert again["top1"] == json.loads((run / "eval" / "finetune.json").read_text())["top1"]
    folder = commands.export(run)
    assert json.loads((folder / "model.json").read_text())["range"] == [0, 4095]
    assert json.loads((folder / "config.json").read_text())["range"] == [0, 4095]


def test_what_knows_8_bits_alone_is_refused(classes: Path, tmp_path: Path) -> None:
    from remask.errors import UserError

    given = {**STEPS, "data.source": str(classes), "augment.randaugment": "rand-m9-mstd0.5-inc1"}
    with pytest.raises(UserError, match=r"randaugment.*8 bits, and these are deeper.*data.range=byte"):
        commands.finetune("untrained:vit_micro", None, given, out=tmp_path / "run", quiet=True)


def test_pairs_keep_every_level(pairs: Path) -> None:
    source = open_masks(str(pairs / "images"), str(pairs / "masks"))
    crop = ScaleCropFlip((32, 32), scale=(1.0, 1.0), flip=False, photometric=False, cat_max_ratio=1.0)
    (batch,) = list(PairLoader(source, crop, 8, shuffle=False, drop_last=False, scaling=SCALING).epoch(0))
    wanted = torch.tensor(np.array(noise(2000, 0)).astype(np.float32) / 4095 - 0.5) / 0.25
    torch.testing.assert_close(batch.images[0, 0], wanted, rtol=0, atol=1e-4)
    assert batch.labels.unique().tolist() == [0, 1]
    assert next(full_pairs(source, scaling=SCALING)).images.is_floating_point()
    distorting = ScaleCropFlip((32, 32), scale=(1.0, 1.0), photometric=True)
    (other,) = list(PairLoader(source, distorting, 8, drop_last=False, scaling=SCALING).epoch(0))
    assert len(other.images.unique()) > 1000


def test_boxes_keep_every_level(pairs: Path) -> None:
    source = open_coco(str(pairs / "images"), str(pairs / "boxes.json"))
    batch = next(BoxLoader(source, Letterbox((32, 32)), 8, shuffle=False, scaling=SCALING).epoch(0))
    wanted = torch.tensor(np.array(noise(2000, 0)).astype(np.float32) / 4095 - 0.5) / 0.25
    torch.testing.assert_close(batch.images[0, 0], wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "detect"])
def test_dense_tasks_run_and_are_exported(pairs: Path, tmp_path: Path, task: str) -> None:
    images = str(pairs / "images")
    given: dict[str, Any] = {**STEPS, "data.source": images, "data.val": images}
    if task == "segment":
        given |= {"data.masks": str(pairs / "masks"), "data.val_masks": str(pairs / "masks"), "model.head": "linear"}
        run = commands.segment("untrained:vit_micro", None, given, out=tmp_path / "run", quiet=True)
    else:
        given |= {"data.annotations": str(pairs / "boxes.json"), "data.val_annotations": str(pairs / "boxes.json")}
        run = commands.detect("untrained:vit_micro", None, given, out=tmp_path / "run", quiet=True)
    model, content = load_export(commands.export(run))
    assert content["range"] == [0, 4095]
    assert model.backbone.normalise.levels == Levels(0, 4095)
