"""fingerprint and differences: every kind of source has one, a change of each kind is named, a moved folder is none."""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask.downstream.data_sources import of_boxes, of_masks
from remask.downstream.detect.coco import open_coco
from remask.downstream.segment.mask_source import open_masks
from remask.images.sources.differences import differences
from remask.images.sources.fingerprint import BLOCK, GONE, Inventory, inventory, of_file, sampled
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.images.tools.packing import Form, pack


def png(colour: int, side: int = 6) -> bytes:
    """A picture of noise about a colour; its size in bytes changes with the side."""
    pixels = np.random.default_rng(colour).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def folder(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def seen(path: Path | str, limit: int | None = None, labelled: bool = False) -> Inventory:
    return inventory(open_source(str(path), limit=limit), labelled)


CLASSES = [f"{name}/{i}.png" for name in ("ant", "bee", "cow") for i in range(3)]
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "more": (lambda p: shutil.copy(p / "ant/0.png", p / "ant/1a.png"), "9 pictures became 10, first new ant/1a.png"),
    "fewer": (lambda p: (p / "cow/1.png").unlink(), "9 pictures became 8, first gone cow/1.png"),
    "renamed": (lambda p: (p / "bee/1.png").rename(p / "bee/x.png"), "1 gone, first bee/1.png, 1 new, first bee/x.png"),
    "replaced": (lambda p: (p / "bee/2.png").write_bytes(png(5, 9)), "1 size differs, first bee/2.png"),
    "two": (lambda p: [(p / f"cow/{i}.png").write_bytes(png(i, 9)) for i in (1, 2)], "2 sizes differ, first cow/1.png"),
    "class": (
        lambda p: (p / "ant").rename(p / "zebra"),
        "class ant is gone, class zebra is new; 3 gone, first ant/0.png, 3 new, first zebra/0.png",
    ),
    "no class": (lambda p: shutil.rmtree(p / "ant"), "class ant is gone; 9 pictures became 6, first gone ant/0.png"),
    "emoji": (lambda p: (p / "cow/0.png").rename(p / "cow/🐄.png"), "1 gone, first cow/0.png, 1 new, first cow/🐄.png"),
    "newline": (lambda p: (p / "cow/0.png").rename(p / "cow/\n.png"), "1 gone, first cow/0.png, 1 new, first cow/\\n.png"),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_folder_is_named(tmp_path: Path, name: str) -> None:
    change, said = CHANGES[name]
    before = seen(folder(tmp_path / "a", CLASSES), labelled=True)
    change(tmp_path / "a")
    after = seen(tmp_path / "a", labelled=True)
    assert "; ".join(differences(before, after)) == said
    assert before.digest() != after.digest()


def test_what_is_no_change(tmp_path: Path) -> None:
    """Another place, other times, a file that is no picture; and an edit that keeps name and size, as documented."""
    before = seen(folder(tmp_path / "a", CLASSES))
    (tmp_path / "deep").mkdir()
    shutil.copytree(tmp_path / "a", tmp_path / "deep" / "b")
    for path in (tmp_path / "deep" / "b").rglob("*.png"):
        os.utime(path, (1, 1))
    (tmp_path / "deep/b/readme.txt").write_text("no picture")
    data = bytearray((tmp_path / "deep/b/ant/0.png").read_bytes())
    data[-20] ^= 1
    (tmp_path / "deep/b/ant/0.png").write_bytes(data)
    after = seen(tmp_path / "deep" / "b")
    assert differences(before, after) == []
    assert before.digest() == after.digest()
    assert differences(before.hashed(), after.hashed()) == ["1 content differs, first ant/0.png"]


def test_what_is_not_used_does_not_count(tmp_path: Path) -> None:
    before = seen(folder(tmp_path / "a", CLASSES), limit=4)
    (tmp_path / "a/cow/9.png").write_bytes(png(9))
    assert seen(tmp_path / "a", limit=4).digest() == before.digest()
    (tmp_path / "a/ant/00.png").write_bytes(png(9))
    assert differences(before, seen(tmp_path / "a", limit=4)) == ["1 gone, first bee/0.png, 1 new, first ant/00.png"]


def test_a_file_that_is_gone_has_no_size(tmp_path: Path) -> None:
    before = seen(folder(tmp_path / "a", ["0.png", "1.png"]))
    (tmp_path / "a/1.png").unlink()
    (tmp_path / "a/1.png").symlink_to(tmp_path / "nowhere.png")
    after = seen(tmp_path / "a")
    assert after.sizes[1] == GONE
    assert differences(before, after) == ["1 size differs, first 1.png"]


def test_order_and_labels_of_a_list(tmp_path: Path) -> None:
    folder(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "list.txt").write_text("a.png 0\nb.png 1\nc.png 1\n")
    before, unlabelled = seen(tmp_path / "list.txt", labelled=True), seen(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("b.png 1\na.png 0\nc.png 1\n")
    assert differences(unlabelled, seen(tmp_path / "list.txt")) == ["the order differs, first b.png where a.png was"]
    (tmp_path / "list.txt").write_text("a.png 0\nb.png 0\nc.png 1\n")
    assert differences(before, seen(tmp_path / "list.txt", labelled=True)) == ["1 label differs, first b.png"]
    assert unlabelled.digest() == seen(tmp_path / "list.txt").digest(), "labels that are not used are none of its data"
    (tmp_path / "list.txt").write_text("a.png 0\nb.png 1\nc.png 1\nc.png 1\n")
    assert differences(before, seen(tmp_path / "list.txt", labelled=True)) == [
        "3 pictures became 4, first new c.png"
    ], "a picture may be named twice"


def test_a_list_of_absolute_paths_may_move(tmp_path: Path) -> None:
    for place in ("one", "another place"):
        folder(tmp_path / place, ["x/a.png", "x/b.png", "y/c.png"])
        paths = [tmp_path / place / name for name in ("y/c.png", "x/a.png", "x/b.png")]
        (tmp_path / f"{place}.txt").write_text("".join(f"{path}\n" for path in paths))
    one, other = (seen(tmp_path / f"{place}.txt") for place in ("one", "another place"))
    assert one.names == ["y/c.png", "x/a.png", "x/b.png"]
    assert one.digest() == other.digest()


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_a_tar_that_is_written_anew(tmp_path: Path) -> None:
    members = {f"{i}.png": png(i) for i in range(4)} | {f"{i}.cls": b"01"[i % 2 : i % 2 + 1] for i in range(4)}
    before = seen(tar(tmp_path / "x.tar", members), labelled=True)
    assert before.names == ["0.png", "1.png", "2.png", "3.png"]
    assert seen(tar(tmp_path / "x.tar", members), labelled=True).digest() == before.digest()
    other = members | {"2.png": png(2, 11)}
    assert differences(before, seen(tar(tmp_path / "x.tar", other), labelled=True)) == ["1 size differs, first 2.png"]
    other = members | {"3.cls": b"0"}
    assert differences(before, seen(tar(tmp_path / "x.tar", other), labelled=True)) == ["1 label differs, first 3.png"]
    backwards = dict(reversed(members.items()))
    assert "order differs" in "".join(differences(before, seen(tar(tmp_path / "x.tar", backwards), labelled=True)))


def test_shards_that_use_names_again(tmp_path: Path) -> None:
    for shard in ("x-0.tar", "x-1.tar"):
        tar(tmp_path / shard, {"0.png": png(0), "1.png": png(1)})
    before = seen(tmp_path / "x-*.tar")
    tar(tmp_path / "x-1.tar", {"0.png": png(0), "1.png": png(1), "2.png": png(2)})
    assert differences(before, seen(tmp_path / "x-*.tar")) == ["4 pictures became 5, first new x-1.tar: 2.png"]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(count: int, column: str = "image", side: int = 6) -> Inventory:
        table = pyarrow.table({column: [png(i, side) for i in range(count)], "label": [i % 2 for i in range(count)]})
        parquet.write_table(table, tmp_path / "x.parquet")
        return seen(tmp_path / "x.parquet", labelled=True)

    before = write(6)
    assert before.digest() == write(6).digest()
    assert differences(before, write(7)) == ["6 pictures became 7"]
    assert "1 size differs, first x.parquet" in differences(before, write(6, side=9))
    (tmp_path / "x.parquet").rename(tmp_path / "y.parquet")
    assert differences(before, seen(tmp_path / "y.parquet", labelled=True)) == [
        "1 gone, first x.parquet, 1 new, first y.parquet"
    ]


def test_packed_sees_contents_by_its_checksums(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]

    def write() -> Inventory:
        (tmp_path / "x.remask").unlink(missing_ok=True)
        pack(open_source(str(tmp_path / "p")), tmp_path / "x.remask", Form("raw", exactly=(6, 6)))
        return seen(tmp_path / "x.remask")

    folder(tmp_path / "p", names)
    before = write()
    assert (before.names, before.digest()) == (names, write().digest())
    (tmp_path / "p/b.png").write_bytes(png(77))
    assert differences(before, write()) == ["the content is another"]


@pytest.mark.parametrize("name", ["digits", "digits:train", "photos"])
def test_sets_that_are_named(name: str) -> None:
    one = seen(name)
    assert one.digest() == seen(name).digest() != seen(name, limit=20).digest()
    assert differences(one, seen(name, limit=20)) == [f"{one.count:,} pictures became 20"]
    assert one.hashed().hashes is not None


def test_a_subset_is_what_it_was_cut_from(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path, CLASSES)))
    assert inventory(Subset(Subset(source, [3, 1, 2]), [0])).digest() == inventory(source).digest()


def test_masks(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 3).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "masks/classes.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))

    def look() -> tuple[Inventory, Inventory]:
        return of_masks(open_masks(str(tmp_path / "images"), str(tmp_path / "masks")))

    pictures, masks = look()
    whole = open_masks(str(tmp_path / "images"), str(tmp_path / "masks"))
    cut = of_masks(whole.subset([4, 0, 2, 5]), whole.subset([3, 1]))
    assert [one.digest() for one in cut] == [pictures.digest(), masks.digest()], "two parts are the source again"
    random = np.random.default_rng(0).integers(0, 3, (8, 8), dtype=np.uint8)
    Image.fromarray(random).save(tmp_path / "masks/2.png")
    Image.fromarray(random.T.copy()).save(tmp_path / "masks/4.png")
    assert differences(pictures, look()[0]) == []
    assert differences(masks, look()[1]) == ["2 sizes differ, first 2.png"]
    _, masks = look()
    (tmp_path / "masks/classes.json").write_text(json.dumps({"classes": ["a", "x", "c"]}))
    assert differences(masks, look()[1]) == ["class b is gone, class x is new"]
    (tmp_path / "masks/classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ignore_index": 2}))
    assert differences(masks, look()[1])[0] == "class c is gone"


def test_boxes(tmp_path: Path) -> None:
    folder(tmp_path, ["a.png", "b.png"])
    images = [{"id": i, "file_name": f"{name}.png", "height": 6, "width": 6} for i, name in enumerate("ab")]
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "owl"}]}
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content))
    before, text = of_boxes(open_coco(str(tmp_path), str(file))), of_file(str(file), hash_all=True)
    box["bbox"] = [1, 1, 4, 3]
    file.write_text(json.dumps(content))
    assert before.digest() == of_boxes(open_coco(str(tmp_path), str(file))).digest()
    assert differences(text, of_file(str(file), hash_all=True)) == ["the content is another"]
    (tmp_path / "b.png").write_bytes(png(200, 6) + b" ")  # as large a picture, in another file
    assert differences(before, of_boxes(open_coco(str(tmp_path), str(file)))) == ["1 size differs, first b.png"]


@pytest.mark.parametrize("size", [0, 1, 1000, BLOCK, BLOCK + 1, 16 * BLOCK, 40 * BLOCK + 17])
def test_weights_of_one_size_are_told_apart(tmp_path: Path, size: int) -> None:
    """First byte, last byte and another training: all of a file is different, its size is not."""
    data = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    path = tmp_path / "w.pth"
    path.write_bytes(data.tobytes())
    before = of_file(str(path))
    path.rename(tmp_path / "other.pth")
    assert of_file(str(tmp_path / "other.pth")).digest() == before.digest(), "a file may bear another name"
    for place in (0, -1) if size else ():
        other = data.copy()
        other[place] ^= 1
        path.write_bytes(other.tobytes())
        assert differences(before, of_file(str(path))) == ["the content is another"]
    path.write_bytes(data.tobytes() + b"more")
    assert differences(before, of_file(str(path))) == ["the content is another"]


def test_blocks_lie_all_over_a_file(tmp_path: Path) -> None:
    """Of a file of 40 blocks 16 are read; the hash of all of it sees the others too."""
    data = bytearray(40 * BLOCK)
    path = tmp_path / "w"
    path.write_bytes(data)
    plain, whole = sampled(str(path)), sampled(str(path), None)
    told = []
    for block in range(40):
        data[block * BLOCK + 5] = 1
        path.write_bytes(data)
        told.append(sampled(str(path)) != plain)
        assert sampled(str(path), None) != whole
        data[block * BLOCK + 5] = 0
    assert (sum(told), told[0], told[-1]) == (16, True, True)
    assert sampled(str(tmp_path / "none")) == ""


def test_a_folder_of_weights(tmp_path: Path) -> None:
    (tmp_path / "m/sub").mkdir(parents=True)
    for name in ("config.json", "sub/weights.bin"):
        (tmp_path / "m" / name).write_bytes(b"1234")
    before = of_file(str(tmp_path / "m"))
    (tmp_path / "m/sub/weights.bin").write_bytes(b"1235")
    assert differences(before, of_file(str(tmp_path / "m"))) == ["the content is another"]
    (tmp_path / "m/sub/weights.bin").write_bytes(b"12345")
    assert differences(before, of_file(str(tmp_path / "m"))) == ["1 size differs, first sub/weights.bin"]
