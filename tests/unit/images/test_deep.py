"""images/deep.py, decoding.py, stored.py: pictures of any depth and any number of bands keep every value."""

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from remask.images.levels import FULL, Levels, Scaling
from remask.images.loading.loader import Loader
from remask.images.sources.opening import open_source
from remask.images.sources.stored import stored
from remask.images.transforms import CentreCrop

tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
SEED = np.random.default_rng(0)


def noise(shape: tuple[int, ...], kind: str = "uint16", most: int = 4096) -> np.ndarray:
    return SEED.integers(0, most, shape).astype(kind)


def tiff(array: np.ndarray, **keys: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **keys)
    return stream.getvalue()


def png16(array: np.ndarray) -> bytes:
    """Gray, gray with alpha, RGB or RGBA of 16 bits, which Pillow does not write."""
    height, width, bands = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def zipped() -> bytes:
    """An archive that numpy did not write."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "hello")
    return stream.getvalue()


def same(data: bytes | np.ndarray, array: np.ndarray, levels: Levels = FULL) -> bool:
    """Whether decoding gives the array HWC value for value."""
    return bool((decode(data, array.shape[2], levels=levels).permute(1, 2, 0).numpy() == array).all())


@pytest.mark.parametrize("bands", [2, 3, 4, 5, 6, 13])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "form",
    [
        {"planarconfig": "contig"},
        {"planarconfig": "separate"},
        {"planarconfig": "contig", "tile": (16, 16)},
        {"planarconfig": "contig", "bigtiff": True},
        {"planarconfig": "contig", "compression": "zlib", "predictor": False},
        {"planarconfig": "contig", "byteorder": ">"},
    ],
    ids=lambda form: "-".join(f"{key}" for key in form),
)
def test_tiffs_of_any_bands(bands: int, kind: str, form: dict[str, Any]) -> None:
    array = noise((24, 40, bands), kind, 200)
    stored_as = array.transpose(2, 0, 1).copy() if form["planarconfig"] == "separate" else array
    assert same(tiff(stored_as, photometric="minisblack", **form), array)


def test_pages_are_bands_where_that_many_are_wanted() -> None:
    array = noise((20, 30, 7))
    data = tiff(array.transpose(2, 0, 1).copy(), photometric="minisblack", planarconfig=None)
    assert same(data, array)
    assert decode(data, 1, levels=FULL).shape == (1, 20, 30), "the first page"
    assert stored(data, 1).left_out == ("pages after the first",)


def test_pages_that_are_bands_are_turned_upright() -> None:
    array = noise((20, 30, 3), "uint8", 256)
    pages = array.transpose(2, 0, 1).copy()
    data = tiff(pages, photometric="minisblack", planarconfig=None, extratags=[(274, "H", 1, 6, True)])
    assert (decode(data, 3, levels=FULL).permute(1, 2, 0).numpy() == np.rot90(array, 3)).all()


def test_pages_of_palettes_are_no_bands() -> None:
    pages = [Image.fromarray(noise((20, 30, 3), "uint8", 256)).quantize(16) for _ in range(3)]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    assert same(stream.getvalue(), np.array(pages[0].convert("RGB")))
    assert stored(stream.getvalue(), 3) == ("TIFF palette, 8 bits", 3, ("pages after the first",), 3)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "packbits"])
def test_compressed_deep_tiffs(compression: str) -> None:
    pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    array = noise((24, 40, 3))
    assert same(tiff(array, photometric="rgb", compression=compression), array)


def test_colours_of_10_bits_written_as_text_keep_every_level() -> None:
    array = noise((5, 7, 3), most=1024)
    rows = "\n".join(" ".join(map(str, row.ravel())) for row in array)
    data = f"P3\n# made by hand\n7 5\n1023\n# the first row\n{rows}\n".encode()
    assert same(data, np.rint(array * (65535 / 1023)))


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_bits_of_avif_that_no_reader_keeps_are_told(bits: int) -> None:
    codecs = pytest.importorskip("imagecodecs", reason="imagecodecs is not installed")
    array = noise((16, 16, 3), "uint8" if bits == 8 else "uint16", 256)
    data = codecs.avif_encode(array, bitspersample=bits)
    assert stored(data).left_out == ("bits beyond 8",) * (bits > 8)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_pngs_of_16_bits(bands: int) -> None:
    array = noise((10, 12, bands), most=65536)
    assert same(png16(array), array)
    if bands != 3:
        shown = array[:, :, :3] if bands == 4 else np.repeat(array[:, :, :1], 3, axis=2)
        assert (decode(png16(array), 3, levels=FULL).permute(1, 2, 0).numpy() == shown).all()


def test_no_level_of_12_bits_is_lost_and_nothing_changes_without_levels() -> None:
    array = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    image = decode(stream.getvalue(), 1, levels=Levels(0, 4095))
    assert image.dtype == torch.uint16
    assert len(np.unique(image.numpy())) == 4096
    assert len(decode(stream.getvalue(), 1).unique()) == 4096  # as they are stored, in floats
    assert len(decode(stream.getvalue(), 1, levels=None).unique()) == 16  # as runs before had it


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("int16", -2048, 2047), ("int32", -70000, 70000), ("uint32", 0, 1 << 20), ("int8", -9, 9)]
)
def test_other_integers_are_floats_of_their_own_values(kind: str, low: int, high: int) -> None:
    array = SEED.integers(low, high + 1, (9, 11, 1)).astype(kind)
    for data in (tiff(array[:, :, 0]), npy(array), array):
        assert same(data, array.astype(np.float32), Levels(low, high))


def test_the_full_range_of_a_signed_type() -> None:
    array = np.array([[-32768, 0, 32767]], dtype=np.int16)
    assert decode(array, 1, levels=FULL).flatten().tolist() == pytest.approx([0, 32768 / 65535, 1])


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 6), (6, 9, 7), (6, 9, 6)])
def test_arrays_hwc_and_chw(shape: tuple[int, ...]) -> None:
    array = noise(shape)
    bands = 6 if 6 in shape else 1
    first = array.reshape(shape if len(shape) == 3 else (*shape, 1))
    wanted = first.transpose(1, 2, 0) if shape[-1] not in (1, 6) and len(shape) == 3 else first
    for data in (npy(array), npz(image=array), npz(anything=array), npz(image=array, other=noise((3, 3)))):
        assert decode(data, bands, levels=FULL).permute(1, 2, 0).numpy().tolist() == wanted.tolist()


def test_the_fourth_band_is_read_where_it_is_wanted_and_else_told() -> None:
    array = noise((12, 9, 4), "uint8", 256)
    data = tiff(array, photometric="rgb", extrasamples=["unspecified"])
    assert same(data, array)
    assert (decode(data, 3, levels=FULL).permute(1, 2, 0).numpy() == array[:, :, :3]).all()
    assert stored(data, 3).left_out == ("band 4",)
    assert stored(data, 4).left_out == ()


def test_alpha_is_told_and_read_where_it_is_wanted() -> None:
    array = noise((12, 9, 4), "uint8", 256)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    assert stored(stream.getvalue(), 3).left_out == ("alpha",)
    assert same(stream.getvalue(), array)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_alpha_of_a_gray_tiff_is_told(kind: str, channels: int) -> None:
    array = noise((12, 9, 2), kind, 256)
    data = tiff(array, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    assert (decode(data, channels, levels=FULL)[0].numpy() == array[:, :, 0]).all()
    assert stored(data, channels) == (f"TIFF grayA, {8 * array.itemsize} bits", 1, ("alpha",), 1)


@pytest.mark.parametrize("turned", [3, 6, 8])
def test_deep_tiffs_are_turned_upright(turned: int) -> None:
    array = noise((12, 9, 3))
    data = tiff(array, photometric="rgb", extratags=[(274, "H", 1, turned, True)])
    angle = {3: 2, 6: 3, 8: 1}[turned]
    assert (decode(data, 3, levels=FULL).permute(1, 2, 0).numpy() == np.rot90(array, angle)).all()


@pytest.mark.parametrize(
    ("data", "channels", "why"),
    [
        (tiff(np.full((4, 4), np.nan, np.float32)), 1, "16 of 16 values are NaN or infinite"),
        (npy(np.array([[0, np.inf], [1, 2]])), 1, "1 of 4 values are NaN or infinite"),
        (tiff(np.zeros((8, 8, 6), np.uint8), photometric="minisblack", planarconfig="contig"), 3, "6 channels where 3"),
        (tiff(np.zeros((8, 8, 4), np.uint8), photometric="minisblack", planarconfig="contig"), 3, "4 channels where 3"),
        (npy(np.zeros((2, 3, 4, 5))), 3, "is not HW, HWC or CHW"),
        (npz(a=np.zeros((2, 2)), b=np.zeros((2, 2))), 1, "2 arrays"),
        (npy(np.full((4, 4), 1e300)), 1, "16 of 16 values are NaN or infinite"),
        (zipped(), 1, "the archive holds no array: a.txt is another file"),
        (npy(np.zeros((4, 4), complex)), 1, "pixels of type complex128"),
        (npy(np.zeros((9, 9)))[:90], 1, "."),
        (b"PK\x03\x04 no archive", 1, "."),
    ],
)
def test_reasons(data: bytes, channels: int, why: str) -> None:
    with pytest.raises(BadImage, match=why) as caught:
        decode(data, channels, levels=FULL)
    assert "\n" not in str(caught.value)


def test_pickles_in_arrays_are_never_run() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadImage):
        decode(stream.getvalue(), 1, levels=FULL)


def test_a_bomb_is_refused_by_its_header() -> None:
    data = npz(image=np.zeros((1 << 13, 1 << 13), np.uint8))
    with pytest.raises(BadImage, match="is more than 1,000 pixels"):
        decode(data, 1, levels=FULL, max_pixels=1000)


def test_a_numpy_file_of_four_axes_is_a_source_of_pictures(tmp_path: Path) -> None:
    array = noise((5, 3, 16, 20))
    np.savez(tmp_path / "set.npz", images=array, labels=np.array([[0], [1], [0], [2], [1]]), other=np.zeros(3))
    source = open_source(str(tmp_path / "set.npz"), limit=4)
    assert (len(source), source.labels, source.left_out) == (4, [0, 1, 0, 2], {"other arrays of the archive": 1})
    assert source.where(2) == "set.npz: images 2"
    assert same(source.read(3), array[3].transpose(1, 2, 0))
    np.save(tmp_path / "set.npy", array.transpose(0, 2, 3, 1))
    assert same(open_source(str(tmp_path / "set.npy")).read(4), array[4].transpose(1, 2, 0))
    np.save(tmp_path / "one.npy", array[0])
    assert len(open_source(str(tmp_path / "one.npy"))) == 1
    (tmp_path / "cut.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be read as numpy's"):
        open_source(str(tmp_path / "cut.npz"))


def test_a_numpy_file_without_pictures_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"holds no pictures: the shape of its array is \(0, 16, 16, 3\)"):
        open_source(str(tmp_path / "none.npy"))


def test_tars_and_parquet_hold_deep_pictures_and_arrays(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    array = noise((20, 24, 6))
    for name, data in {
        "a.tif": tiff(array, photometric="minisblack", planarconfig="contig"),
        "a.npy": npy(array),
    }.items():
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        assert same(open_source(str(tmp_path / "x.tar")).read(0), array)
        parquet.write_table(pa.table({"image": [data]}), tmp_path / "x.parquet")
        assert same(open_source(str(tmp_path / "x.parquet")).read(0), array)
    lists = pa.array([array.tolist()], pa.list_(pa.list_(pa.list_(pa.uint16()))))
    parquet.write_table(pa.table({"bands": lists}), tmp_path / "y.parquet")
    assert same(open_source(str(tmp_path / "y.parquet")).read(0), array)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([array.transpose(2, 0, 1).copy()] * 2))
    parquet.write_table(pa.table({"bands": tensors}), tmp_path / "z.parquet")
    assert same(open_source(str(tmp_path / "z.parquet")).read(0), array)


@pytest.mark.parametrize(("workers", "cache_mb"), [(0, 0), (0, 64), (2, 0)])
def test_a_picture_beyond_the_range_is_named_once_and_used_as_it_is(
    tmp_path: Path, workers: int, cache_mb: int
) -> None:
    for i in range(6):
        Image.fromarray(np.full((8, 8), 5000 if i == 4 else 100 * i, np.uint16)).save(tmp_path / f"{i}.png")
    said: list[str] = []
    loader = Loader(
        open_source(str(tmp_path)), CentreCrop((8, 8)), 6, shuffle=False, drop_last=False, channels=1,
        workers=workers, cache_mb=cache_mb, scaling=Scaling(Levels(0, 4095), (0.5,), (0.25,)), remark=said.append,
    )  # fmt: skip
    for _ in range(2):
        (batch,) = loader.epoch(0)
        assert int(batch.images[4, 0, 0, 0]) == 5000, "it is not clipped"
    assert [line.rpartition("/")[2] for line in said] == [
        "4.png: values reach from 5000 to 5000, beyond 0 to 4095 of data.range"
    ]
