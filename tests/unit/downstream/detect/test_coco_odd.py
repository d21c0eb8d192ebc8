"""images/coco.py on files as exporters write them: what has one meaning is taken so, the rest named or skipped."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.downstream.detect.average_precision import average_precision
from remask.downstream.detect.boxes import BoxLoader, LargeScaleJitter, Letterbox
from remask.downstream.detect.coco import CocoSource, encode_mask, open_coco
from remask.downstream.detect.coco_masks import faults_of_strings
from remask.errors import UserError

mask_api = pytest.importorskip("faster_coco_eval.core").mask
Change = Callable[[dict[str, Any]], object]
SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    for k in range(8):
        Image.new("RGB", (SIDE, SIDE), (30 * k, 0, 0)).save(root / "images" / f"{k}.png")
    return root


def base() -> dict[str, Any]:
    numbers, annotations = random.Random(0), []
    for k in range(8):
        x, y, w, h = (numbers.randint(4, 30), numbers.randint(4, 30), numbers.randint(16, 28), numbers.randint(16, 28))
        annotations.append({"id": k, "image_id": k, "category_id": 1 + k % 2, "bbox": [x, y, w, h], "area": w * h,
                            "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]})  # fmt: skip
    images = [{"id": k, "file_name": f"{k}.png", "height": SIDE, "width": SIDE} for k in range(8)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def opened(folder: Path, change: Change, **arguments: Any) -> CocoSource:
    data = copy.deepcopy(base())
    change(data)
    file = folder / "file.json"
    file.write_text(json.dumps(data))
    return open_coco(str(folder / "images"), str(file), **arguments)


def perfect(source: CocoSource) -> list[dict[str, Any]]:
    """The truth as results."""
    results = []
    for i in range(len(source)):
        target = source.target(i)
        for j, label in enumerate(target["labels"].tolist()):
            x0, y0, x1, y1 = target["boxes"][j].tolist()
            one = {"image_id": target["image_id"], "category_id": source.categories[label - 1], "score": 0.5}
            one["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            results.append(one | ({"segmentation": encode_mask(target["masks"][j])} if source.masks else {}))
    return results


def usable(source: CocoSource) -> None:
    """Whatever was opened can be made into batches, and the truth scores 1 against itself."""
    for transform, shuffle in ((Letterbox((64, 64)), False), (LargeScaleJitter((64, 64)), True)):
        assert sum(len(batch.images) for batch in BoxLoader(source, transform, 4, shuffle=shuffle).epoch(0)) >= 4
    found = average_precision(source.truth(), perfect(source), ("bbox", "segm") if source.masks else ("bbox",))
    assert {kind: scores["AP"] for kind, scores in found.items()} == dict.fromkeys(found, pytest.approx(1.0, abs=1e-6))


def each(what: str, key: str, value: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        for entry in data[what]:
            entry[key] = value(entry) if callable(value) else value

    return change


def without(what: str, *keys: str) -> Change:
    return lambda data: [entry.pop(key, None) for entry in data[what] for key in keys]


def texts(data: dict[str, Any]) -> None:
    each("images", "id", lambda i: f"img{i['id']}")(data)
    each("annotations", "image_id", lambda a: f"img{a['image_id']}")(data)


def uuids(data: dict[str, Any]) -> None:
    each("categories", "id", lambda c: f"c-{c['id']}")(data)
    each("annotations", "category_id", lambda a: f"c-{a['category_id']}")(data)


ONE_MEANING: dict[str, Change] = {
    **{f"crowd {value!r}": each("annotations", "iscrowd", value)
       for value in ("0", "false", "False", "", "no", " 0 ", None, False, 0.0, "null")},
    **{f"area {value!r}": each("annotations", "area", value) for value in (None, "", "12.5", -1, float("nan"), [])},
    "bare": without("annotations", "id", "area", "iscrowd"),
    "ids null": each("annotations", "id", None),
    "ids text": texts,
    "number ids as text": each("annotations", "image_id", lambda a: str(a["image_id"])),
    "number ids as floats": each("images", "id", lambda i: float(i["id"])),
    "annotation ids text": each("annotations", "id", lambda a: f"x{a['id']}"),
    "categories text": uuids,
    "sizes float": lambda d: [each("images", key, 64.0)(d) for key in ("height", "width")],
    "backslash in a folder": each("images", "file_name", lambda i: ".\\" + i["file_name"]),
    "own folder before": each("images", "file_name", lambda i: "images\\" + i["file_name"]),
    "own folder before, slash": each("images", "file_name", lambda i: "images/" + i["file_name"]),
    "super-category 0": lambda d: d["categories"].insert(0, {"id": 0, "name": "cells-v2", "supercategory": "none"}),
    "no masks": each("annotations", "segmentation", lambda a: []),
    "masks missing": without("annotations", "segmentation"),
    "category names numbers": each("categories", "name", lambda c: c["id"]),
    "runs float": each("annotations", "segmentation", {"size": [64.0, 64.0], "counts": [100.0, 3000.0, 996.0]}),
    "polygon over the border": each("annotations", "segmentation", lambda a: [[-30.5, 4, 90, 4, 90, 70, 3, 70]]),
    "box over the border": each("annotations", "bbox", lambda a: [-1.0, 5, 50, 60]),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_MEANING)
def test_what_has_one_meaning_is_taken_by_it(folder: Path, name: str) -> None:
    source = opened(folder, ONE_MEANING[name])
    assert sum(len(source.instances(i)) for i in range(len(source))) == 8
    assert source.skipped() == {"annotations": 0, "pictures": 0}
    usable(source)


@pytest.mark.parametrize("value", [1, "1", "true", "True", True, 1.0, "yes"])
def test_crowds_in_every_form(folder: Path, value: Any) -> None:
    source = opened(folder, lambda d: d["annotations"][3].update(iscrowd=value))
    assert [len(source.instances(i)) for i in range(8)] == [1, 1, 1, 0, 1, 1, 1, 1]
    assert [a["iscrowd"] for a in source.truth()["annotations"]] == [0, 0, 0, 1, 0, 0, 0, 0]
    usable(source)


def third(**to: Any) -> Change:
    return lambda data: data["annotations"][3].update(to)


def shape(value: Any) -> Change:
    return third(segmentation=value)


def packed(counts: str, size: Any = (64, 64)) -> Change:
    return shape({"size": [*size], "counts": counts})


def drawn(x0: int, y0: int, x1: int, y1: int) -> Change:
    """A compressed mask of one rectangle."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[y0:y1, x0:x1] = 1
    return shape(encode_mask(mask))


DAMAGED: dict[str, tuple[Change, str]] = {
    **{f"crowd {value!r}": (third(iscrowd=value), "iscrowd is ") for value in (2, "maybe", [], -1, 0.5, float("nan"))},
    "box of text": (third(bbox=["1", "2", "3", "4"]), "bbox, or have it of another type (number 3)"),
    "box of three": (third(bbox=[1, 2, 3]), "(number 3)"),
    "box of null": (third(bbox=None), "(number 3)"),
    "box of bools": (third(bbox=[True, 1, 2, 3]), "(number 3)"),
    "box infinite": (third(bbox=[1, 1, float("inf"), 2]), "a box of infx2 at 1, 1"),
    "box of huge integers": (third(bbox=[1, 1, 10**400, 2]), "too large"),
    "box far": (third(bbox=[-1e9, 1, 2e9, 2]), "far beyond the 64x64 picture"),
    "box negative": (third(bbox=[9, 9, -4, 4]), "a box of -4x4"),
    "no picture id": (third(image_id=None), "(number 3)"),
    "unknown picture": (third(image_id=88), "(annotation 3: image_id 88)"),
    "unknown category": (third(category_id=0), "(annotation 3: category_id 0)"),
    "category a bool": (third(category_id=True), "(number 3)"),
    "id of another": (third(id=1), "annotation 1 of 3.png: its id is that of another"),
    "id a list": (third(id=[3]), "and no number or text"),
    "no object": (lambda d: d["annotations"].__setitem__(3, 7), "(number 3)"),
    "polygon far": (shape([[-164.1, -221.8, 2.08e8, 3.5e8, 225.9, 236.5, 272.0, 384.2]]), "far beyond"),
    "polygon at -1e8": (shape([[1, 1, 9, 1, -1e8, 9]]), "far beyond"),
    "polygon outside": (shape([[70, 2, 90, 2, 80, 30]]), "outside the 64x64 picture"),
    "polygon above": (shape([[7, -20, 9, -20, 8, -3]]), "outside the 64x64 picture"),
    "polygon odd": (shape([[1, 1, 2, 2, 3, 3, 4]]), "a polygon of 7 numbers"),
    "polygon of 2 points": (shape([[1, 1, 2, 2]]), "fewer than 3 points"),
    "polygon flat": (shape([1, 1, 20, 1, 20, 20]), "fewer than 3 points"),
    "polygon of points": (shape([[[1, 1], [2, 2], [3, 1], [1, 2], [4, 4], [5, 5]]]), "something else than numbers"),
    "polygon of text": (shape([["1", "1", "2", "2", "3", "3"]]), "something else than numbers"),
    "polygon NaN": (shape([[1, 1, float("nan"), 2, 3, 3]]), "not finite"),
    "polygon infinite": (shape([[1, 1, float("inf"), 2, 3, 3]]), "not finite"),
    "polygon of huge integers": (shape([[1, 1, 10**400, 2, 3, 3]]), "something else than numbers"),
    "mask of text": (shape("a.png"), "neither polygons nor run lengths"),
    "mask missing": (shape(None), "no mask, where others have one"),
    "runs negative": (shape({"size": [64, 64], "counts": [5000, -904]}), "below 0"),
    "runs too few": (shape({"size": [64, 64], "counts": [5, 7]}), "a mask of 12 pixels, where the picture has 4096"),
    "runs of text": (shape({"size": [64, 64], "counts": ["4000", "96"]}), "no whole numbers"),
    "runs of halves": (shape({"size": [64, 64], "counts": [4095.5, 0.5]}), "no whole numbers"),
    "runs null": (shape({"size": [64, 64], "counts": None}), "no whole numbers"),
    "runs of another size": (shape({"size": [64, 32], "counts": [2048]}), "a mask of 32x64, where"),
    "size of text": (shape({"size": "64", "counts": [4096]}), "a mask of no size"),
    "area 0": (third(area=0), "an area of 0 pixels"),
    "area 0 as text": (third(area="0.0"), "an area of 0 pixels"),
    "runs without a pixel": (shape({"size": [64, 64], "counts": [4096]}), "a mask without a pixel"),
    "runs of no length": (shape({"size": [64, 64], "counts": [4000, 0, 96]}), "a mask without a pixel"),
    "runs elsewhere": (shape({"size": [64, 64], "counts": [4090, 6]}), "a mask that lies elsewhere than its box"),
    "string without a pixel": (drawn(64, 64, 64, 64), "a mask without a pixel"),
    "string elsewhere": (drawn(61, 61, 64, 64), "a mask that lies elsewhere than its box"),
    "string in the box's rows alone": (drawn(0, 8, 1, 40), "a mask that lies elsewhere than its box"),
    "string in its columns alone": (drawn(8, 0, 50, 1), "a mask that lies elsewhere than its box"),
    "polygon elsewhere": (shape([[62, 62, 64, 62, 63, 64]]), "a mask that lies elsewhere than its box"),
    "polygon of one point": (shape([[20, 20, 20, 20, 20, 20]]), "polygons without an area"),
    "polygon of a line": (shape([[10, 20, 30, 30, 20, 25, 30, 30]]), "polygons without an area"),
    "string too long a number": (packed("P" * 31), "damaged run lengths"),
    "string of zero": (packed("0"), "a mask of 0 pixels"),
    "string empty": (packed(""), "damaged run lengths"),
    "string not ended": (packed("PP"), "damaged run lengths"),
    "string of other signs": (packed("a\u00e9\u4e2d~"), "damaged run lengths"),
    "string negative": (packed("O0"), "damaged run lengths"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_named_in_one_line_or_skipped(folder: Path, name: str) -> None:
    change, words = DAMAGED[name]
    with pytest.raises(UserError) as error:
        opened(folder, change)
    assert words in str(error.value)
    assert "1 of 8 annotations" in str(error.value)
    assert "skip_bad" in str(error.value)
    assert "\n" not in str(error.value)
    said: list[str] = []
    source = opened(folder, change, skip_bad=True, report=said.append)
    assert [len(source.instances(i)) for i in range(8)] == [1, 1, 1, 0, 1, 1, 1, 1]
    assert source.skipped() == {"annotations": 1, "pictures": 0}
    assert said == source.dropped
    assert "leaves out 0 pictures and 1 annotations" in source.notes()[0]
    usable(source)


PICTURES: dict[str, tuple[Change, str]] = {
    "no file name": (lambda d: d["images"][3].pop("file_name"), "(number 3)"),
    "no height": (lambda d: d["images"][3].update(height=None), "(number 3)"),
    "half a pixel": (lambda d: d["images"][3].update(width=63.5), "(number 3)"),
    "no side": (lambda d: d["images"][3].update(width=0), "(number 3)"),
    "endless": (lambda d: d["images"][3].update(width=float("inf")), "(number 3)"),
    "of another size": (
        lambda d: d["images"][3].update(width=60),
        "3.png: 64x64 pixels, where the annotations say 60x64",
    ),
    "twice": (lambda d: d["images"][3].update(file_name="1.png"), "1.png: it is picture 3 and 1"),
    "twice by another name": (lambda d: d["images"][3].update(file_name="./1.png"), "it is picture 3 and 1"),
    "missing": (lambda d: d["images"][3].update(file_name="gone.png"), "are not in"),
    "a folder": (lambda d: d["images"][3].update(file_name=""), "are not in"),
    "half a surrogate": (lambda d: d["images"][3].update(file_name="\ud800.png"), "are not in"),
    "NUL": (lambda d: d["images"][3].update(file_name="a\0.png"), "are not in"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_cannot_be_used_are_named_or_skipped_with_what_is_on_them(folder: Path, name: str) -> None:
    change, words = PICTURES[name]
    with pytest.raises(UserError) as error:
        opened(folder, change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    source = opened(folder, change, skip_bad=True)
    assert [image["id"] for image in source.images] == [0, 1, 2, 4, 5, 6, 7]
    assert source.skipped() == {"annotations": 0, "pictures": 1}
    usable(source)


CONTRADICTIONS: dict[str, Change] = {
    "gives 1 ids of images more than once": lambda d: d["images"][3].update(id=1),
    "gives 1 ids of images": lambda d: d["images"][3].update(id="1"),
    "gives 1 ids of categories more than once": lambda d: d["categories"][1].update(id=1.0),
    r"1 of 2 categories lack one of id, name.*\(number 1\)": lambda d: d["categories"][1].pop("id"),
    r"1 of 2 categories lack": lambda d: d["categories"][1].update(name=None),
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_contradictions_end_the_opening(folder: Path, words: str, skip_bad: bool) -> None:
    with pytest.raises(UserError, match=words):
        opened(folder, CONTRADICTIONS[words], skip_bad=skip_bad)


@pytest.mark.parametrize("text", ["", "[1, 2", '{"images": [}', "\ufeff[", "[" * 100_000, "nul", "\x00"])
def test_a_file_that_is_no_json_is_one_line(folder: Path, text: str) -> None:
    (folder / "file.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is no COCO file: it is not JSON") as error:
        open_coco(str(folder / "images"), str(folder / "file.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks(folder: Path, encoding: str) -> None:
    (folder / "file.json").write_text(json.dumps(base()), encoding=encoding)
    usable(open_coco(str(folder / "images"), str(folder / "file.json")))


def same_names(data: dict[str, Any]) -> None:
    data["categories"] = [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell"}, {"id": 7, "name": "cell (1)"}]


def test_two_categories_of_one_name_stay_two(folder: Path) -> None:
    source = opened(folder, same_names)
    assert len(set(source.classes)) == 3
    assert source.classes[1] == "cell (2)"
    results = [r for r in perfect(source) if r["category_id"] == 1]
    found = average_precision(source.truth(), results, ("bbox",), per_class=True)["bbox"]
    assert found["per_class"] == {1: 1.0, 2: 0.0, 7: None}
    assert found["AP"] == pytest.approx(0.5)


def test_nothing_to_find_is_no_number(folder: Path) -> None:
    empty = opened(folder, lambda d: d["annotations"].clear())
    crowds = opened(folder, each("annotations", "iscrowd", 1))
    for source in (empty, crowds):
        for results in ([], perfect(opened(folder, lambda d: None))):
            found = average_precision(source.truth(), results, ("bbox",), per_class=True)["bbox"]
            assert found.pop("per_class") == {1: None, 2: None}
            assert set(found.values()) == {None}


def test_an_area_that_is_not_told_is_that_of_the_mask(folder: Path) -> None:
    source = opened(folder, third(area=None, segmentation=[[10, 10, 30, 10, 10, 30]]))
    areas = [a["area"] for a in source.truth()["annotations"]]
    assert areas[3] == pytest.approx(200, abs=20)
    assert areas[:3] == [a["area"] for a in base()["annotations"][:3]]


def test_a_part_of_the_truth(folder: Path) -> None:
    truth = opened(folder, lambda d: None).truth([5, 2])
    assert [image["id"] for image in truth["images"]] == [2, 5]
    assert [(a["id"], a["image_id"]) for a in truth["annotations"]] == [(1, 2), (2, 5)]


def test_compressed_runs_are_judged_as_they_decode() -> None:
    """Random masks are sound, and what is said of strings with a character changed agrees with decoding them."""
    numbers = np.random.default_rng(0)
    strings, pixels, sound = [], [], []
    for _ in range(300):
        height, width = (int(n) for n in numbers.integers(1, 40, 2))
        mask = (numbers.random((height, width)) < numbers.random()).astype(np.uint8)
        text = encode_mask(torch.from_numpy(mask))["counts"]
        if numbers.random() < 0.5:
            at = int(numbers.integers(len(text)))
            text = text[:at] + chr(int(numbers.integers(48, 112))) + text[at + 1 :]
        strings.append(text)
        pixels.append(height * width)
        try:
            decoded = mask_api.decode({"size": [height, width], "counts": text})
            sound.append(encode_mask(torch.from_numpy(decoded))["counts"] is not None)
        except (RuntimeError, ValueError):
            sound.append(False)
    faulty = dict(faults_of_strings(strings, pixels))
    assert 50 < len(faulty) < 200
    assert all(ok for n, ok in enumerate(sound) if n not in faulty), "what passes can be decoded"


def test_long_files_are_judged_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remask.downstream.detect.coco_masks._TOGETHER", 7)
    strings = [encode_mask(torch.full((n, 3), n % 2, dtype=torch.uint8))["counts"] for n in range(1, 30)] + ["P"]
    assert list(faults_of_strings(strings, [3 * n for n in range(1, 30)] + [1])) == [(29, "damaged run lengths")]


@pytest.mark.parametrize("form", ["string", "runs", "polygon"])
def test_where_masks_may_lie(folder: Path, form: str) -> None:
    """As far as a pixel beside their box, for one of them is rounded; and no further."""

    def opens(x0: int, y0: int, x1: int, y1: int, box: list[float]) -> bool:
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[y0:y1, x0:x1] = 1
        segmentation: Any = encode_mask(torch.from_numpy(mask))
        if form == "runs":
            flat = np.concatenate([[0], mask.T.ravel(), [0]])
            ends = np.flatnonzero(np.diff(flat))
            segmentation = {"size": [SIDE, SIDE], "counts": np.diff([0, *ends, SIDE * SIDE]).tolist()}
        if form == "polygon":
            segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        source = opened(folder, third(segmentation=segmentation, bbox=box), skip_bad=True)
        return not source.dropped

    box = [20.0, 30.0, 10.0, 12.0]
    assert opens(20, 30, 30, 42, box), "the box itself"
    assert opens(15, 32, 20, 40, box), "beside it"
    assert opens(21, 25, 29, 30, box), "above it"
    assert opens(29, 41, 64, 64, box), "one pixel within"
    assert opens(0, 0, 64, 64, box), "all of the picture"
    assert opens(22, 33, 23, 34, [22.4, 33.4, 0.2, 0.2]), "a box within a pixel"
    assert not opens(12, 32, 18, 40, box), "two pixels to the left"
    assert not opens(32, 32, 40, 40, box), "to the right"
    assert not opens(21, 20, 29, 28, box), "above"
    assert not opens(21, 45, 29, 50, box), "below"


def test_one_polygon_of_several_is_enough(folder: Path) -> None:
    x, y, w, h = base()["annotations"][3]["bbox"]
    near, far = [x, y, x + w, y, x, y + h], [62, 62, 64, 62, 63, 64]
    line = [x, y, x + w, y + h, x, y]
    source = opened(folder, shape([far, line, near]))
    usable(source)


def absolute(root: Path) -> Change:
    return each("images", "file_name", lambda i: str(root / i["file_name"]))


def test_whole_paths_below_the_folder_are_its_pictures(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder / "images")
    for root in (folder / "images", tmp_path / "link", folder / "images" / ".." / "images"):
        source = opened(folder, absolute(root))
        assert source.left_out == {}
        assert source.notes() == []
        assert [image["file_name"] for image in source.images] == [f"{k}.png" for k in range(8)]
        usable(source)
    excluded = opened(folder, absolute(folder / "images"), exclude=["3.png"], limit=4)
    assert (len(excluded), excluded.left_out) == (4, {"excluded by 3.png": 1})


def test_pictures_beside_the_folder_are_said(folder: Path, tmp_path: Path) -> None:
    for k in range(8):
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / f"{k}.png")
    source = opened(folder, absolute(tmp_path))
    assert source.left_out == {"pictures that the annotations do not name": 8}
    assert source.notes() == [f"8 images do not lie in {folder / 'images'}: their file_name leads elsewhere"]
    usable(source)
    with pytest.raises(UserError, match="write each file_name relative to that folder"):
        opened(folder, absolute(tmp_path / "gone"))
    limited = opened(folder, each("images", "file_name", lambda i: "images/" + i["file_name"]), limit=2)
    assert limited.left_out == {}
