"""Pictures that would take minutes, gigabytes or the whole process, and memory that is short for a good one."""

import io
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from remask.downstream.segment.label_map import read_mask
from remask.errors import UserError
from remask.images import shortage
from remask.images.decoding import BadImage, decode
from remask.images.jpeg import jpeg_header, too_many_scans
from remask.images.levels import RAW


def jpeg(width: int, height: int, scans: int = 0, progressive: bool = True) -> bytes:
    """A JPEG whose last scan stands in it once more for each of `scans`."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (9, 80, 200)).save(stream, "JPEG", progressive=progressive)
    data = stream.getvalue()
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * scans + data[-2:]


def test_a_thousand_scans_are_refused_in_no_time() -> None:
    data = jpeg(3000, 2000, 1000)
    begin = time.process_time()
    with pytest.raises(BadImage, match="1,010 scans of 3000x2000 pixels would take minutes"):
        decode(data)
    assert time.process_time() - begin < 1


def test_scans_that_encoders_write_and_many_of_few_pixels_are_read() -> None:
    for data in (jpeg(300, 200), jpeg(300, 200, 10), jpeg(64, 48, 1000), jpeg(300, 200, progressive=False)):
        assert decode(data).shape[0] == 3


def test_plain_jpegs_are_not_searched_for_scans() -> None:
    plain, progressive = jpeg(8, 8, 50, progressive=False), jpeg(8, 8)
    header = jpeg_header(plain)
    assert header is not None
    assert not header.several
    assert too_many_scans(plain, header._replace(height=10**5, width=10**3)) is None
    header = jpeg_header(progressive)
    assert header is not None
    assert header[:5] == (8, 8, 8, 3, True)


def png16(array: np.ndarray) -> bytes:
    height, width, bands = array.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tEXt", b"a\0b"), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4) for name, content in chunks
    )


def test_a_damaged_16_bit_png_is_a_bad_picture_and_a_sound_one_keeps_its_values() -> None:
    """torchvision crashes on them; so in a process of their own."""
    for bands in (2, 3, 4):
        array = np.random.default_rng(bands).integers(0, 65536, (7, 9, bands)).astype(np.uint16)
        assert (decode(png16(array), bands, levels=RAW).numpy() == array.transpose(2, 0, 1)).all()
    data = png16(np.full((40, 50, 3), 777, np.uint16))
    code = (
        "import sys\nfrom remask.images.decoding import BadImage, decode\ndata = sys.stdin.buffer.read()\n"
        "for end in range(30, data.find(b'IEND') - 24, 9):\n"
        "    try:\n        decode(data[:end])\n        print('read', end)\n"
        "    except BadImage:\n        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


def test_a_numpy_file_that_claims_more_than_it_holds() -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 5, 3), np.uint8))
    claimed = stream.getvalue().replace(b"(4, 5, 3), }" + b" " * 9, b"(4000000, 5000, 3), }")
    for data in (claimed, _zipped(claimed)):
        with pytest.raises(BadImage, match="claims an array of shape"):
            decode(data)


def _zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("image.npy", data)
    return stream.getvalue()


LIMITED = """
import io, resource, sys
from PIL import Image
from remask.errors import UserError
from remask.images.decoding import BadImage, decode
kind = sys.argv[1]
stream = io.BytesIO()
Image.new("RGB", (9000, 9000)).save(stream, kind)
small = io.BytesIO()
Image.new("RGB", (8, 8)).save(small, kind)
decode(small.getvalue())  # loads the libraries
status = open("/proc/self/status").read()
used = int(status.split("VmSize:")[1].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    decode(stream.getvalue())
    print("read")
except BadImage as error:
    print("bad", error)
except UserError as error:
    print("line", error)
"""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_memory_that_is_short_for_a_good_picture_is_never_the_pictures_fault(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, kind], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.stdout.startswith("line the memory ran out while a picture of 9000x9000 pixels was decoded"), (
        done.stdout + done.stderr
    )
    assert "nothing is wrong with it" in done.stdout
    assert "repair" not in done.stdout


def taller(tiff: bytes, rows: int) -> bytes:
    """A little-endian TIFF whose ImageLength (257) is another."""
    data, at = bytearray(tiff), int.from_bytes(tiff[4:8], "little")
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(tiff[at : at + 2], "little"), 12):
        if data[entry : entry + 2] == (257).to_bytes(2, "little"):
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, rows)
    return bytes(data)


def tiffs() -> dict[str, bytes]:
    """Uncompressed: one strip by Pillow; three strips, tiles, planes and 16-bit colours by tifffile; and compressed."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 32, 3), np.uint8)
    made = {"strip": io.BytesIO(), "lzw": io.BytesIO()}
    Image.fromarray(noise).save(made["strip"], "TIFF")
    Image.fromarray(noise).save(made["lzw"], "TIFF", compression="tiff_lzw")
    ways: dict[str, tuple[np.ndarray, dict[str, object]]] = {
        "strips": (noise, {"rowsperstrip": 16}),
        "tiles": (noise, {"tile": (16, 16)}),
        "planes": (noise.transpose(2, 0, 1), {"planarconfig": "separate", "rowsperstrip": 16}),
        "deep tiles": (noise.astype(np.uint16) * 257, {"tile": (16, 16)}),
        "deep strips": (noise.astype(np.uint16) * 257, {"rowsperstrip": 16}),
    }
    for name, (values, options) in ways.items():
        made[name] = io.BytesIO()
        tifffile.imwrite(made[name], values, photometric="rgb", **options)
    return {name: stream.getvalue() for name, stream in made.items()}


@pytest.mark.parametrize("name", tiffs())
def test_a_tiff_that_claims_more_rows_than_it_holds_is_no_picture_with_black_below(name: str) -> None:
    whole = tiffs()[name]
    assert decode(whole).shape == (3, 48, 32)
    for rows in (96, 3_000_000):
        begin = time.process_time()
        with pytest.raises(
            BadImage, match=r"pixels: it is damaged|strips or tiles|failed to read|decoder error"
        ) as bad:
            decode(taller(whole, rows))
        assert "memory" not in str(bad.value)
        if not name.startswith("deep"):  # no mask
            with pytest.raises(BadImage, match="its mask: "):
                read_mask(taller(whole, rows), coloured=True)
        assert time.process_time() - begin < 1


def test_a_tiff_of_fewer_rows_than_it_holds_is_cut() -> None:
    assert decode(taller(tiffs()["strips"], 40)).shape == (3, 40, 32)


def vast() -> dict[str, bytes]:
    """Files of few bytes that claim 90 megapixels: a canvas of which the frames cover a corner, a tile without data."""
    small, other = Image.new("RGB", (40, 24)), Image.new("RGB", (40, 24), (9, 9, 9))
    streams = {kind: io.BytesIO() for kind in ("GIF", "WEBP", "JPEG2000")}
    small.save(streams["GIF"], "GIF")
    small.save(streams["WEBP"], "WEBP", save_all=True, append_images=[other])
    small.save(streams["JPEG2000"], "JPEG2000")
    made = {kind: bytearray(stream.getvalue()) for kind, stream in streams.items()}
    made["GIF"][6:10] = struct.pack("<HH", 9000, 10000)
    at = made["WEBP"].find(b"VP8X")
    made["WEBP"][at + 12 : at + 18] = (8999).to_bytes(3, "little") + (9999).to_bytes(3, "little")
    struct.pack_into(">II", made["JPEG2000"], made["JPEG2000"].find(b"ihdr") + 4, 10000, 9000)
    at = made["JPEG2000"].find(b"\xff\x4f\xff\x51")
    for place in (8, 24):  # of the image, and of its tiles
        struct.pack_into(">II", made["JPEG2000"], at + place, 9000, 10000)
    return {kind: bytes(data) for kind, data in made.items()}


@pytest.mark.parametrize("kind", vast())
def test_a_few_bytes_that_claim_90_megapixels_are_no_picture(kind: str) -> None:
    data = vast()[kind]
    for read in (lambda: decode(data), lambda: decode(data, levels=None), lambda: read_mask(data)):
        begin = time.process_time()
        with pytest.raises(BadImage, match=f"it claims 9000x10000 pixels in {len(data)} bytes"):
            read()
        assert time.process_time() - begin < 1


def test_a_canvas_of_16_megapixels_may_have_a_small_frame() -> None:
    data = bytearray(vast()["GIF"])
    data[6:10] = struct.pack("<HH", 4096, 4096)
    assert decode(bytes(data), 1).shape == (1, 4096, 4096)


def test_a_shortage_that_the_file_asks_for_is_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "PNG")

    def short(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", short)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", short)
    with pytest.raises(BadImage, match="it claims more memory than its pixels need"):
        decode(stream.getvalue())
    monkeypatch.setattr(shortage, "claims_too_much", lambda data: None)
    monkeypatch.setattr("remask.images.decoding.claims_too_much", lambda data: None)
    with pytest.raises(UserError, match="30x20 pixels was decoded"):
        decode(stream.getvalue())
