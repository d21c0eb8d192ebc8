"""textfiles: text, JSON and TOML in every encoding that states itself, with any line ends."""

import codecs
import json
from pathlib import Path

import pytest

from remask.downstream.detect.coco import open_coco
from remask.downstream.segment.label_map import declared
from remask.downstream.segment.mask_source import open_masks
from remask.errors import UserError
from remask.files.text import decoded, read_json, read_text, read_toml
from remask.recipe import load_recipe

ENCODINGS = {
    "utf-8": b"", "utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE,
}  # fmt: skip


def written(path: Path, text: str, encoding: str) -> Path:
    path.write_bytes(ENCODINGS[encoding] + text.encode(encoding))
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text(tmp_path: Path, encoding: str, end: str) -> None:
    text = end.join(["häuser", "", "猫 🐈", "\x0b\u2028 stay"])
    assert read_text(written(tmp_path / "a.txt", text, encoding)) == "häuser\n\n猫 🐈\n\x0b\u2028 stay"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_and_toml(tmp_path: Path, encoding: str) -> None:
    assert read_json(written(tmp_path / "a.json", '{"größe": [1]}\r\n', encoding)) == {"größe": [1]}
    assert read_toml(written(tmp_path / "a.toml", '[a]\r\nb = "ä"\r\n', encoding)) == {"a": {"b": "ä"}}


def test_what_is_no_text_is_named_with_its_line() -> None:
    with pytest.raises(UserError, match=r"^x\.txt: line 3 holds a NUL byte"):
        decoded(b"a\r\nb\rc\0d\n", "x.txt")
    with pytest.raises(UserError, match=r"^x\.txt: line 2 is not UTF-8 text$"):
        decoded("a\nM\u00fcll".encode("latin-1"), "x.txt")
    with pytest.raises(UserError, match=r"^x\.txt: line 1 is not UTF-16 text$"):
        decoded(codecs.BOM_UTF16_LE + b"a", "x.txt")
    assert decoded(b"caf\xe9.jpg", "x.txt", names=True) == "caf\udce9.jpg"


def test_json_that_is_nested_too_deeply_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_readers_of_recipes_and_classes(tmp_path: Path, encoding: str) -> None:
    recipe = 'extends = "demo"\r\n[optim]\r\nepochs = 3\r\n'
    assert load_recipe(written(tmp_path / "mine.toml", recipe, encoding), environment={}).optim.epochs == 3
    written(tmp_path / "classes.json", json.dumps(["Wald", "Straße"], ensure_ascii=False), encoding)
    assert declared(str(tmp_path), None, None).names == ["Wald", "Straße"]
    (tmp_path / "classes.json").unlink()
    table = "Idx\tRatio\tName\r\n1\t.5\twall, side\r\n2\t.5\tbüro\r\n\r\n"
    written(tmp_path / "objectInfo150.txt", table, encoding)
    assert declared(str(tmp_path), None, None).names == ["wall", "büro"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_readers_of_annotations(tmp_path: Path, encoding: str) -> None:
    from PIL import Image

    for folder in ("images", "panoptic"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), (5, 0, 0)).save(tmp_path / folder / "ä.png")
    categories = [{"id": 1, "name": "Häuser"}, {"id": 2, "name": "b"}]
    images = [{"id": 1, "file_name": "ä.png", "height": 8, "width": 8}]
    segments = [{"image_id": 1, "file_name": "ä.png", "segments_info": [{"id": 5, "category_id": 1}]}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}]
    for name, annotations in (("panoptic.json", segments), ("boxes.json", boxes)):
        content = {"categories": categories, "images": images, "annotations": annotations}
        written(tmp_path / name, json.dumps(content, ensure_ascii=False), encoding)
    found = open_masks(str(tmp_path / "images"), str(tmp_path / "panoptic.json"))
    assert (found.classes, len(found)) == (["Häuser", "b"], 1)
    source = open_coco(str(tmp_path / "images"), str(tmp_path / "boxes.json"))
    assert (source.classes, len(source.instances(0))) == (["Häuser", "b"], 1)
