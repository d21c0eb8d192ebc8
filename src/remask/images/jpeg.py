"""The frame header of a JPEG (ITU T.81, B.2), and whether its scans would take longer than any picture needs."""

from typing import NamedTuple

from remask.files.bounds import MOST_SCANNED, USUAL_SCANS


class JpegHeader(NamedTuple):
    """bits, height, width and number of components, as SOF has them; several: whether there may be several scans."""

    bits: int
    height: int
    width: int
    components: int
    several: bool = False


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The frame header (SOF) of a JPEG: ITU T.81, B.2.2. None where there is none."""
    if data[:2] != b"\xff\xd8":
        return None
    at, found = 2, None
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 10 > len(data):
            return found
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # stuffing, fill and markers without a length
            at += 1 if marker == 0xFF else 2
        elif marker in (0xD9, 0xDA):  # the end, or data, perhaps before any frame header
            return found and found._replace(several=found.several or data[at + 4] < found.components)
        elif found is None and 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            progressive = marker not in (0xC0, 0xC1, 0xC3, 0xC9, 0xCB)
            found = JpegHeader(data[at + 4], height, width, data[at + 9], progressive)
            if progressive:
                return found
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])


def too_many_scans(data: bytes, header: JpegHeader) -> str | None:
    """Why a JPEG is not decoded whose scans go over more pixels than MOST_SCANNED together; None for all others.

    The markers of scans are counted, not followed: within coded data 0xFF is never followed by a marker.
    """
    scans = data.count(b"\xff\xda") if header.several else 1
    if scans <= USUAL_SCANS or scans * header.width * header.height <= MOST_SCANNED:
        return None
    return f"{scans:,} scans of {header.width}x{header.height} pixels would take minutes: save it anew"


__all__ = ["JpegHeader", "jpeg_header", "too_many_scans"]
