"""images/coco.py: what an instances file says, with every kind of mask, and one line for each mistake in it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.downstream.detect.coco import decode_mask, encode_mask, open_coco
from remask.errors import UserError

SIZE = (20, 30)


def square(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def polygon(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def runs(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths: columns first, zeros first."""
    flat = mask.flatten(order="F").astype(int)
    cuts = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
    counts = np.diff(cuts).tolist()
    return {"size": [*mask.shape], "counts": [0, *counts] if flat[0] else counts}


def instances() -> dict[str, Any]:
    boxes = {1: (2, 3, 10, 8), 2: (0, 0, 30, 20), 3: (20, 10, 10, 10), 4: (5, 5, 4, 4)}
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in (7, 3, 9)]
    forms: dict[int, Any] = {
        1: polygon(*boxes[1]),
        2: runs(square(*boxes[2])),
        3: encode_mask(torch.from_numpy(square(*boxes[3]))),
        4: polygon(*boxes[4]),
    }
    found = [
        {"id": i, "image_id": {3: 3}.get(i, 7), "category_id": {1: 90, 4: 90}.get(i, 5), "iscrowd": int(i == 4),
         "bbox": list(boxes[i]), "segmentation": forms[i]} for i in boxes
    ]  # fmt: skip
    return {"images": images, "annotations": found, "categories": [{"id": 90, "name": "owl"}, {"id": 5, "name": "cat"}]}


def write(path: Path, data: Any) -> tuple[str, str]:
    """Folder of pictures and annotation file."""
    (path / "pictures").mkdir(exist_ok=True)
    for i in (7, 3, 9):
        Image.new("RGB", SIZE[::-1], (i, 0, 0)).save(path / "pictures" / f"{i}.png")
    file = path / "instances.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path / "pictures"), str(file)


def test_boxes_labels_and_masks_of_every_kind(tmp_path: Path) -> None:
    source = open_coco(*write(tmp_path, instances()))
    assert (len(source), source.classes, source.categories) == (3, ["cat", "owl"], [5, 90])
    data, first = source.read(0)
    assert data.startswith(b"\x89PNG")
    assert first["boxes"].tolist() == [[2, 3, 12, 11], [0, 0, 30, 20]]  # the crowd is left out
    assert first["labels"].tolist() == [2, 1]
    assert (first["image_id"], first["size"]) == (7, SIZE)
    assert torch.equal(first["masks"], torch.from_numpy(np.stack([square(2, 3, 10, 8), square(0, 0, 30, 20)])))
    second, third = source.target(1), source.target(2)
    assert torch.equal(second["masks"][0], torch.from_numpy(square(20, 10, 10, 10)))
    assert (third["boxes"].shape, third["masks"].shape) == ((0, 4), (0, *SIZE))
    assert source.where(2).endswith("pictures/9.png")


def test_truth_keeps_crowds_and_counts_from_one(tmp_path: Path) -> None:
    data = instances()
    for number, annotation in enumerate(data["annotations"]):
        annotation["id"] = number
    truth = open_coco(*write(tmp_path, data), limit=1).truth()
    assert [image["id"] for image in truth["images"]] == [7]
    assert [(a["id"], bool(a["iscrowd"]), a["area"]) for a in truth["annotations"]] == [
        (1, False, 80), (2, False, 600), (3, True, 16)
    ]  # fmt: skip


def test_boxes_alone(tmp_path: Path) -> None:
    data = instances()
    for annotation in data["annotations"]:
        annotation["segmentation"] = []
    source = open_coco(*write(tmp_path, data))
    assert not source.masks
    assert "masks" not in source.target(0)


def test_a_box_is_cut_to_its_picture(tmp_path: Path) -> None:
    data = instances()
    data["annotations"][0]["bbox"] = [-3.5, 10, 50, 10.25]
    assert open_coco(*write(tmp_path, data)).target(0)["boxes"][0].tolist() == [0, 10, 30, 20]


def test_masks_go_there_and_back() -> None:
    mask = (torch.rand(SIZE, generator=torch.Generator().manual_seed(0)) < 0.3).to(torch.uint8)
    encoded = encode_mask(mask)
    assert json.loads(json.dumps(encoded)) == encoded
    assert torch.equal(decode_mask(encoded, SIZE), mask)
    assert torch.equal(decode_mask(runs(mask.numpy()), SIZE), mask)


def changed(**to: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data["annotations"][0].update(to)


BAD = {
    "a box of 0x8": changed(bbox=[2, 3, 0, 8]),
    "a box of 4x-1": changed(bbox=[2, 3, 4, -1]),
    "a box of nanx1": changed(bbox=[2, 3, float("nan"), 1]),
    "a box at 30, 3, outside the 30x20 picture": changed(bbox=[30, 3, 2, 2]),
    "a box at -5, 3, outside the 30x20 picture": changed(bbox=[-5, 3, 5, 2]),
    "a mask of 30x10, where the picture has 30x20": changed(segmentation={"size": [10, 30], "counts": [300]}),
    "a mask of 599 pixels, where the picture has 600": changed(segmentation={"size": [20, 30], "counts": [599]}),
    "a polygon of fewer than 3 points": changed(segmentation=[[1, 1, 2, 2]]),
    "neither polygons nor run lengths": changed(segmentation={"file": "a.png"}),
    "no mask, where others have one": changed(segmentation=[]),
}


@pytest.mark.parametrize("words", BAD)
def test_what_cannot_be_used_is_named_or_left_out(tmp_path: Path, words: str) -> None:
    data = instances()
    BAD[words](data)
    where = write(tmp_path, data)
    with pytest.raises(UserError, match=r"1 of 4 annotations of .*annotation 1 of 7\.png: .*skip_bad") as error:
        open_coco(*where)
    assert words in str(error.value)
    told: list[str] = []
    source = open_coco(*where, skip_bad=True, report=told.append)
    assert len(source.target(0)["labels"]) == 1
    assert told == source.dropped
    assert words in told[0]


def edited(edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data = copy.deepcopy(instances())
    edit(data)
    return data


MISTAKES: dict[str, Any] = {
    "it is not JSON": "{",
    "it has no list images, categories, annotations": [1, 2],
    "it has no list categories": edited(lambda d: d.pop("categories")),
    "panoptic": edited(lambda d: d["annotations"][0].update(segments_info=[])),
    r"1 of 4 annotations lack one of image_id, category_id, bbox.*\(number 2\)": edited(
        lambda d: d["annotations"][2].pop("bbox")
    ),
    r"1 of 3 images lack one of .*\(number 1\)": edited(lambda d: d["images"][1].update(height="20")),
    r"gives 1 ids of images more than once \(ids 7\)": edited(lambda d: d["images"][1].update(id=7)),
    "names no images": edited(lambda d: d.update(images=[], annotations=[])),
    r"1 of 4 annotations .* name images .*\(annotation 3: image_id 8\)": edited(
        lambda d: d["annotations"][2].update(image_id=8)
    ),
    r"1 of 4 annotations .* name categories .*\(annotation 3: category_id 8\)": edited(
        lambda d: d["annotations"][2].update(category_id=8)
    ),
    r"1 of 3 pictures .* are not in .*\(gone.png\)": edited(lambda d: d["images"][0].update(file_name="gone.png")),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_one_line_a_mistake(tmp_path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        open_coco(*write(tmp_path, MISTAKES[words]))
    assert "\n" not in str(error.value)


def test_missing_folder_file_and_limit(tmp_path: Path) -> None:
    folder, file = write(tmp_path, instances())
    for arguments, words in (
        ((folder + "x", file), "is no folder"),
        ((folder, file + "x"), "cannot read the annotations"),
    ):
        with pytest.raises(UserError, match=words):
            open_coco(*arguments)
    with pytest.raises(UserError, match="limit of 0"):
        open_coco(folder, file, limit=0)


def test_the_first_offenders_and_how_many(tmp_path: Path) -> None:
    data = instances()
    for annotation in data["annotations"]:
        annotation["bbox"][2] = 0
    with pytest.raises(UserError, match=r"4 of 4 annotations .*annotation 1 .*annotation 2 .*annotation 3 .*; …\)"):
        open_coco(*write(tmp_path, data))
