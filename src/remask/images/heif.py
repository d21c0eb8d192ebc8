"""HEIC, the format of phones: read by pillow-heif where it is installed, else counted and named."""

import functools
import importlib.util

EXTENSIONS = (".heic", ".heif", ".hif")
REASON = "HEIC pictures, which need pip install 'remask[heic]'"
"""The reason why such files are left out where pillow-heif is missing."""

_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"))
"""Major brands of HEIF files (ISO/IEC 23008-12, annex B); AVIF has its own, which Pillow reads."""


class NoHeifReader(Exception):  # noqa: N818  (a fact about this machine)
    """pillow-heif is not installed."""


def is_heif(path: str) -> bool:
    """Whether a file's name has an extension of HEIF."""
    return path.lower().endswith(EXTENSIONS)


def holds_heif(data: bytes) -> bool:
    """Whether the content is HEIF, by the brand of its first box. An AVIF may have mif1 as its major brand."""
    end = min(int.from_bytes(data[:4]), 256)
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS and b"avif" not in data[8:end]


def can_read() -> bool:
    """Whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def heif_formats(data: bytes, others: tuple[str, ...]) -> tuple[str, ...]:
    """The formats for Pillow to try: HEIF for a HEIF image, else `others`. Raises NoHeifReader without pillow-heif."""
    if not holds_heif(data):
        return others
    if not can_read():
        raise NoHeifReader("a HEIC picture, which needs pip install 'remask[heic]'")
    _register_heif()
    return ("HEIF",)


@functools.cache
def _register_heif() -> None:
    """Register HEIF with Pillow, once a process. libheif turns the images upright and updates their EXIF."""
    import pillow_heif

    pillow_heif.register_heif_opener()


__all__ = ["EXTENSIONS", "REASON", "NoHeifReader", "can_read", "heif_formats", "holds_heif", "is_heif"]
