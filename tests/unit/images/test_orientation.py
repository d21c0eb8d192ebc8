"""images/orientation.py: what EXIF says is what decoding does, and what was drawn on stored pixels goes with them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.downstream.detect.boxes import BoxLoader, Letterbox
from remask.downstream.detect.coco import decode_mask, encode_mask, open_coco
from remask.downstream.segment.mask_source import open_masks
from remask.downstream.segment.pairs import full_pairs
from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from remask.images.orientation import INVERSE, header_of, turned_box, turned_mask, turned_points, turned_size

TURNS = range(1, 9)
KINDS = ("JPEG", "PNG", "TIFF", "WEBP")


def encoded(pixels: np.ndarray, orientation: int, kind: str = "PNG") -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(stream, kind, exif=exif.tobytes(), quality=95)
    return stream.getvalue()


def scene(height: int, width: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Red on gray off the middle, its box x, y, w, h and its mask."""
    pixels, mask = np.full((height, width, 3), 40, np.uint8), np.zeros((height, width), np.uint8)
    pixels[4:20, 6:34], mask[4:20, 6:34] = (220, 30, 30), 1
    return pixels, [6, 4, 28, 16], mask


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_header_says_what_decoding_does(kind: str, orientation: int) -> None:
    pixels = scene(48, 64)[0]
    header = header_of(encoded(pixels, orientation, kind))
    assert header is not None
    assert (header.stored, header.orientation) == ((48, 64), orientation)
    seen = decode(encoded(pixels, orientation, kind))
    assert header.upright == tuple(seen.shape[1:])
    expected = torch.from_numpy(turned_mask(pixels[..., 0], orientation)).int()
    assert (seen[0].int() - expected).abs().float().mean() < 4


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n", b"<html>", b"GIF89a"])
def test_no_header(data: bytes) -> None:
    assert header_of(data) is None


def test_an_exif_block_before_the_size_of_a_jpeg_is_passed_over() -> None:
    """Previews make it tens of kilobytes long, and an orientation that is none is no orientation."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x010E] = 6, "x" * 60_000
    Image.new("RGB", (30, 20)).save(stream, "JPEG", exif=exif.tobytes())
    header = header_of(stream.getvalue())
    assert header is not None
    assert (header.stored, header.orientation, header.upright) == ((20, 30), 6, (30, 20))
    odd = header_of(encoded(scene(48, 64)[0], 9, "JPEG"))
    assert odd is not None
    assert odd.orientation == 1


@pytest.mark.parametrize("orientation", TURNS)
def test_boxes_points_and_masks_turn_alike_and_back(orientation: int) -> None:
    _, box, mask = scene(48, 64)
    turned = turned_mask(mask, orientation)
    x, y, w, h = turned_box([float(v) for v in box], (48, 64), orientation)
    rows, columns = np.nonzero(turned)
    assert [x, y, x + w, y + h] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    points = turned_points([6, 4, 34, 20], (48, 64), orientation)
    assert sorted(points[0::2]) == [x, x + w]
    assert sorted(points[1::2]) == [y, y + h]
    size, back = turned_size((48, 64), orientation), INVERSE[orientation]
    assert size == turned.shape
    assert (turned_mask(turned, back) == mask).all()
    assert turned_box([x, y, w, h], size, back) == box
    assert turned_points(points, size, back) == [6, 4, 34, 20]


def coco(path: Path, orientation: int, size: tuple[int, int], said: tuple[int, int], runs: bool = False) -> Any:
    """A picture with one box and mask of its stored pixels, and an annotation file that says `said`."""
    pixels, (x, y, w, h), mask = scene(*size)
    (path / "images").mkdir(exist_ok=True)
    (path / "images" / "a.jpg").write_bytes(encoded(pixels, orientation, "JPEG"))
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    shape = encode_mask(torch.from_numpy(mask)) if runs else polygon
    if runs and said != size:
        shape["size"] = [*said]
    found = [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [x, y, w, h], "segmentation": shape}]
    data = {"images": [{"id": 5, "file_name": "a.jpg", "height": said[0], "width": said[1]}], "annotations": found}
    (path / "a.json").write_text(json.dumps({**data, "categories": [{"id": 1, "name": "red"}]}))
    return str(path / "images"), str(path / "a.json")


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (64, 48), (64, 64)])
def test_boxes_and_masks_lie_on_the_turned_picture(
    tmp_path: Path, orientation: int, runs: bool, size: tuple[int, int]
) -> None:
    """Annotated on stored pixels: the sizes say so, or else the user."""
    source = open_coco(*coco(tmp_path, orientation, size, size, runs), exif="stored")
    batch = next(BoxLoader(source, Letterbox((64, 64)), 1, shuffle=False).epoch(0))
    (box,), (mask,) = batch.labels[0]["boxes"].round().int().tolist(), batch.labels[0]["masks"]
    x0, y0, x1, y1 = box
    inside = batch.images[0, :, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].float().mean((1, 2))
    assert inside.tolist() == pytest.approx([220, 30, 30], abs=6)
    red = (batch.images[0, 0] > 130).int()
    assert (red - mask.int()).abs().sum() <= 2 * (x1 - x0 + y1 - y0)
    assert int(mask.sum()) == pytest.approx(28 * 16, abs=2)
    results = [{"image_id": 5, "bbox": [float(v) for v in source.annotations[0][0]["bbox"]], "category_id": 1,
                "score": 1.0, "segmentation": encode_mask(source.target(0)["masks"][0])}]  # fmt: skip
    (back,) = source.as_annotated(results)
    assert back["bbox"] == [6, 4, 28, 16]
    assert (decode_mask(back["segmentation"], size).numpy() == scene(*size)[2]).all()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_sizes_tell_whether_annotations_are_those_of_the_turned_picture(tmp_path: Path, orientation: int) -> None:
    stored = open_coco(*coco(tmp_path, orientation, (48, 64), (48, 64)))
    assert (stored.size(0), stored.images[0]["turned"]) == ((64, 48), orientation)
    assert stored.notes() == [f"EXIF turns 1 pictures of {tmp_path / 'images'}, and their annotations with them"]
    upright = open_coco(*coco(tmp_path, orientation, (48, 64), (64, 48)))
    assert upright.target(0)["boxes"].tolist() == [[6, 4, 34, 20]]
    assert upright.notes() == []


@pytest.mark.parametrize(("orientation", "size"), [(2, (48, 64)), (3, (48, 64)), (4, (64, 48)), (6, (64, 64))])
def test_what_sizes_do_not_tell_the_user_has_to(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    where = coco(tmp_path, orientation, size, size)
    with pytest.raises(UserError, match=rf"1 of 1 pictures .*a\.jpg: EXIF .*\(orientation {orientation}\).*exif"):
        open_coco(*where)
    assert open_coco(*where, exif="upright").target(0)["boxes"].tolist() == [[6, 4, 34, 20]]
    assert "turned" in open_coco(*where, exif="stored").images[0]
    with pytest.raises(UserError, match="none of the 1 pictures"):
        open_coco(*where, skip_bad=True)


def test_a_picture_of_another_size_is_named_before_it_is_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.jpg: 64x48 pixels, where the annotations say 64x50"):
        open_coco(*coco(tmp_path, 1, (48, 64), (50, 64)))


def pairs(path: Path, orientation: int, size: tuple[int, int], mask: np.ndarray) -> str:
    for name, data in {"images/a.jpg": encoded(scene(*size)[0], orientation, "JPEG"),
                       "masks/a.png": encoded(mask, 1)}.items():  # fmt: skip
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(data)
    return str(path / "images")


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("size", [(48, 64), (64, 64)])
@pytest.mark.parametrize("drawn", ["stored", "upright"])
def test_masks_lie_on_the_turned_picture(tmp_path: Path, orientation: int, size: tuple[int, int], drawn: Any) -> None:
    mask = scene(*size)[2]
    folder = pairs(tmp_path, orientation, size, mask if drawn == "stored" else turned_mask(mask, orientation))
    (batch,) = full_pairs(open_masks(folder, classes=2, exif=drawn))
    assert ((batch.images[0, 0] > 130).int() - batch.labels[0].int()).abs().sum() <= 60
    told = turned_size(size, orientation) != size or orientation == 1
    if told:
        assert torch.equal(next(iter(full_pairs(open_masks(folder, classes=2)))).labels, batch.labels)
    else:
        with pytest.raises(UserError, match=rf"1 of 1 masks may lie .*orientation {orientation}.*data\.exif=stored"):
            open_masks(folder, classes=2)


def test_a_mask_of_another_size_is_still_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 1 masks are of another size .*a\.jpg is 48x64, its mask 60x48"):
        open_masks(pairs(tmp_path, 6, (48, 64), np.zeros((48, 60), np.uint8)), classes=2)


def test_a_pair_beyond_those_looked_at_is_unusable_where_nothing_tells(tmp_path: Path) -> None:
    source = open_masks(pairs(tmp_path, 1, (48, 64), scene(48, 64)[2]), classes=2)
    pairs(tmp_path, 3, (48, 64), scene(48, 64)[2])
    with pytest.raises(BadImage, match=r"orientation 3.*data\.exif"):
        source.read(0)
