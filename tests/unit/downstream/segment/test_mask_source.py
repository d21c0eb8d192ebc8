"""masks and classes: which pixel of which file is which class, and what is refused."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask.downstream.segment.label_map import COLOUR, IGNORE, colours, read_ids
from remask.downstream.segment.mask_source import MaskFiles, open_masks
from remask.errors import UserError
from remask.images.decoding import BadImage


def png(array: Any, mode: str | None = None, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def gray(*rows: list[int], dtype: type = np.uint8) -> np.ndarray:
    return np.array(rows, dtype)


def write(root: Path, masks: dict[str, Any], images: dict[str, tuple[int, int]] | None = None, **more: Any) -> Path:
    """A set in root/images and root/masks; pictures are as large as their masks unless `images` says otherwise."""
    for name, mask in masks.items():
        path = root / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mask if isinstance(mask, bytes) else png(mask))
    for name, (height, width) in (images or {n: np.shape(m)[:2] for n, m in masks.items()}).items():
        path = root / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((height, width, 3), len(name), np.uint8)))
    if more:
        (root / "classes.json").write_text(json.dumps(more))
    return root / "images"


def read(source: MaskFiles) -> list[list[list[int]]]:
    return [source.read(i)[1].tolist() for i in range(len(source))]


def unpack(archive: Path, to: Path, *starts: str) -> None:
    with tarfile.open(archive) as tar:
        wanted = [member for member in tar if member.name.startswith(starts)]
        tar.extractall(to, wanted, filter="data")


@pytest.mark.parametrize(
    ("masks", "said", "arguments", "classes", "expected"),
    [
        # as they are; 255 is no class, declared or not
        (gray([0, 1], [2, 255]), {"classes": ["a", "b", "c"]}, {}, ["a", "b", "c"], [[0, 1], [2, 255]]),
        # CamVid: the last name is that of the ignored id
        (gray([0, 1], [2, 0]), {"classes": ["a", "b", "none"], "ignore_index": 2}, {}, ["a", "b"], [[0, 1], [255, 0]]),
        # an ignored id in the middle: those behind it move up
        (gray([0, 1], [2, 2]), {"classes": ["a", "none", "c"], "ignore_index": 1}, {}, ["a", "c"], [[0, 255], [1, 1]]),
        (gray([0, 1], [2, 2]), {}, {"ignore": 1}, ["class 0", "class 2"], [[0, 255], [1, 1]]),
        # ADE20K: 0 is none, the names begin at 1
        (gray([0, 1], [2, 255]), {"classes": ["a", "b"]}, {"reduce_zero": True}, ["a", "b"], [[255, 0], [1, 255]]),
        (gray([0, 1], [3, 1]), {}, {"reduce_zero": True}, ["class 0", "class 1", "class 2"], [[255, 0], [2, 0]]),
        # nobody says how many there are: the highest id does
        (gray([0, 0], [0, 3]), {}, {}, [f"class {i}" for i in range(4)], [[0, 0], [0, 3]]),
        (gray([0, 1], [0, 0]), {"classes": ["a", "b", "c"]}, {"classes": 2}, ["class 0", "class 1"], [[0, 1], [0, 0]]),
        (gray([0, 1], [0, 0]), {}, {"classes": ["x", "y"]}, ["x", "y"], [[0, 1], [0, 0]]),
        # 16 bits, and an ignored id beyond 8
        (gray([0, 1], [300, 1], dtype=np.uint16), {"classes": ["a", "b"], "ignore_index": 300}, {}, ["a", "b"],
         [[0, 1], [255, 1]]),
    ],
)  # fmt: skip
def test_ids_become_classes_without_gaps(
    tmp_path: Path, masks: np.ndarray, said: Any, arguments: Any, classes: list[str], expected: Any
) -> None:
    source = open_masks(str(write(tmp_path, {"x": masks}, **said)), **arguments)
    assert source.classes == classes
    assert len(source.palette) == len(classes)
    assert read(source) == [expected]
    assert source.ignore == IGNORE


def test_palettes_colours_and_gray_colours(tmp_path: Path) -> None:
    entries = Image.fromarray(gray([0, 1], [1, 2]))
    entries.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    stream = io.BytesIO()
    entries.save(stream, "PNG")
    assert read_ids(stream.getvalue()).tolist() == [[0, 1], [1, 2]]
    assert read_ids(png(gray([0, 2]), "RGB")).tolist() == [[0, 2]], "channels agree: gray"
    assert read_ids(png(gray([0, 1]).astype(bool))).tolist() == [[0, 1]]
    red, black = [255, 0, 0], [0, 0, 0]
    masks = {"one": np.array([[red, black]], np.uint8), "two": np.array([[black, black]], np.uint8)}
    said = {"classes": ["ground", "thing", "none"], "palette": [black, red, [0, 0, 255]], "ignore_index": 2}
    source = open_masks(str(write(tmp_path, masks, **said)))
    assert source.coloured
    assert read(source) == [[[1, 0]], [[0, 0]]]
    assert source.palette == [(0, 0, 0), (255, 0, 0)]
    blue = {"three": np.array([[[0, 0, 255], red]], np.uint8)}
    assert read(open_masks(str(write(tmp_path / "b", blue, **said)))) == [[[255, 1]]]


def test_order_limit_subset_and_pickling(tmp_path: Path) -> None:
    masks = {name: gray([0, n]) for n, name in enumerate(["b", "a/z", "a/b", "c"])}
    source = open_masks(str(write(tmp_path, masks)))
    assert [Path(source.where(i)).stem for i in range(4)] == ["b", "z", "b", "c"]
    assert read(source) == [[[0, 2]], [[0, 1]], [[0, 0]], [[0, 3]]]
    assert read(pickle.loads(pickle.dumps(source))) == read(source)
    assert read(source.subset([3, 0])) == [[[0, 3]], [[0, 2]]]
    assert len(open_masks(str(tmp_path / "images"), limit=3)) == 3
    assert read(open_masks(str(tmp_path / "images"), str(tmp_path / "masks"), limit=1, classes=4)) == [[[0, 2]]]


def test_ade20k_layout(tmp_path: Path) -> None:
    write(tmp_path, {"training/a": gray([0, 150]), "validation/b": gray([1, 2])})
    (tmp_path / "masks").rename(tmp_path / "annotations")
    names = "".join(f"{i}\t0.1\t9\t9\tname {i}, other\n" for i in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + names)
    source = open_masks(str(tmp_path / "images/training"), reduce_zero=True)
    assert len(source) == 1
    assert (source.classes[0], source.classes[149], len(source.classes)) == ("name 1", "name 150", 150)
    assert read(source) == [[[255, 149]]]
    with pytest.raises(UserError, match=r"holds the splits training, validation: name one, as in .*images/training"):
        open_masks(str(tmp_path / "images"))


@pytest.mark.parametrize(
    ("masks", "images", "said", "arguments", "message"),
    [
        ({"x": gray([0, 1])}, {"x": (2, 2), "y": (1, 2)}, {}, {}, r"1 pictures of .*images have no mask: y\.png"),
        ({"x": gray([0, 1]), "y": gray([0, 1])}, {"x": (1, 2)}, {}, {}, r"1 masks of .* have no picture: y\.png"),
        ({"x": gray([0, 1])}, {"y": (1, 2)}, {}, {}, r"no picture has a mask of its name: .*y\.png and .*x\.png"),
        ({"x": gray([0, 1])}, {"x": (2, 3)}, {}, {}, r"1 of 1 masks are of another size.*x\.png is 3x2, its mask 2x1"),
        ({"x": gray([0, 7, 8])}, None, {"classes": ["a", "b"]}, {}, r"1 of 1 masks .* 2 declared .*x\.png has 7, 8"),
        ({"x": gray([0, 0])}, None, {}, {}, "have 1 class, and segmentation needs 2 to 255"),
        ({"x": gray([0, 255])}, None, {}, {}, "have 1 class, .*save a foreground as 1"),
        ({"x": gray([0, 300], dtype=np.uint16)}, None, {}, {}, "have 300 classes, and segmentation needs 2 to 255"),
        ({"x": np.array([[[9, 0, 0]]], np.uint8)}, None, {}, {}, "are coloured: give classes and palette"),
        ({"x": gray([0, 1])}, None, {"clases": []}, {}, "classes.json cannot be read as"),
        ({"x": gray([0, 1])}, None, {}, {"limit": 0}, "a limit of 0 images"),
        ({"x": gray([0, 1])}, None, {}, {"masks": "nowhere"}, "there is no folder of masks 'nowhere'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    tmp_path: Path, masks: Any, images: Any, said: Any, arguments: Any, message: str
) -> None:
    where = write(tmp_path, masks, images, **said)
    with pytest.raises(UserError, match=message) as caught:
        open_masks(str(where), **arguments)
    assert "\n" not in str(caught.value)


def test_no_masks_anywhere(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="no masks are given"):
        open_masks(str(tmp_path / "photos"))
    with pytest.raises(UserError, match="holds no images: it is empty"):
        open_masks(str(tmp_path / "photos"), str(tmp_path / "photos"))
    with pytest.raises(UserError, match="no folder of images"):
        open_masks(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "its mask: cannot identify"),
        (png(gray([0, 1]), kind="JPEG"), "is a JPEG, which blurs class ids"),
        (png(gray([0, 1]))[:45], "its mask: "),
        (png(np.zeros((1, 2), np.float32), kind="TIFF"), "mode F"),
    ],
)
def test_a_broken_mask_makes_its_pair_unusable(tmp_path: Path, data: bytes, reason: str) -> None:
    source = open_masks(str(write(tmp_path, {"a": gray([0, 1]), "b": data}, {"a": (1, 2), "b": (1, 2)})))
    assert read(source.subset([0])) == [[[0, 1]]]
    with pytest.raises(BadImage, match=reason):
        source.read(1)


def test_ids_beyond_the_scan_are_found_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remask.downstream.segment.mask_checks.SCANNED", 2)
    masks = {f"{i}": gray([0, 1 if i != 1 else 9]) for i in range(4)}
    source = open_masks(str(write(tmp_path, masks, classes=["a", "b"])))
    with pytest.raises(BadImage, match="holds 9, which is no declared class"):
        source.read(1)


def test_colours_are_distinct_and_none_is_black() -> None:
    assert colours(3) == [(128, 0, 0), (0, 128, 0), (128, 128, 0)]  # PASCAL VOC's entries 1 to 3
    assert len({*colours(255), (0, 0, 0)}) == 256


def test_camvid(tmp_path: Path, shared: Path) -> None:
    unpack(shared / "data/camvid/camvid.tar", tmp_path, "camvid/classes.json", "camvid/images/val", "camvid/masks/val")
    source = open_masks(str(tmp_path / "camvid/images/val"))
    assert (len(source), len(source.classes)) == (101, 11)
    assert (source.classes[3], source.palette[3]) == ("road", (128, 64, 128))
    raw = np.array(Image.open(source.pairs[5].mask))
    mask = source.read(5)[1]
    assert mask.shape == (360, 480)
    assert (raw == 11).any()
    assert ((mask == IGNORE) == (raw == 11)).all()
    assert (mask[raw != 11] == raw[raw != 11]).all()


def test_coco_panoptic_agrees_with_the_semantic_masks(tmp_path: Path, shared: Path) -> None:
    archive, notes = shared / "data/coco120/coco120.tar", "coco120/annotations"
    unpack(archive, tmp_path, "coco120/images/val2017", f"{notes}/panoptic_val2017", f"{notes}/semantic_val2017")
    folder = tmp_path / notes
    source = open_masks(str(tmp_path / "coco120/images/val2017"), str(folder / "panoptic_val2017"))
    assert len(source) == 60
    table = json.loads((folder / "panoptic_val2017.json").read_text())
    assert source.classes == [category["name"] for category in table["categories"]]
    category = np.array([entry["id"] for entry in table["categories"]] + [0] * (256 - len(source.classes)))
    for i in range(0, 60, 6):
        semantic = np.array(Image.open(folder / "semantic_val2017" / Path(source.pairs[i].mask).name))
        assert (category[source.read(i)[1]] == semantic).all()
    assert (
        len(open_masks(str(tmp_path / "coco120/images/val2017"), str(folder / "panoptic_val2017.json"), limit=7)) == 7
    )


def panoptic(root: Path, **changes: Any) -> Path:
    """One picture of 1x3: segment 70000 of category 7, segment 5 of category 2, void."""
    (root / "images").mkdir()
    (root / "p").mkdir()
    (root / "images/x.png").write_bytes(png(np.zeros((1, 3, 3), np.uint8)))
    big = [70000 & 255, 70000 >> 8 & 255, 70000 >> 16]
    (root / "p/x.png").write_bytes(png(np.array([[big, [5, 0, 0], [0, 0, 0]]], np.uint8)))
    segments = [{"id": 70000, "category_id": 7}, {"id": 5, "category_id": 2}]
    content = {
        "images": [{"id": 1, "file_name": "x.png"}],
        "annotations": [{"image_id": 1, "file_name": "x.png", "segments_info": segments}],
        "categories": [{"id": 7, "name": "cat"}, {"id": 2, "name": "sky"}],
    }
    (root / "p.json").write_text(json.dumps(content | changes))
    return root / "p.json"


def test_panoptic_by_hand(tmp_path: Path) -> None:
    source = open_masks(str(tmp_path / "images"), str(panoptic(tmp_path)))
    assert source.classes == ["cat", "sky"]
    assert read(source) == [[[0, 1, 255]]]
    assert source.tables[0].ids.tolist() == [COLOUR, COLOUR + 5, COLOUR + 70000]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"categories": [{"id": 7, "name": "cat"}]},
            "is no COCO panoptic file: segment 1 of annotation 0 is of a category_id that the file does not list",
        ),
        ({"annotations": [{}]}, "is no COCO panoptic file: annotation 0 has no image_id, or one of another type"),
        ({"images": [{"id": 1, "file_name": "gone.jpg"}]}, r"1 entries of .*p\.json have no picture: gone\.jpg"),
    ],
)
def test_broken_panoptic_files(tmp_path: Path, changes: Any, message: str) -> None:
    path = panoptic(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        open_masks(str(tmp_path / "images"), str(path))


def test_two_classes_drawn_as_0_and_255_are_refused_with_the_cure(tmp_path: Path) -> None:
    write(tmp_path, {"a": gray([0, 255], [255, 0])})
    said = {"classes": ["ground", "thing"]}

    def opened(**more: Any) -> list[list[list[int]]]:
        (tmp_path / "masks" / "classes.json").write_text(json.dumps({**said, **more}))
        return read(open_masks(str(tmp_path / "images"), str(tmp_path / "masks")))

    with pytest.raises(UserError, match=r'"palette": \[\[0, 0, 0\], \[255, 255, 255\]\]'):
        opened()
    assert opened(palette=[[0, 0, 0], [255, 255, 255]]) == [[[0, 1], [1, 0]]]
    assert opened(ignore_index=IGNORE) == [[[0, IGNORE], [IGNORE, 0]]]


def test_masks_to_test_on_that_are_drawn_as_0_and_255_are_refused_too(tmp_path: Path) -> None:
    """Where training's are 0 and 1, all of the second class would be left out of the result."""
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    write(tmp_path / "train", {"a": gray([0, 1], [1, 0])})
    write(tmp_path / "val", {"a": gray([0, 255], [255, 0])})
    said = {"classes": ["ground", "thing"]}
    (tmp_path / "train" / "masks" / "classes.json").write_text(json.dumps(said))
    known = open_masks(str(tmp_path / "train" / "images")).said
    with pytest.raises(UserError, match="hold 0 and 255 alone"):
        open_masks(str(tmp_path / "val" / "images"), otherwise=known)
    for more, ids in (
        ({"palette": [[0] * 3, [255] * 3]}, [[0, 1], [1, 0]]),
        ({"ignore_index": IGNORE}, [[0, 255], [255, 0]]),
    ):
        (tmp_path / "val" / "masks" / "classes.json").write_text(json.dumps({**said, **more}))
        assert read(open_masks(str(tmp_path / "val" / "images"), otherwise=known)) == [ids]
