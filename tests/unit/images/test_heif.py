"""heif: phones' pictures are read where pillow-heif is installed, and else counted and named."""

import contextlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask.errors import UserError
from remask.images import heif
from remask.images.decoding import BadImage, decode
from remask.images.sources.opening import open_source

FAKE = b"\0\0\0\x18ftypheic" + bytes(200)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "can_read", lambda: False)


def folder(root: Path, pictures: int = 4) -> Path:
    for k in range(pictures):
        Image.new("RGB", (16, 16), (k, 0, 0)).save(root / f"IMG_000{k}.png")
    for k, end in enumerate((".HEIC", ".heif", ".hif", ".HeIc")):
        (root / f"IMG_001{k}{end}").write_bytes(FAKE)
    return root


def test_counted_and_named_where_nothing_reads_them(tmp_path: Path, without: None) -> None:
    source = open_source(str(folder(tmp_path)))
    assert len(source) == 4
    assert source.left_out == {"HEIC pictures, which need pip install 'remask[heic]'": 4}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in sorted(tmp_path.glob("IMG*")):
            tar.add(path, path.name)
    source = open_source(str(tmp_path / "x.tar"))
    assert (len(source), list(source.left_out.values())) == (4, [4])


def test_alone_they_are_an_error_with_its_cure(tmp_path: Path, without: None) -> None:
    cure = r"pip install 'remask\[heic\]'"
    with pytest.raises(UserError, match=rf"holds 4 HEIC pictures, which need {cure}"):
        open_source(str(folder(tmp_path, 0)))
    with pytest.raises(UserError, match=rf"IMG_0010\.HEIC is a HEIC picture, which needs {cure}"):
        open_source(str(tmp_path / "IMG_0010.HEIC"))
    with pytest.raises(BadImage, match=cure):
        decode(FAKE)


def encoded(pixels: np.ndarray, orientation: int = 1) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    pillow_heif.register_heif_opener()
    image, out = Image.fromarray(pixels), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(out, "HEIF", quality=-1, chroma=444, matrix_coefficients=0, exif=exif.tobytes())
    return out.getvalue()


def test_a_picture_is_read(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[24:, 32:] = (250, 10, 10), (10, 250, 10)
    (tmp_path / "a.HEIC").write_bytes(encoded(pixels))
    source = open_source(str(tmp_path))
    image = decode(source.read(0)).permute(1, 2, 0).numpy()
    assert image.shape == pixels.shape
    assert np.abs(image.astype(int) - pixels).max() <= 4
    assert decode(source.read(0), 1).shape == (1, 48, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_is_turned_once(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    jpeg, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(jpeg, "PNG", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(jpeg)).convert("RGB")).astype(int)
    image = decode(encoded(pixels, orientation)).permute(1, 2, 0).numpy()
    assert image.shape == upright.shape
    assert np.abs(image - upright).mean() < 6


def test_a_damaged_one_is_a_bad_picture() -> None:
    data = encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for length in range(12, len(data) - 1, max(1, len(data) // 60)):
        with contextlib.suppress(BadImage):  # and nothing else
            decode(data[:length])
    with pytest.raises(BadImage, match="damaged HEIC"):
        decode(FAKE)


def test_an_avif_is_none(shared: Path) -> None:
    data = (shared / "data/nasty/rgb.avif").read_bytes()
    assert not heif.holds_heif(data)
    assert not heif.holds_heif(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif" + bytes(50))
    assert heif.holds_heif(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(50))


def test_an_export_reads_them_alike(tmp_path: Path) -> None:
    """The reader that an export carries is a file without remask."""
    from remask.interop.reader import reader_text

    (tmp_path / "a.heic").write_bytes(encoded(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)))
    (tmp_path / "fake.heic").write_bytes(FAKE)
    written: dict[str, Any] = {}
    exec(compile(reader_text(), "read_pixels.py", "exec", dont_inherit=True), written)
    config = {"mean": [0.5] * 3}
    pixels = written["read_image"](str(tmp_path / "a.heic"), config)
    assert pixels.equal(decode((tmp_path / "a.heic").read_bytes()))
    with pytest.raises(written["BadImage"], match="damaged HEIC"):
        written["read_image"](str(tmp_path / "fake.heic"), config)
