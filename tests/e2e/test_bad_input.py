"""What a newcomer gets wrong, for every task: one line that names the first offenders, and nothing half-written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.downstream.segment.mask_source import open_masks
from remask.downstream.segment.task import pairs
from remask.errors import UserError
from remask.recipe.downstream import MasksData
from tests.e2e.test_dense import NETWORK, SETTINGS, drawn, of_boxes, of_masks


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return drawn(tmp_path / "train", 6), drawn(tmp_path / "val", 3)


def refused(task: Any, given: dict[str, Any], out: Path) -> str:
    with pytest.raises(UserError) as caught:
        task(None, None, given, settings=SETTINGS, out=out, quiet=True)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


def masks_changed(folder: Path, name: str, change: Any) -> None:
    path = folder / "masks" / name
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def test_masks(sets: tuple[Path, Path], tmp_path: Path) -> None:
    train, _ = sets
    given, out = {**NETWORK, **of_masks(sets), "data.classes": 2}, tmp_path / "run"
    masks_changed(train, "3.png", lambda mask: mask[:20])
    line = refused(commands.segment, given, out)
    assert "1 of 6 masks are of another size" in line
    assert "3.png is 48x40, its mask 48x20" in line
    masks_changed(train, "3.png", lambda mask: np.full((40, 48), 7, np.uint8))
    line = refused(commands.segment, given, out)
    assert "1 of 6 masks hold ids beyond the 2 declared classes" in line
    assert "3.png has 7" in line
    for file in (train / "masks").iterdir():
        masks_changed(train, file.name, np.zeros_like)
    assert "have 1 class" in refused(commands.segment, {**given, "data.classes": None}, out)


def test_panoptic_ids_that_the_file_lacks(tmp_path: Path) -> None:
    for name in ("images", "panoptic"):
        (tmp_path / name).mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{i}.png")
        Image.new("RGB", (8, 8), (5 + i, 0, 0)).save(tmp_path / "panoptic" / f"{i}.png")
    segments = [{"id": 5, "category_id": 1}]
    content = {
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
        "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in range(2)],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"1 of 2 masks hold ids that .*panoptic\.json does not name.*1\.png has \(6, 0, 0\)"
    ):
        open_masks(str(tmp_path / "images"), str(tmp_path / "panoptic.json"))


def test_an_ignored_class_in_the_middle_is_struck_once(sets: tuple[Path, Path]) -> None:
    """Test masks that declare nothing are read as the run's: no class is lost, none moves."""
    train, val = sets
    declared = {"classes": ["floor", "road", "box", "sky"], "ignore_index": 1}
    (train / "classes.json").write_text(json.dumps(declared))
    for folder in sets:
        for file in (folder / "masks").iterdir():
            masks_changed(folder, file.name, lambda mask: np.where(mask == 1, 2, mask).astype(np.uint8))
        masks_changed(folder, "0.png", lambda mask: np.where(mask == 0, 1, mask).astype(np.uint8))
    data = MasksData(**{key.removeprefix("data."): value for key, value in of_masks(sets).items()})  # type: ignore[arg-type]
    source, test = pairs(data, 0, None)
    assert source.classes == test.classes == ["floor", "box", "sky"]
    again, _ = pairs(data, 0, {"classes": source.classes, "none": source.none})
    assert again.classes == source.classes
    for masks in (test, again):
        assert sorted(np.unique(masks.read(0)[1]).tolist()) == [1, 255]
        assert sorted(np.unique(masks.read(1)[1]).tolist()) == [0, 1]
    (val / "classes.json").write_text(json.dumps(["floor", "road", "box", "sea"]))
    with pytest.raises(
        UserError, match=r"classes 'road', 'sea' of .* are not among those of the run \('floor', 'box', 'sky'\)"
    ):
        pairs(data, 0, {"classes": source.classes, "none": source.none})


def test_boxes(sets: tuple[Path, Path], tmp_path: Path) -> None:
    train, _ = sets
    given, out = {**NETWORK, **of_boxes(sets), "data.image_size": 64}, tmp_path / "run"
    content = json.loads((train / "boxes.json").read_text())
    (train / "images" / "2.png").unlink()
    line = refused(commands.detect, given, out)
    assert "1 of 6 pictures" in line
    assert "(2.png)" in line
    other = {**content, "categories": [{"id": 7, "name": "crate"}], "images": content["images"][:2],
             "annotations": content["annotations"][:2]}  # fmt: skip
    (train / "boxes.json").write_text(json.dumps(other))
    assert "class 'box' of" in refused(commands.detect, given, out)


def coloured(folder: Path, classes: dict[str, int]) -> Path:
    numbers = np.random.default_rng(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(numbers.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_classes(tmp_path: Path) -> None:
    train, val = coloured(tmp_path / "train", {"a": 12, "b": 12}), coloured(tmp_path / "val", {"a": 3, "b": 3, "c": 3})
    one = coloured(tmp_path / "one", {"a": 12})
    given: dict[str, Any] = {"model.source": "untrained:vit_micro", "data.image_size": 16, "data.source": str(train),
                             "optim.epochs": 1, "optim.batch_size": 8}  # fmt: skip
    out = tmp_path / "run"
    line = refused(commands.finetune, given | {"data.val": str(val)}, out)
    assert f"class 'c' of {val} is not among those of {train} ('a', 'b')" in line
    assert "has no labels" in refused(commands.finetune, given | {"data.source": str(one)}, out)  # one folder is none
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{file} 0\n" for file in sorted((one / "a").iterdir())))
    assert "of one class" in refused(commands.finetune, given | {"data.source": str(listed)}, out)
    run = commands.finetune(None, None, given, settings=SETTINGS, out=out, quiet=True)
    before = (run / "eval" / "finetune.json").read_text()
    with pytest.raises(UserError, match=r"class 'c' of .*val is not among those of the run \('a', 'b'\)"):
        commands.evaluate(run, {"data.val": str(val)}, quiet=True)
    assert (run / "eval" / "finetune.json").read_text() == before
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("source", "k", "words"),
    [
        ("one", 5, "no labels"),
        ("photos", 5, "no labels"),
        ("train", 5, "class 'c' of .*val is not among those of"),
    ],
)
def test_probes(source: str, k: int, words: str, tmp_path: Path) -> None:
    sizes = {"one": {"a": 12}, "train": {"a": 12, "b": 12}}
    data = str(coloured(tmp_path / source, sizes[source])) if source in sizes else source
    val = str(coloured(tmp_path / "val", {"a": 3, "b": 3, "c": 3})) if source == "train" else data
    look = commands.ModelOptions(image_size=(16, 16))
    with pytest.raises(UserError, match=words) as caught:
        commands.probe(
            "untrained:vit_micro", data, val, commands.ProbeOptions(k=k), look, out=tmp_path / "out", quiet=True
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
