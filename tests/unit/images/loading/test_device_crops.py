"""device: the loader's own boxes, cut on the device, pixel for pixel; kept sets; JPEGs decoded there."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from remask.errors import UserError
from remask.images.decoding import decode
from remask.images.loading import device_crops as device
from remask.images.loading.device_crops import CachedOnDevice, cut, decode_on_device, is_plain, no_decoder
from remask.images.loading.image_cache import ImageCache
from remask.images.loading.loader import Loader
from remask.images.sources.named import Arrays
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.images.transforms import Box, CentreCrop, RandomCropFlip, resize

CPU = torch.device("cpu")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Jpegs:
    """Windows of real photographs of several sizes, some of them broken."""

    name, classes = "jpegs", None

    def __init__(self, n: int, broken: Sequence[int] = (), exif: Sequence[int] = ()) -> None:
        photos, self._data = open_source("photos"), list[bytes]()
        for i in range(n):
            window = RandomCropFlip((60 + i % 7, 80 + i % 5), scale=(0.3, 1.0))
            image = window(decode(photos.read(i)), torch.Generator().manual_seed(i))
            stream, tags = io.BytesIO(), Image.Exif()
            tags[0x112] = 6 if i in exif else 1
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=90, exif=tags)
            self._data.append(stream.getvalue()[: 40 if i in broken else None])
        self.labels = list(range(n))

    def __len__(self) -> int:
        return len(self._data)

    def read(self, i: int) -> bytes:
        return self._data[i]

    def where(self, i: int) -> str:
        return f"jpeg {i}"


@pytest.mark.parametrize("size", [(32, 32), (96, 160), (224, 224)])
def test_crops_are_the_loaders(size: tuple[int, int]) -> None:
    """Enlarged, shrunk, and so flat that rows come first; mirrored and not; of real photographs."""
    photos, crop = open_source("photos"), RandomCropFlip(size, scale=(0.05, 1.0), ratio=(0.3, 3.0))
    images = [decode(photos.read(i))[:, : 90 if i % 3 else 700] for i in range(0, 18, 2)]
    seeds = list(range(len(images)))
    expected = [crop(image, torch.Generator().manual_seed(seed)) for image, seed in zip(images, seeds, strict=True)]
    assert torch.equal(torch.stack(expected), device.CropOnDevice(crop)(images, seeds))


def test_extremes() -> None:
    noise = torch.randint(0, 256, (3, 300, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = [Box(0, 0, 300, 40, False), Box(10, 5, 1, 1, True), Box(7, 3, 16, 16, False), Box(0, 0, 5, 40, True)]
    expected = [
        resize(noise[:, b.top : b.top + b.height, b.left : b.left + b.width], (16, 16)).flip(*[-1] * b.mirrored)
        if b.mirrored
        else resize(noise[:, b.top : b.top + b.height, b.left : b.left + b.width], (16, 16))
        for b in boxes
    ]
    found = cut([noise] * 4, boxes, (16, 16))
    assert torch.equal(torch.stack(expected), found)
    assert torch.equal(found[2], noise[:, 7:23, 3:19]), "what has the size is left as it is"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_kept_set_gives_the_loaders_batches(workers: int) -> None:
    jpegs, crop = Jpegs(30, broken=(4, 17)), RandomCropFlip((48, 48))
    here = Loader(jpegs, crop, 8, seed=3, crops=2)
    there = Loader(jpegs, crop, 8, seed=3, crops=2, keep="device", workers=workers, device=CPU)
    for epoch in range(2):
        pairs = list(zip(here.epoch(epoch), there.epoch(epoch), strict=True))
        assert len(pairs) == 3
        for a, b in pairs:
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.index, b.index)
            assert torch.equal(a.labels, b.labels)  # type: ignore[arg-type]
    assert here.bad == there.bad
    assert set(there.bad) == {"jpeg 4", "jpeg 17"}
    again = list(Loader(jpegs, crop, 8, seed=3, crops=2, keep="device", device=CPU).epoch(1, 2))
    assert torch.equal(again[0].images, pairs[2][1].images), "in mid-epoch too, bit by bit"


def test_a_kept_set_is_decoded_once_and_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = ImageCache(Jpegs(9), cache_mb=0)
    held = CachedOnDevice(pictures, CPU)
    first = [held.get(i) for i in range(9)]
    monkeypatch.setattr(pictures, "get", None)
    assert all(torch.equal(held.get(i), image) for i, image in enumerate(first))
    pixels, starts = device._joined([held.get(i) for i in (5, 2)])
    assert pixels.data_ptr() == held.get(0).data_ptr()
    assert torch.equal(pixels[starts[1]], held.get(2)[:, 0, 0])


def test_many_channels_stay_together() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 6), dtype=np.uint8)
    source, crop = Arrays("six", pixels, None, None), RandomCropFlip((16, 16))
    here, there = Loader(source, crop, 4, channels=6), Loader(source, crop, 4, channels=6, keep="device", device=CPU)
    assert all(torch.equal(a.images, b.images) for a, b in zip(here.epoch(0), there.epoch(0), strict=True))


def test_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_free", lambda device: 1000)
    with pytest.raises(UserError, match=r'data\.keep "device": .* remask data pack'):
        Loader(Jpegs(4), RandomCropFlip((16, 16)), 2, keep="device", device=CPU)
    with pytest.raises(UserError, match="random crops"):
        Loader(Jpegs(4), CentreCrop((16, 16)), 2, keep="device", device=CPU)


def test_unasked_only_a_small_set_goes_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, cuda = ImageCache(Jpegs(4), cache_mb=0), torch.device("cuda")
    size = pictures.estimate()
    for free, fitting in ((4 * size, True), (4 * size - 4, False)):
        monkeypatch.setattr(device, "_free", lambda device, free=free: free)
        assert device.fits(pictures, cuda, 1024) is fitting
        assert not device.fits(pictures, cuda, 0)
        assert not device.fits(pictures, CPU, 1024)
        assert not device.fits(pictures, None, 1024)


def test_what_has_no_room_after_all_is_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    jpegs = Jpegs(6)
    held = CachedOnDevice(ImageCache(jpegs, cache_mb=0), CPU)
    held._arena, held._room = held._arena[:0], 30_000
    assert all(torch.equal(held.get(i), decode(jpegs.read(i))) for i in (0, 1, 2, 3, 1))
    assert 1 <= len(held._places) <= 2


def test_a_guess_that_was_too_small_grows() -> None:
    photos = open_source("photos")
    small, large = photos.read(3), photos.read(0)
    held = CachedOnDevice(ImageCache(Subset(photos, [3, 3, 0]), cache_mb=0), CPU)
    held._arena = held._arena[: small.nbytes]  # type: ignore[union-attr]
    assert torch.equal(held.get(0), decode(small))
    assert torch.equal(held.get(2), decode(large))
    assert torch.equal(held.get(0), decode(small))


def test_what_is_decoded_there() -> None:
    jpegs = Jpegs(3, broken=(1,), exif=(2,))
    assert [is_plain(jpegs.read(i)) for i in range(3)] == [True, False, False]
    assert not is_plain(b"GIF89a")
    assert not is_plain(b"")


def test_without_cuda_there_is_a_reason() -> None:
    assert no_decoder(CPU, 3) == "cpu is no CUDA device"
    assert no_decoder(None, 3) == "cpu is no CUDA device"
    assert "6" in str(no_decoder(torch.device("cuda"), 6))


def test_what_the_device_cannot_decode_is_decoded_here() -> None:
    """On a device without nvJPEG, which the CPU is one of, every picture takes the other path."""
    jpegs, crop = Jpegs(12, broken=(4,), exif=(5,)), RandomCropFlip((48, 48))
    here, there = Loader(jpegs, crop, 4), Loader(jpegs, crop, 4, on_device=True, device=CPU)
    for a, b in zip(here.epoch(0), there.epoch(0), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)
    assert here.bad == there.bad


@with_cuda
def test_jpegs_on_a_gpu() -> None:
    cuda = torch.device("cuda")
    assert no_decoder(cuda, 3) is None
    jpegs, crop = Jpegs(12, broken=(4,), exif=(5,)), RandomCropFlip((48, 48))
    for i, image in zip((0, 1), decode_on_device([jpegs.read(0), jpegs.read(1)], 3, cuda), strict=True):
        assert (image.cpu().int() - decode(jpegs.read(i)).int()).abs().float().mean() < 2
    here, there = Loader(jpegs, crop, 4), Loader(jpegs, crop, 4, on_device=True, device=cuda)
    for a, b in zip(here.epoch(0), there.epoch(0), strict=True):
        assert b.images.is_cuda
        assert torch.equal(a.index, b.index)
        assert (a.images.int() - b.images.cpu().int()).abs().float().mean() < 2


@with_cuda
def test_a_set_kept_on_a_gpu() -> None:
    jpegs, crop = Jpegs(30, broken=(4,)), RandomCropFlip((48, 48))
    there = Loader(jpegs, crop, 8, keep="device", device=torch.device("cuda"), workers=2)
    for a, b in zip(Loader(jpegs, crop, 8).epoch(0), there.epoch(0), strict=True):
        assert b.images.is_cuda
        assert torch.equal(a.images, b.images.cpu())
