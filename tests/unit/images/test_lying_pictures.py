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
from PIL import Image

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
