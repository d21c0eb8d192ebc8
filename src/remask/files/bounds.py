"""Regular files only, and what one file may take in memory and time: every bound, and why it is as high as it is.

A name may lead to a pipe, a device, a file without an end or one that unfolds to a thousand times its size. Such files
are refused before they are read, by an OSError whose `strerror` is the reason; no bound is near what people's tools
write. Free of the rest of the library: exports carry this text.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_ENCODED = 1 << 30
"""Bytes of one encoded picture: 100 megapixels of four 16-bit bands without compression are 0.8 GB."""
MOST_PIXELS = 100_000_000
"""Pixels of one picture or mask: 2.4 GB while it is decoded; cameras make up to 150 megapixels, most below 50."""
MOST_BYTES_A_PIXEL = 24
"""Bytes of memory that decoding takes for each pixel, at most, as measured over all formats."""
ANY_PIXELS = 1 << 24
"""Pixels that a picture may have however few bytes code them: 0.4 GB while it is decoded."""
PIXELS_A_BYTE = 1 << 14
"""Pixels beyond ANY_PIXELS for each byte of a format that could code any number: GIF codes 2,730 at most, and of the
others so few bytes hold one colour alone. PNG and TIFF are not bounded: blank masks and pages are honest."""
USUAL_SCANS = 20
"""Scans of a JPEG that any picture may have: encoders write about 10, those that search for the smallest up to 20."""
MOST_SCANNED = 200_000_000
"""Pixels × scans of a JPEG of more scans: a scan may be a few bytes and goes over all pixels, at 1 to 8 ns each."""
MOST_TEXT = 64 << 20
"""Bytes of a recipe, a declaration of classes or the like, which are kilobytes long."""
MOST_LIST = 1 << 30
"""Bytes of a list of pictures: ten million paths of 100 bytes."""
MOST_ANNOTATIONS = 8 << 30
"""Bytes of a file of annotations: those of Objects365, the largest that is published, are 6 GB long."""
MOST_WEIGHTS = 1 << 40
"""Bytes of a file of weights, which is mapped or read tensor by tensor: a terabyte, beyond any network for pictures."""
UNFOLDED = 8
"""Bytes in memory for each byte on the disk that a file of weights or parquet may unfold to, beyond UNFOLDED_FREE:
tensors that share a storage, and dictionaries and compression of columns of numbers, save no more in honest files."""
UNFOLDED_ARRAYS = 200
"""The same for numpy's archives, whose drawn shapes compress well: dSprites unfolds to 120 times its size."""
UNFOLDED_FREE = 256 << 20
"""Bytes in memory that any file may unfold to, however small it is."""
MOST_HEADER = 1 << 20
"""Bytes of an extended header of a tar, which holds a name or a few words."""
MOST_NAME = 4096
"""Bytes of a path, as in Linux' PATH_MAX."""
_BLOCK = 1 << 20
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
          stat.S_IFDIR: "a folder"}  # fmt: skip


def open_regular(path: str | Path, most: int | None = None, buffering: int = 0) -> BinaryIO:
    """A regular file of at most `most` bytes, opened for reading; without a buffer, if its size is not given.

    Raises OSError for any other kind of file, which is never waited for, for a longer one, and for a name that no file
    can have.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "a name with a NUL byte", str(path)) from None
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise OSError(errno.ENXIO, "no regular file but a socket or a device", str(path)) from None
        raise
    try:
        status = os.fstat(number)
        check_regular(status, path, most)
        return open(number, "rb", buffering=buffering)
    except BaseException:
        os.close(number)
        raise


def check_regular(status: os.stat_result, path: str | Path, most: int | None = None) -> None:
    """Raise OSError unless this is the status of a regular file of at most `most` bytes."""
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"no regular file but {kind}", str(path))
    if most is not None and status.st_size > most:
        raise OSError(errno.EFBIG, too_long(status.st_size, most), str(path))


def too_long(size: int, most: int) -> str:
    """The reason for which a file of so many bytes is not read."""
    return f"{size:,} bytes are more than the {most:,} that such a file may have"


def read_file(path: str | Path, most: int = MOST_ENCODED) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises OSError, see `open_regular`."""
    with open_regular(path, most) as file:
        data = file.read(os.fstat(file.fileno()).st_size + 1)
        while more := file.read(_BLOCK):  # it grows while it is read, or its size says 0, as in /proc
            data += more
            if len(data) > most:
                raise OSError(errno.EFBIG, too_long(len(data), most), str(path))
        return data


def unfolds_to(size: int, on_disk: int, times: int = UNFOLDED) -> str | None:
    """Why content of `size` bytes is not taken from a file of `on_disk` bytes; None where it is."""
    most = times * on_disk + UNFOLDED_FREE
    return None if size <= most else f"it would unfold to {size:,} bytes, from {on_disk:,} on the disk"


def more_than_coded(width: int, height: int, size: int) -> str | None:
    """Why a picture of this size is not decoded from `size` bytes of GIF, WebP, JPEG 2000 or AVIF; None where it is."""
    if width * height <= ANY_PIXELS + PIXELS_A_BYTE * size:
        return None
    return f"it claims {width}x{height} pixels in {size:,} bytes: it is damaged, or of one colour"


__all__ = [
    "ANY_PIXELS", "MOST_ANNOTATIONS", "MOST_BYTES_A_PIXEL", "MOST_ENCODED", "MOST_HEADER", "MOST_LIST",
    "MOST_NAME", "MOST_PIXELS", "MOST_SCANNED", "MOST_TEXT", "MOST_WEIGHTS", "PIXELS_A_BYTE", "UNFOLDED",
    "UNFOLDED_ARRAYS", "UNFOLDED_FREE", "USUAL_SCANS", "check_regular", "more_than_coded", "open_regular", "read_file",
    "too_long", "unfolds_to",
]  # fmt: skip
