"""What the numbers of a TIFF stand for: gray from white to black, palettes, inks; what is not converted is refused."""

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask.downstream.segment.label_map import read_ids
from remask.images.decoding import BadImage, decode
from remask.images.levels import FULL, Levels
from remask.images.sources.stored import stored

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
SEED = np.random.default_rng(0)
RULES = pytest.mark.parametrize("levels", [FULL, None], ids=["full", "byte"])


def noise(*shape: int, bits: int = 16) -> np.ndarray:
    return SEED.integers(0, 1 << bits, shape).astype(np.uint8 if bits == 8 else np.uint16)


def tiff(array: np.ndarray, photometric: str, **keys: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric=photometric, **keys)
    return stream.getvalue()


def seen(data: bytes, channels: int, levels: Levels | None = FULL) -> np.ndarray:
    """Pixels HWC."""
    return decode(data, channels, levels=levels).permute(1, 2, 0).numpy()


def as_bytes(values: np.ndarray, levels: Levels | None) -> np.ndarray:
    """What rule "byte" makes of 16 bits."""
    return values if levels is not None or values.dtype == np.uint8 else (values >> 8).astype(np.uint8)


@RULES
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_gray_whose_lowest_value_is_white_is_turned_round(bits: int, channels: int, levels: Levels | None) -> None:
    gray = noise(9, 7, bits=bits)
    expected = as_bytes((1 << bits) - 1 - gray, levels)
    assert (seen(tiff(gray, "miniswhite"), channels, levels) == expected[:, :, None]).all()
    assert (seen(tiff(gray, "minisblack"), channels, levels) == as_bytes(gray, levels)[:, :, None]).all()


def test_12_bits_are_turned_round_within_12_bits() -> None:
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    gray = noise(8, 8, bits=12)
    assert (seen(tiff(gray, "miniswhite", bitspersample=12), 1) == (4095 - gray)[:, :, None]).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_and_pages_beside_such_gray(bits: int) -> None:
    gray, alpha = noise(9, 7, bits=bits), noise(9, 7, bits=bits)
    turned = (1 << bits) - 1 - gray
    data = tiff(np.dstack([gray, alpha]), "miniswhite", planarconfig="contig", extrasamples=["unassalpha"])
    assert (seen(data, 1)[:, :, 0] == turned).all()
    assert (seen(data, 2) == np.dstack([turned, alpha])).all()
    pages = tiff(np.stack([gray, alpha]), "miniswhite")
    assert (seen(pages, 2) == (1 << bits) - 1 - np.dstack([gray, alpha])).all()


def test_without_tifffile_pillow_turns_it_round(monkeypatch: pytest.MonkeyPatch) -> None:
    gray = noise(9, 7)
    data, planes = tiff(gray, "miniswhite"), tiff(noise(3, 9, 7), "rgb", planarconfig="separate")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert (seen(data, 1)[:, :, 0] == 65535 - gray).all()
    for levels in (FULL, None):
        with pytest.raises(BadImage, match="are read by tifffile"):
            decode(planes, 3, levels=levels)


@RULES
def test_palettes_of_16_bits_are_looked_up(levels: Levels | None) -> None:
    numbers, table = noise(6, 5), noise(3, 1 << 16)
    data = tiff(numbers, "palette", colormap=table)
    colours = table[:, numbers].transpose(1, 2, 0)
    assert (seen(data, 3, levels) == as_bytes(colours, levels)).all()
    assert stored(data).kind == "TIFF palette, 16 bits"


@RULES
@pytest.mark.parametrize("form", ["contig", "separate"])
def test_inks_of_16_bits_become_rgb_as_those_of_8_do(form: str, levels: Levels | None) -> None:
    inks = noise(9, 7, 4)
    data = tiff(inks if form == "contig" else inks.transpose(2, 0, 1).copy(), "separated", planarconfig=form)
    share = inks / 65535
    expected = 65535 * (1 - share[:, :, :3]) * (1 - share[:, :, 3:])
    scale = 1 if levels else 257
    assert abs(seen(data, 3, levels).astype(float) * scale - expected).max() <= 1.5 * scale
    assert (seen(data, 4, levels).astype(int) == as_bytes(inks, levels)).all() or levels is None
    eight = np.asarray(Image.fromarray((inks >> 8).astype(np.uint8), "CMYK").convert("RGB")).astype(int)
    assert abs((seen(data, 3, None).astype(int)) - eight).max() <= 2


@RULES
@pytest.mark.parametrize("bits", [8, 16])
def test_planes_of_colours_are_read_as_pixels_of_them(bits: int, levels: Levels | None) -> None:
    """Pillow makes noise of planes of 16 bits, and cannot read a fourth one."""
    array = noise(9, 7, 4, bits=bits)
    for bands, keys in ((3, {}), (4, {"extrasamples": ["unspecified"]})):
        planes = array[:, :, :bands].transpose(2, 0, 1).copy()
        data = tiff(planes, "rgb", planarconfig="separate", **keys)
        assert (seen(data, 3, levels) == as_bytes(array[:, :, :3], levels)).all()


LINEAR = "linear raw data of a camera"


@RULES
@pytest.mark.parametrize(
    ("data", "channels", "why"),
    [
        (tiff(noise(8, 8, 3), "cielab"), 3, "16-bit CIELAB"),
        (tiff(noise(3, 8, 8, bits=8), "cielab", planarconfig="separate"), 3, "8-bit planar CIELAB"),
        (tiff(noise(8, 8, 3, bits=8), "icclab"), 3, "8-bit ICC LAB"),
        (tiff(noise(8, 8, 3), "ycbcr"), 3, "16-bit YCbCr"),
        (tiff(noise(8, 8, 3), "logluv"), 3, "16-bit LogLuv"),
        (tiff(noise(8, 8, 3), "linear_raw"), 3, f"16-bit {LINEAR}"),
        (tiff(noise(8, 8), "cfa"), 1, "16-bit camera mosaic"),
        (tiff(noise(8, 8), "mask"), 1, "16-bit transparency mask"),
        (tiff(noise(8, 8, 6), "miniswhite", planarconfig="contig"), 6, "6 bands whose lowest value is white"),
        (tiff(SEED.random((8, 8)).astype(np.float32), "miniswhite"), 1, "whose lowest value is white"),
        (tiff(noise(8, 8).astype(np.int16), "miniswhite"), 1, "whose lowest value is white"),
    ],
)
def test_what_is_not_converted_is_refused_by_its_name(
    data: bytes, channels: int, why: str, levels: Levels | None
) -> None:
    with pytest.raises(BadImage, match=why) as caught:
        decode(data, channels, levels=levels)
    assert "save it" in str(caught.value)


def test_inks_of_another_set_are_refused() -> None:
    with pytest.raises(BadImage, match="4 inks of type uint16, and no CMYK"):
        decode(tiff(noise(8, 8, 4), "separated", extratags=[(332, "H", 1, 2, True)]), 3, levels=FULL)


def test_colours_of_8_bits_are_still_those_of_pillow() -> None:
    for kind in ("cielab", "ycbcr"):
        data = tiff(noise(8, 8, 3, bits=8), kind)
        with Image.open(io.BytesIO(data)) as image:
            assert (seen(data, 3) == np.asarray(image.convert("RGB"))).all()


def test_gray_that_does_not_say_which_end_is_white_is_refused() -> None:
    data = bytearray(tiff(noise(8, 8), "minisblack", metadata=None))
    at = data.find((262).to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00")
    data[at : at + 2] = (65000).to_bytes(2, "little")
    with pytest.raises(BadImage, match="does not say whether its lowest value is black or white"):
        decode(bytes(data), 1, levels=FULL)


@RULES
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("space", [1, 14, 19])
def test_jpeg_2000_in_colours_that_are_taken_for_rgb_is_refused(bits: int, space: int, levels: Levels | None) -> None:
    codecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    array = noise(9, 7, 3, bits=bits)
    data = bytearray(codecs.jpeg2k_encode(array, codecformat="jp2", level=0))
    at = data.find(b"colr") + 7
    assert int.from_bytes(data[at : at + 4]) == 16
    if bits == 8 or levels is not None:
        assert (seen(bytes(data), 3, levels) == array).all()
    data[at : at + 4] = space.to_bytes(4)
    with pytest.raises(BadImage, match=f"a JPEG 2000 of colour space {space}, which is not converted here"):
        decode(bytes(data), 3, levels=levels)


@pytest.mark.parametrize("bits", [8, 16])
def test_masks_whose_ids_would_be_turned_round_are_refused(bits: int) -> None:
    ids = np.arange(16).reshape(4, 4).astype(np.uint8 if bits == 8 else np.uint16)
    assert (read_ids(tiff(ids, "minisblack")) == ids).all()
    with pytest.raises(BadImage, match="which turns ids round: save it as PNG"):
        read_ids(tiff(ids, "miniswhite"))
