"""Mutations of bytes, texts and JSON, and repairs of checksums, so that what is changed is read and not refused."""

import copy
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

INTERESTING = (
    0,
    1,
    2,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    1000,
    32767,
    32768,
    65535,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
NODES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 255, 256, 65536, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e308,
    float("nan"), float("inf"), "", "0", "1", "a", "\0", "\n", "\ud800", "é" * 300, "../x", "/dev/zero", "$\\foo$",
    [], {}, [[]], [None], [0, 1, 2], [1.5] * 6, {"a": 1}, {"size": [8, 8], "counts": [1, 2]},
)  # fmt: skip
REPAIRED = 0.8
"""Share of the inputs whose checksums are made right."""

Mutator = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def mutate_bytes(data: bytes, draw: random.Random, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """A few changes of bytes: flips, numbers, pieces deleted, repeated, exchanged with another seed."""
    buffer = bytearray(data)
    for _ in range(1 + int(draw.expovariate(0.5))):
        size = len(buffer)
        at = draw.randrange(size + 1) if draw.random() < 0.6 else draw.randrange(min(size, 256) + 1)
        length = min(size - at, 1 << draw.randrange(0, 11))
        kind = draw.randrange(10)
        if kind <= 2 and at < size:
            buffer[at] ^= 1 << draw.randrange(8)
        elif kind == 3 and at < size:
            buffer[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        elif kind == 4:
            width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
            number = draw.choice(INTERESTING) if draw.random() < 0.7 else draw.getrandbits(8 * width)
            buffer[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == 5:
            del buffer[at : at + length]
        elif kind == 6:
            buffer[at:at] = buffer[at : at + length] * draw.choice((1, 1, 2, 50))
        elif kind == 7:
            other = draw.choice(seeds)
            begin = draw.randrange(len(other) + 1)
            buffer[at : at + length] = other[begin : begin + length]
        elif kind == 8:
            del buffer[at : size if draw.random() < 0.3 else at + 1]
        elif words:
            buffer[at : at + draw.choice((0, 0, 1, length))] = draw.choice(words)
    return bytes(buffer[: 1 << 20])


def text(*words: str) -> Mutator:
    """Bytes with the words of a format among them, at times in another encoding."""
    encoded = [word.encode("utf-8", "surrogatepass") for word in (*words, "\0", "\n", "\r", "\ufeff", "é", "9" * 4301)]

    def mutate(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
        changed = mutate_bytes(data, draw, seeds, encoded)
        if draw.random() < 0.03:
            changed = changed.decode("utf-8", "replace").encode(draw.choice(("utf-16", "utf-32", "utf-16-le")))
        return changed

    return mutate


def mutate_json(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Nodes of a document replaced, deleted, doubled and exchanged; at times its bytes changed."""
    if draw.random() < 0.1:
        return mutate_bytes(data, draw, seeds)
    if draw.random() < 0.005:
        return b"[" * draw.choice((2000, 200_000)) + data
    document = mutated_document(json.loads(data), draw)
    written = json.dumps(document).encode()
    return written.replace(b"1e400", b"1" * 5000) if draw.random() < 0.01 else written


def mutated_document(document: Any, draw: random.Random) -> Any:
    root = [document]
    for _ in range(1 + int(draw.expovariate(0.7))):
        places = _places(root)
        holder, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind <= 3:
            holder[key] = copy.deepcopy(draw.choice(NODES))  # never the same object twice, which could hold itself
        elif kind == 4:
            del holder[key]
        elif kind == 5 and isinstance(holder, list):
            holder.insert(draw.randrange(len(holder) + 1), holder[key])
        elif kind == 6:
            other, name = draw.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = json.loads(json.dumps(other[name]))
        elif type(value := holder[key]) in (int, float) and abs(value) < 1 << 70:
            holder[key] = draw.choice((-value, value + 1, value * 1000, value + 0.5))
        if not root:
            root = [None]
    return root[0]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """(holder, key) of every node, the document itself first."""
    found: list[tuple[Any, Any]] = [(root, 0)]
    pending: list[Any] = [root[0]]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            pending.append(node[key])
    return found


def repaired(repair: Callable[[bytes], bytes], inner: Mutator = mutate_bytes) -> Mutator:
    """Changes after which checksums are made right, in most inputs."""

    def mutate(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
        changed = inner(data, draw, seeds)
        return repair(changed) if draw.random() < REPAIRED else changed

    return mutate


def png(data: bytes) -> bytes:
    """The CRC of every chunk made right (PNG, 5.3)."""
    buffer, at = bytearray(data), 8
    while at + 12 <= len(buffer):
        length = int.from_bytes(buffer[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(buffer):
            break
        buffer[end : end + 4] = zlib.crc32(buffer[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(buffer)


def tar(data: bytes) -> bytes:
    """The checksum of every block that looks like a header (POSIX.1-2017, ustar)."""
    buffer = bytearray(data)
    for at in range(0, len(buffer) - 511, 512):
        if buffer[at + 257 : at + 262] == b"ustar":
            total = sum(buffer[at : at + 512]) - sum(buffer[at + 148 : at + 156]) + 8 * 32
            buffer[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(buffer)


def packed(data: bytes) -> bytes:
    """The checksums of a packed set's table and head."""
    from remask.images.sources.packed import HEAD, HEAD_BYTES, MAGIC, VERSION

    if len(data) < HEAD_BYTES:
        return data
    start = min(HEAD.unpack(data[: HEAD.size])[3], len(data))
    fields = MAGIC, VERSION, zlib.crc32(data[start:]), start, len(data) - start
    return HEAD.pack(*fields, zlib.crc32(HEAD.pack(*fields, 0))).ljust(HEAD_BYTES, b"\0") + data[HEAD_BYTES:]


def packed_table(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A packed set whose table's JSON is mutated as JSON, or whose bytes are."""
    from remask.images.sources.packed import HEAD

    if draw.random() < 0.5:
        return mutate_bytes(data, draw, seeds)
    start = HEAD.unpack(data[: HEAD.size])[3]
    length = int.from_bytes(data[start : start + 8], "little")
    document = mutated_document(json.loads(data[start + 8 : start + 8 + length]), draw)
    written = json.dumps(document).encode()
    written += b" " * (-len(written) % 8)
    return data[:start] + struct.pack("<Q", len(written)) + written + data[start + 8 + length :]


def safetensors(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A safetensors file whose header is mutated as JSON, with its length made right, or whose bytes are mutated."""
    if draw.random() < 0.4:
        return mutate_bytes(data, draw, seeds)
    length = int.from_bytes(data[:8], "little")
    written = json.dumps(mutated_document(json.loads(data[8 : 8 + length]), draw)).encode()
    return struct.pack("<Q", len(written)) + written + data[8 + length :]


def archive(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A zip whose members are mutated, mostly the first (the pickle), and written again with their checksums."""
    if draw.random() < 0.3:
        return mutate_bytes(data, draw, seeds)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    chosen = 0 if draw.random() < 0.8 else draw.randrange(len(members))
    stream = io.BytesIO()
    with zipfile.ZipFile(
        stream, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for number, (name, content) in enumerate(members):
            new.writestr(zipfile.ZipInfo(name), mutate_bytes(content, draw, [content]) if number == chosen else content)
    return stream.getvalue()


def riff(data: bytes) -> bytes:
    """The size of a WebP's RIFF."""
    return data[:4] + struct.pack("<I", max(0, len(data) - 8)) + data[8:]


def either(first: Mutator, other: Mutator) -> Mutator:
    """The first for zip archives, the other for all else."""
    return lambda data, draw, seeds: (first if data[:2] == b"PK" else other)(data, draw, seeds)


def weights(data: bytes, draw: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A checkpoint in whichever of the three formats it is."""
    if data[:2] == b"PK":
        return archive(data, draw, seeds)
    return safetensors(data, draw, seeds) if data[8:9] == b"{" else mutate_bytes(data, draw, seeds)
