"""packed, packing: what comes out is what went in, exactly; what is damaged or cut short is one clear line."""

import fcntl
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from remask.images.loading.image_cache import ImageCache
from remask.images.loading.loader import Loader
from remask.images.sources.named import Arrays
from remask.images.sources.opening import Source, open_source
from remask.images.sources.packed import HEAD, HEAD_BYTES, Packed
from remask.images.tools.packing import Form, Prepare, Written, pack
from remask.images.transforms import CentreCrop, RandomCropFlip, resize

SIDES = ((300, 420), (420, 300), (200, 256), (32, 32), (257, 900))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of photographs of several sizes and formats, one of them twice, and one broken."""
    root, photos = tmp_path_factory.mktemp("pictures"), open_source("photos")
    for i, (rows, columns) in enumerate(SIDES):
        pixels = resize(decode(photos.read(i)), (rows, columns)).permute(1, 2, 0).numpy()
        where = root / ("bird é" if i % 2 else "apple")
        where.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(where / f"{i}.{'png' if i == 1 else 'jpg'}", quality=80)
    (root / "apple/4 again.jpg").write_bytes((root / "apple/4.jpg").read_bytes())
    (root / "bird é/broken.jpg").write_bytes((root / "apple/0.jpg").read_bytes()[:500])
    return root


def packed(source: Source, out: Path, form: Form, workers: int = 0) -> tuple[Packed, Written]:
    done = pack(source, out, form, workers=workers)
    found = open_source(str(out))
    assert isinstance(found, Packed)
    return found, done


def usable(source: Source) -> list[int]:
    return [i for i in range(len(source)) if "broken" not in source.where(i)]


@pytest.mark.parametrize("workers", [0, 2])
def test_raw_is_what_decoding_and_resizing_give(folder: Path, tmp_path: Path, workers: int) -> None:
    source = open_source(str(folder))
    found, done = packed(source, tmp_path / "a.remask", Form("raw", shorter=100), workers)
    assert source.labels is not None
    assert found.labels == [source.labels[i] for i in usable(source)]
    assert found.classes == source.classes == ["apple", "bird é"]
    assert done.left_out == {source.where(len(source) - 1): found.about["left_out"][source.where(len(source) - 1)]}
    shapes = {(300, 420): (100, 140), (420, 300): (140, 100), (200, 256): (100, 128), (257, 900): (100, 350)}
    for place, i in enumerate(usable(source)):
        whole = decode(source.read(i))
        size = shapes.get((whole.shape[1], whole.shape[2]), (32, 32))
        assert torch.equal(decode(found.read(place)), resize(whole, size)), found.where(place)
        assert found.where(place) == f"a.remask: {source.where(i)}"
    assert [path.name for path in tmp_path.iterdir()] == ["a.remask"]


def test_a_small_jpeg_is_kept_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    found, done = packed(source, tmp_path / "a.remask", Form(shorter=256, quality=95))
    assert done.kept == 2
    for place, i in enumerate(usable(source)):
        data, whole = found.read(place), decode(source.read(i))
        assert isinstance(data, bytes)
        small = min(whole.shape[1:]) <= 256
        assert (data == source.read(i)) is small
        image = decode(data)
        assert min(image.shape[1:]) == min(256, *whole.shape[1:])
        if not small:
            expected = resize(whole, (int(image.shape[1]), int(image.shape[2])))
            assert (image.int() - expected.int()).abs().float().mean() < 4, "JPEG's own loss and no more"


def test_equal_pictures_are_stored_once(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    found, _ = packed(source, tmp_path / "a.remask", Form("raw", shorter=None))
    twice = [i for i in range(len(found)) if "/4" in found.where(i)]
    assert len(twice) == 2
    assert np.shares_memory(found.read(twice[0]), found.read(twice[1]))
    assert (tmp_path / "a.remask").stat().st_size < 3 * sum(r * c for r, c in SIDES) + 4000


def test_one_size_cuts_the_middle(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    found, _ = packed(source, tmp_path / "a.remask", Form("raw", exactly=(48, 64)))
    assert {decode(found.read(i)).shape for i in range(len(found))} == {(3, 48, 64)}
    assert torch.equal(decode(found.read(0)), CentreCrop((48, 64), ratio=1.0)(decode(source.read(0))))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_any_channels_and_sixteen_bits(channels: int, kind: type, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (5, 20, 30, channels)).astype(kind)
    source = Arrays("many", pixels, [3, 1, 2, 0, 3], None)
    found, _ = packed(source, tmp_path / "a.remask", Form("raw", channels=channels))
    assert found.labels == source.labels
    assert found.classes == ["0", "1", "2", "3"], "numbers are names"
    assert all(torch.equal(decode(found.read(i), channels), decode(pixels[i], channels, levels=None)) for i in range(5))
    if channels > 1:
        with pytest.raises(BadImage, match="channels"):
            decode(found.read(0), 3)


def test_training_on_it_is_training_on_the_source(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(
        "".join(f"{path}\n" for path in sorted(folder.rglob("*.*")) if "broken" not in path.name)
    )
    source, crop = open_source(str(tmp_path / "good.txt")), RandomCropFlip((32, 32))
    pack(source, tmp_path / "a.remask", Form("raw", shorter=None))
    for workers in (0, 2):
        one, other = (
            Loader(open_source(str(spec)), crop, 2, seed=5, workers=workers)
            for spec in (tmp_path / "good.txt", tmp_path / "a.remask")
        )
        assert all(torch.equal(a.images, b.images) for a, b in zip(one.epoch(1), other.epoch(1), strict=True))


def test_it_pickles_limits_and_packs_again(folder: Path, tmp_path: Path) -> None:
    found, _ = packed(open_source(str(folder)), tmp_path / "a.remask", Form("raw", shorter=64))
    again = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 500, "the pictures stay in the file"
    assert all(np.array_equal(again.read(i), found.read(i)) for i in range(len(found)))
    assert again.labels == found.labels
    few = open_source(str(tmp_path / "a.remask"), limit=2)
    assert (len(few), few.labels) == (2, (found.labels or [])[:2])
    second, _ = packed(found, tmp_path / "b.remask", Form("raw", shorter=64))
    assert all(np.array_equal(second.read(i), found.read(i)) for i in range(len(found)))
    os.rename(tmp_path / "b.remask", tmp_path / "b.bin")
    assert len(open_source(str(tmp_path / "b.bin"))) == len(found), "known by its first bytes"


def test_pixels_are_not_copied_and_the_file_is_safe(folder: Path, tmp_path: Path) -> None:
    found, _ = packed(open_source(str(folder)), tmp_path / "a.remask", Form("raw"))
    before = (tmp_path / "a.remask").read_bytes()
    image = decode(found.read(0))
    assert np.shares_memory(image.numpy(), found.read(0))
    image.zero_()
    assert (tmp_path / "a.remask").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda data: data[:-1], "copy or pack it again"),
        (lambda data: data[: len(data) // 2], "copy or pack it again"),
        (lambda data: data + b"x", "copy or pack it again"),
        (lambda data: data[:20], "shorter than a head"),
        (lambda data: b"", "shorter than a head"),
        (lambda data: b"PK" + data[2:], "no packed set"),
        (lambda data: data[:16] + b"\1" + data[17:], "head does not fit"),
        (lambda data: data[:-9] + b"\1" + data[-8:], "table does not fit"),
        (lambda data: data[:8] + struct.pack("<I", 9) + data[12:], "version 9, this remask reads 1"),
        (lambda data: bytes(len(data)), "no packed set"),
    ],
)
def test_damage_is_one_line(damage, line: str, folder: Path, tmp_path: Path) -> None:
    pack(open_source(str(folder)), tmp_path / "a.remask", Form(shorter=64))
    (tmp_path / "b.remask").write_bytes(damage((tmp_path / "a.remask").read_bytes()))
    with pytest.raises(UserError, match=line) as error:
        open_source(str(tmp_path / "b.remask"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_a_damaged_picture_is_one_bad_picture(kind, folder: Path, tmp_path: Path) -> None:
    pack(open_source(str(folder)), tmp_path / "a.remask", Form(kind, shorter=64))
    data = bytearray((tmp_path / "a.remask").read_bytes())
    data[HEAD_BYTES + 300] ^= 4
    (tmp_path / "a.remask").write_bytes(data)
    pictures = ImageCache(open_source(str(tmp_path / "a.remask")), cache_mb=0)
    with pytest.raises(BadImage, match="damaged in the packed file"):
        pictures.get(0)
    assert pictures.get(1).shape[0] == 3


def test_too_many_bad_pictures_leave_nothing(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(UserError, match=r"1 of 7 images cannot be used, more than --max-bad 0 .*broken"):
        pack(open_source(str(folder)), tmp_path / "a.remask", Form(), max_bad=0, skipped=said.append)
    assert len(said) == 1
    with pytest.raises(UserError, match="cannot be used"):
        pack(open_source(str(folder / "bird é/broken.jpg")), tmp_path / "a.remask", Form())
    assert list(tmp_path.iterdir()) == []


def test_stopped_in_the_middle_it_starts_anew(folder: Path, tmp_path: Path) -> None:
    source, out = open_source(str(folder)), tmp_path / "a.remask"

    def stop(done: int, so_far: Written) -> None:
        assert not out.exists()
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, out, Form(), progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".a.remask.part").write_bytes(b"what a killed run left" * 10_000)
    pack(source, out, Form())
    pack(source, tmp_path / "b.remask", Form())
    assert out.read_bytes() == (tmp_path / "b.remask").read_bytes()


def test_two_at_once(folder: Path, tmp_path: Path) -> None:
    with open(tmp_path / ".a.remask.part", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"theirs")
        other.flush()
        with pytest.raises(UserError, match="another process"):
            pack(open_source(str(folder)), tmp_path / "a.remask", Form())
    assert (tmp_path / ".a.remask.part").read_bytes() == b"theirs"


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder))
    (tmp_path / "a.remask").write_text("thesis")
    with pytest.raises(UserError, match="exists already"):
        pack(source, tmp_path / "a.remask", Form())
    with pytest.raises(UserError, match=r"ends in \.remask"):
        pack(source, tmp_path / "a.jpg", Form())
    for wrong in ({"kind": "png"}, {"channels": 2}, {"quality": 0}, {"shorter": -1}, {"exactly": (0, 3)}):
        with pytest.raises(UserError):
            Form(**wrong)  # type: ignore[arg-type]
    assert (tmp_path / "a.remask").read_text() == "thesis"


def test_the_head_is_what_the_docs_say() -> None:
    assert HEAD.size <= HEAD_BYTES
    item = Prepare(Arrays("one", np.zeros((1, 4, 6), np.uint8), None, None), Form("raw", channels=1))(0)
    assert not isinstance(item, str)
    assert item.shape == (4, 6, 1)
    stream = io.BytesIO()
    Image.new("L", (6, 4)).save(stream, "JPEG")
    gray = Prepare(Arrays("one", np.zeros((1, 4, 6), np.uint8), None, None), Form(channels=1))(0)
    assert not isinstance(gray, str)
    assert Image.open(io.BytesIO(gray.data)).mode == "L"
