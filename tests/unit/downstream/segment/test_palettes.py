"""Masks with palettes and colours: which class a pixel is, in whatever order its file numbers the colours."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask.downstream.segment.mask_source import MaskFiles, open_masks
from remask.errors import UserError
from remask.images.decoding import BadImage

GROUND, RED, GREEN = (0, 0, 0), (128, 0, 0), (0, 128, 0)
PALETTE = [GROUND, RED, GREEN]
NAMES = ["ground", "red", "green"]


def png(image: Image.Image, **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **more)
    return stream.getvalue()


def indexed(numbers: list[int], palette: list[tuple[int, int, int]], **more: Any) -> bytes:
    """A row of entries of a palette."""
    image = Image.fromarray(np.array([numbers], np.uint8)).convert("P")
    image.putpalette([part for colour in palette for part in colour])
    return png(image, **more)


def painted(*colours: tuple[int, ...]) -> bytes:
    """A row of colours."""
    return png(Image.fromarray(np.array([colours], np.uint8)))


def gray(*levels: int) -> bytes:
    return png(Image.fromarray(np.array([levels], np.uint8)))


def opened(root: Path, masks: list[bytes], said: Any = None, **more: Any) -> MaskFiles:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i, data in enumerate(masks):
        size = Image.open(io.BytesIO(data)).size
        (root / "masks" / f"{i}.png").write_bytes(data)
        Image.new("RGB", size).save(root / "images" / f"{i}.png")
    if said is not None:
        (root / "masks" / "classes.json").write_text(json.dumps(said))
    return open_masks(str(root / "images"), str(root / "masks"), **more)


def read(source: MaskFiles) -> list[list[int]]:
    return [source.read(i)[1][0].tolist() for i in range(len(source))]


SAID = {"classes": NAMES, "palette": PALETTE}


def test_colour_decides_where_a_palette_is_declared(tmp_path: Path) -> None:
    masks = [
        indexed([0, 1, 2], [GROUND, RED, GREEN]),
        indexed([1, 2, 0], [GREEN, GROUND, RED]),
        indexed([9, 0, 4], [RED, *[(7, 7, 7)] * 3, GREEN, *[(7, 7, 7)] * 4, GROUND]),
        painted(GROUND, RED, GREEN),
        painted((*GROUND, 255), (*RED, 0), (*GREEN, 128)),
        indexed([1, 2, 0], [GREEN, GROUND, RED], transparency=bytes([0, 255, 9])),
    ]
    assert read(opened(tmp_path, masks, SAID)) == [[0, 1, 2]] * 6


def test_one_colour_alone_is_read_as_the_others_are(tmp_path: Path) -> None:
    """All black may look gray, and is the ground all the same, whatever its number in its own file."""
    masks = [indexed([2, 2], [RED, GREEN, GROUND]), painted(GROUND, GROUND), indexed([0, 0], [GREEN])]
    assert read(opened(tmp_path, masks, SAID)) == [[0, 0], [0, 0], [2, 2]]


def test_black_and_white_are_colours_where_they_are_declared(tmp_path: Path) -> None:
    said = {"classes": ["paper", "ink"], "palette": [[255, 255, 255], [0, 0, 0]]}
    masks = [gray(0, 255), painted((0, 0, 0), (255, 255, 255)), indexed([0, 1], [(0, 0, 0), (255, 255, 255)])]
    for number, mask in enumerate(masks):
        assert read(opened(tmp_path / str(number), [mask], said)) == [[1, 0]]


def test_numbers_stay_numbers_beside_a_palette_that_is_for_show(tmp_path: Path) -> None:
    ramp = [(level, level, level) for level in range(256)]
    masks = [gray(0, 1, 2), indexed([0, 1, 2], ramp), painted((0, 0, 0), (1, 1, 1), (2, 2, 2)), gray(0, 2, 255)]
    assert read(opened(tmp_path, masks, SAID)) == [[0, 1, 2]] * 3 + [[0, 2, 255]]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (indexed([0, 1], [GROUND, (1, 2, 3)]), r"0\.png has \(1, 2, 3\); declare the classes"),
        (painted(GROUND, (128, 0, 1)), r"0\.png has \(128, 0, 1\); declare the classes"),
        (indexed([0, 1], [GROUND, (255, 255, 255)]), r"0\.png has \(255, 255, 255\)"),
    ],
)
def test_a_colour_that_is_not_declared_is_named(tmp_path: Path, mask: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        opened(tmp_path, [mask, indexed([0, 1], [RED, GREEN])], SAID)
    assert "\n" not in str(caught.value)


def test_colours_beyond_the_scan_are_found_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remask.downstream.segment.mask_checks.SCANNED", 2)
    masks = [indexed([0, 1], [RED, GREEN])] * 3 + [indexed([0, 1], [RED, (5, 5, 0)])]
    source = opened(tmp_path, [masks[0], masks[3], masks[1], masks[2]], SAID)
    with pytest.raises(BadImage, match=r"holds \(5, 5, 0\), which is no declared class"):
        source.read(1)
    assert source.read(0)[1].tolist() == [[1, 2]]
    short = indexed([0, 1], [RED, GREEN])
    numbers = opened(tmp_path / "n", [short, indexed([0, 1], [GREEN, RED]), short, short], {"classes": NAMES})
    with pytest.raises(BadImage, match="another palette"):
        numbers.read(1)


def test_an_ignored_class_and_colours_behind_the_classes_are_none(tmp_path: Path) -> None:
    said = {"classes": [*NAMES, "none"], "palette": [*PALETTE, [9, 9, 9], [224, 224, 192]], "ignore_index": 3}
    masks = [indexed([0, 1, 2, 3, 4], [(224, 224, 192), (9, 9, 9), GREEN, RED, GROUND])]
    assert read(opened(tmp_path, masks, said)) == [[255, 255, 2, 1, 0]]


def test_palettes_that_differ_are_noticed(tmp_path: Path) -> None:
    masks = [indexed([0, 1, 2], PALETTE), indexed([1, 2, 0], [GREEN, GROUND, RED])]
    for number, said in enumerate((None, {"classes": NAMES})):
        with pytest.raises(UserError) as caught:
            opened(tmp_path / str(number), masks, said)
        line = str(caught.value)
        assert "different palettes: 0 is (0, 0, 0) in" in line
        assert "1.png" in line
        assert '"palette": null' in line
        assert "\n" not in line
    numbers = opened(tmp_path / "numbers", masks, {"classes": NAMES, "palette": None})
    assert read(numbers) == [[0, 1, 2], [1, 2, 0]]
    older = opened(tmp_path / "older", masks, SAID, numbers=True)
    assert read(older) == [[0, 1, 2], [1, 2, 0]]
    assert older.palette == PALETTE


def test_palettes_that_differ_where_nothing_is_drawn_are_alike(tmp_path: Path) -> None:
    """Optimisers cut off entries that no pixel has, and editors fill them up."""
    masks = [
        indexed([0, 1], [GROUND, RED]),
        indexed([0, 2], [*PALETTE, (1, 1, 1)]),
        indexed([1, 2], [(9, 9, 9), RED, GREEN]),
    ]
    assert read(opened(tmp_path, masks)) == [[0, 1], [0, 2], [1, 2]]


@pytest.mark.parametrize(
    ("palette", "words"),
    [
        (PALETTE[:2], "2 colours for 3 classes: give 'green' one too"),
        ([GROUND, RED, RED], r"gives \(128, 0, 0\) to two classes"),
        ([GROUND, RED, (0, 300, 0)], "no colour of three numbers"),
        ([GROUND, RED, (0.0, 0.5, 0.0)], "no colour of three numbers"),
        ([GROUND, RED, (0, 128)], "no colour of three numbers"),
    ],
)
def test_a_palette_that_cannot_be_obeyed(tmp_path: Path, palette: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        opened(tmp_path, [painted(GROUND, RED, RED)], {"classes": NAMES, "palette": palette})
    assert "\n" not in str(caught.value)


def test_a_palette_with_alpha_and_one_that_is_short_for_numbers(tmp_path: Path) -> None:
    alpha = {"classes": NAMES, "palette": [[*colour, 255] for colour in PALETTE]}
    assert read(opened(tmp_path / "a", [indexed([2, 0], [RED, GREEN, GROUND])], alpha)) == [[0, 1]]
    short = opened(tmp_path / "b", [gray(0, 1, 2)], {"classes": NAMES, "palette": PALETTE[:2]})
    assert read(short) == [[0, 1, 2]]
    assert short.palette[:2] == PALETTE[:2]
    assert len(set(short.palette)) == 3


def test_an_entry_that_the_palette_lacks(tmp_path: Path) -> None:
    """Such a file is against the PNG specification, and programs show it in different colours."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes([*GROUND, *RED])),
        (b"IDAT", zlib.compress(bytes([0, 0, 7]))),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    source = opened(tmp_path, [indexed([0, 1], [RED, GREEN]), data], SAID)
    with pytest.raises(BadImage, match="entry 7 of a palette of 2 colours"):
        source.read(1)


def test_classes_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names two classes 'red'"):
        opened(tmp_path, [gray(0, 1)], {"classes": ["red", "red"]})
