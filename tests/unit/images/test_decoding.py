"""decoding: every kind of picture in, uint8 [C, H, W] or one reason out."""

import io
import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from remask.images import decoding
from remask.images.decoding import BadImage

decode = partial(decoding.decode, levels=None)
"""Everything becomes 8 bits; test_images_deep.py has the pictures that keep their values."""

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
BROKEN = {
    "truncated_half.jpg", "truncated_no_eoi.jpg", "truncated_header.jpg", "zero_byte.jpg", "text.jpg", "html_404.jpg",
    "bomb_60000x60000.png", "bomb_real_14000x14000.png", "ztxt_bomb.png", "weird_names.tar",
}  # fmt: skip
OWN_SCALE = {"gray16.png", "float32.tiff"}
"""Pillow's convert clips these to white."""


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def hwc(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def nasty_names(shared: Path) -> list[str]:
    return [entry["file"] for entry in json.loads((shared / "data/nasty/index.json").read_text())]


def test_nasty_files_load_as_pillow_has_them_or_say_why_not(shared: Path) -> None:
    names = nasty_names(shared)
    assert len(names) > 40
    for name in names:
        data = (shared / "data/nasty" / name).read_bytes()
        if name in BROKEN:
            with pytest.raises(BadImage) as error:
                decode(data)
            assert str(error.value)
            assert "\n" not in str(error.value)
            continue
        image, gray = decode(data), decode(data, 1)
        assert image.dtype == gray.dtype == torch.uint8
        if name not in OWN_SCALE:
            right = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            assert np.array_equal(hwc(image), np.asarray(right)), name
            assert np.array_equal(gray[0].numpy(), np.asarray(right.convert("L"))), name


def test_no_warning_leaks(shared: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in sorted(set(nasty_names(shared)) - BROKEN):
            decode((shared / "data/nasty" / name).read_bytes())
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), kind, exif=exif)
    right = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(hwc(decode(data)), np.asarray(right))
    assert decode(data).shape == ((3, 20, 30) if orientation < 5 else (3, 30, 20))


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_cut_anywhere_is_refused_or_equals_pillow(progressive: bool) -> None:
    data = encoded(Image.fromarray(PIXELS), "JPEG", progressive=progressive)
    for length in range(0, len(data), 7):
        cut = data[:length]
        try:
            right = np.asarray(Image.open(io.BytesIO(cut)).convert("RGB"))
        except Exception:
            with pytest.raises(BadImage):
                decode(cut)
        else:
            assert np.array_equal(hwc(decode(cut)), right)


@pytest.mark.parametrize("simplejpeg", [True, False])
@pytest.mark.parametrize("by", [2, 4, 8])
def test_at_reduced_scale(by: int, simplejpeg: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's pixels with either library, near the mean of the pixels that each one stands for."""
    if not simplejpeg:
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    picture = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((250, 180))
    for mode, channels in (("RGB", 3), ("L", 3), ("RGB", 1)):
        data = encoded(picture.convert(mode), "JPEG", quality=95)
        right = Image.open(io.BytesIO(data))
        right.draft(None, (right.width // by, right.height // by))
        small = decode(data, channels, reduction=lambda rows, columns: by)
        assert small.shape == (channels, -(-180 // by), -(-250 // by))
        assert np.array_equal(hwc(small).squeeze(), np.asarray(right.convert("RGB" if channels == 3 else "L")))
        inside = decode(data, channels)[:, : 180 // by * by, : 250 // by * by].float()
        means = torch.nn.functional.avg_pool2d(inside, by)
        assert (small[:, : 180 // by, : 250 // by] - means).abs().mean() < 1


def test_reduced_scale_is_not_for_what_is_turned_or_broken() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)
    assert torch.equal(decode(data, reduction=lambda rows, columns: 2), decode(data))
    exif[0x0112] = 1
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)
    assert decode(data, reduction=lambda rows, columns: 2).shape == (3, 10, 15)
    with pytest.raises(BadImage):
        decode(data[:-200], reduction=lambda rows, columns: 2)


def test_sixteen_bits_are_shifted() -> None:
    deep = RNG.integers(0, 65536, (9, 7), dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(decode(encoded(Image.fromarray(deep), kind), 1)[0].numpy(), deep >> 8)
    wide = decode(encoded(Image.fromarray(deep), "PNG"))
    assert wide.shape == (3, 9, 7)
    assert np.array_equal(wide[2].numpy(), deep >> 8)
    big = b"P5 7 9 65535\n" + deep.astype(">u2").tobytes()  # Pillow opens it as 32-bit integers
    assert np.array_equal(decode(big, 1)[0].numpy(), deep >> 8)


def test_sixteen_bit_microscopy(shared: Path) -> None:
    for name in ("untangle_0_u16.png", "speckles_bigendian_u16.tif", "nuclei_img2d_u16.tif"):
        data = (shared / "data/science" / name).read_bytes()
        right = np.asarray(Image.open(io.BytesIO(data))).astype(np.uint16) >> 8
        assert np.array_equal(decode(data, 1)[0].numpy(), right), name


def test_floats_are_stretched_and_nan_is_black() -> None:
    values = np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 4)
    values[0, 1] = np.nan
    image = decode(encoded(Image.fromarray(values), "TIFF"), 1)[0].numpy()
    right = np.rint((np.nan_to_num(values, nan=-3) + 3) / 8 * 255)
    assert np.array_equal(image, right)
    assert not decode(encoded(Image.fromarray(np.full((3, 4), 7.5, np.float32)), "TIFF")).any()
    with pytest.raises(BadImage, match="finite"):
        decode(encoded(Image.fromarray(np.full((3, 4), np.nan, np.float32)), "TIFF"))


def test_arrays() -> None:
    assert np.array_equal(hwc(decode(PIXELS)), PIXELS)
    assert np.array_equal(hwc(decode(PIXELS[:, ::-1])), PIXELS[:, ::-1])
    assert np.array_equal(hwc(decode(PIXELS.astype(np.uint16) * 257)), PIXELS)
    assert np.array_equal(hwc(decode(PIXELS / 255)), PIXELS)
    assert decode(np.array([[True, False]]), 1).tolist() == [[[255, 0]]]
    assert decode(PIXELS[..., 0]).shape == (3, 20, 30)
    assert decode(np.zeros((4, 5, 6), np.uint8), 6).shape == (6, 4, 5)
    luma = np.asarray(Image.fromarray(PIXELS).convert("L"))
    assert np.array_equal(decode(PIXELS, 1)[0].numpy(), luma)


@pytest.mark.parametrize(
    ("data", "channels", "reason"),
    [
        (PIXELS, 6, "3 channels where 6 are wanted"),
        (np.zeros((4, 5, 6), np.uint8), 3, "6 channels where 3 are wanted"),
        (np.zeros((4,), np.uint8), 3, "not HW or HWC"),
        (np.zeros((0, 5), np.uint8), 3, "not HW or HWC"),
        (np.full((4, 5), 9.0), 3, "not in 0..1"),
        (np.zeros((4, 5), np.int64), 3, "int64"),
        (b"x", 6, "not a picture in a known format"),
        (b"", 3, "empty"),
    ],
)
def test_reasons(data: bytes | np.ndarray, channels: int, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(data, channels)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
def test_whatever_is_broken_raises_bad_image_alone(kind: str, data: st.DataObject) -> None:
    broken = bytearray(encoded(Image.fromarray(PIXELS), kind))
    for at in data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=8)):
        broken[at] = data.draw(st.integers(0, 255))
    try:
        image = decode(bytes(broken), max_pixels=1_000_000)
    except BadImage as error:
        assert "\n" not in str(error)  # noqa: PT017  (either outcome is right)
    else:
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


def test_the_size_is_refused_before_a_pixel_is_decoded(shared: Path) -> None:
    huge_jpeg = bytearray(encoded(Image.fromarray(PIXELS), "JPEG"))
    at = huge_jpeg.index(b"\xff\xc0") + 5
    huge_jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(BadImage, match="65535x65535 is more than"):
        decode(bytes(huge_jpeg))
    with pytest.raises(BadImage, match="30x20 is more than 599 pixels"):
        decode(encoded(Image.fromarray(PIXELS), "PNG"), max_pixels=599)
    assert decode(encoded(Image.fromarray(PIXELS), "PNG"), max_pixels=600).shape == (3, 20, 30)


MEASURE = """
import sys
from remask.images.decoding import BadImage, decode
def peak(): return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
decode(open(sys.argv[1], "rb").read())
for path in sys.argv[2:]:
    data = open(path, "rb").read()
    before = peak()
    try: decode(data)
    except BadImage: pass
    print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_of_bombs_and_of_large_pictures(shared: Path, tmp_path: Path) -> None:
    nasty, large = shared / "data/nasty", tmp_path / "large.png"
    Image.new("RGBA", (4000, 4000)).save(large, compress_level=1)
    files = [nasty / "bomb_60000x60000.png", nasty / "bomb_real_14000x14000.png", nasty / "ztxt_bomb.png", large]
    command = [sys.executable, "-c", MEASURE, str(nasty / "rgba.png"), *map(str, files)]
    *bombs, picture = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert max(bombs) < 20 << 20
    assert 16_000_000 * 3 < picture < 16_000_000 * 20, "more than the docstring states"
