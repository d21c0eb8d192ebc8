"""Images per second and core: our decode + crop against Pillow + torchvision's v1 float transforms, as MAE trains.

One thread, process CPU time, all interleaved round by round; the ratio is the result, the rates are the machine's. The
rows below the first three take 224-px crops of the same photographs after `remask data pack`, kept decoded, and four
crops at a time. The last one trains: pictures of a loader against batches that lie in memory.
"""

import functools
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import entrants
from benchmarks.step import RANDOM
from remask.build.pretraining import build_method
from remask.images.decoding import decode
from remask.images.loading.image_cache import ImageCache
from remask.images.loading.loader import Loader
from remask.images.sources.opening import Source, open_source
from remask.images.tools.packing import Form, pack
from remask.images.transforms import RandomCropFlip
from remask.recipe import load_recipe
from remask.training.runtime import keep_freed_memory

ROUNDS = 7
CASES = ((224, (375, 500), 2.0), (128, (375, 500), 2.4), (128, (2250, 3000), 2.4))
"""Pixels of a crop and of the photographs, and the bar. They are decoded no larger than their crop needs."""

CROPS, BATCH = 4, 8
Work = Callable[[int], object]
"""Work for the i-th picture."""


class Encoded:
    """JPEGs in memory, as a source."""

    name, labels, classes = "photographs", None, None

    def __init__(self, data: list[bytes]) -> None:
        self.data, self.left_out = data, dict[str, int]()

    def __len__(self) -> int:
        return len(self.data)

    def read(self, i: int) -> bytes | np.ndarray:
        return self.data[i]

    def where(self, i: int) -> str:
        return f"photograph {i}"


@functools.cache
def jpegs(shape: tuple[int, int]) -> Encoded:
    """Real photographs as JPEGs of quality 90: windows of scikit-image's."""
    photos = open_source("photos")
    generator = torch.Generator().manual_seed(0)
    window = RandomCropFlip(shape, scale=(0.3, 1.0))
    encoded = []
    for i in range(min(200, 40_000_000 // (shape[0] * shape[1]))):
        picture = window(decode(photos.read(i % len(photos))), generator).permute(1, 2, 0).contiguous().numpy()
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    return Encoded(encoded)


def theirs(size: int, source: Encoded) -> Work:
    """What the official MAE and DMJD code does to each picture."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return lambda i: transform(Image.open(io.BytesIO(source.data[i])).convert("RGB"))


def ours(size: int, source: Source, *, cache_mb: int = 0, reduced: bool = False, crops: int = 1) -> Work:
    """uint8 all the way; the normalisation is left to the device. With several crops, a decode every so many calls."""
    crop, seeds = RandomCropFlip((size, size)), itertools.count()
    pictures, last = ImageCache(source, cache_mb=cache_mb), list[torch.Tensor]()

    def work(i: int) -> torch.Tensor:
        seed = next(seeds)

        def allowed(rows: int, columns: int) -> int:
            return crop.reduction(rows, columns, torch.Generator().manual_seed(seed))

        if seed % crops == 0:
            last[:] = [pictures.get(i, allowed if reduced else None)]
        return crop(last[0], torch.Generator().manual_seed(seed))

    return work


def rate(work: Work, count: int) -> float:
    """Pictures per second of CPU time."""
    begin = time.process_time()
    for i in range(count):
        work(i)
    return count / (time.process_time() - begin)


def compared(slow: Work, ways: dict[str, tuple[Work, float]], count: int) -> list[dict[str, object]]:
    """A row for each way: the median ratio of interleaved rounds, their spread, and both rates."""
    for work in (slow, *(work for work, _ in ways.values())):
        rate(work, count)  # which fills what is kept, too
    rounds = [(rate(slow, count), *(rate(work, count) for work, _ in ways.values())) for _ in range(ROUNDS)]
    rows: list[dict[str, object]] = []
    for column, (name, (_, bar)) in enumerate(ways.items(), 1):
        ratios = [one[column] / one[0] for one in rounds]
        rows.append(
            {
                "name": name,
                "ratio": statistics.median(ratios),
                "spread": (min(ratios), max(ratios)),
                "bar": bar,
                "unit": "x Pillow + torchvision v1, images/s/core",
                "theirs": statistics.median(one[0] for one in rounds),
                "ours": statistics.median(one[column] for one in rounds),
            }
        )
    return rows


def decoded_each_time() -> Iterator[dict[str, object]]:
    """Whole JPEGs, at two sizes of crops and of photographs."""
    for size, shape, bar in CASES:
        source = jpegs(shape)
        ways = {f"loader {size} px of {shape[1]}×{shape[0]}, data.reduced": (ours(size, source, reduced=True), bar)}
        yield from compared(theirs(size, source), ways, len(source))


def decoded_less() -> list[dict[str, object]]:
    """Packed sets, kept pictures, and several crops of a picture, at 224 px."""
    source = jpegs((375, 500))
    with tempfile.TemporaryDirectory() as folder:
        small, raw = Path(folder) / "jpeg.remask", Path(folder) / "raw.remask"
        pack(source, small, Form("jpeg"))
        pack(source, raw, Form("raw"))
        ways = {
            "loader 224 px, packed as JPEG of 256": (ours(224, open_source(str(small))), 2.4),
            "loader 224 px, packed as pixels of 256": (ours(224, open_source(str(raw))), 4.0),
            "loader 224 px, kept in memory": (ours(224, source, cache_mb=1024), 3.0),
            f"loader 224 px, {CROPS} crops a picture": (ours(224, source, crops=CROPS), 3.0),
        }
        return compared(theirs(224, source), ways, len(source))


def training() -> dict[str, object]:
    """MAE steps of ViT-S on pictures of a loader, decoded each time, against steps on batches in memory."""
    shared = Path(__file__).resolve().parents[2] / "shared/data/imagenette160/train.parquet"
    source: Source = open_source(str(shared), limit=512) if shared.is_file() else jpegs((375, 500))
    small: dict[str, object] = {"backbone.name": "vit_small_patch16_224", "method.decoder_depth": 4, **RANDOM}
    batches, ratios = Loader(source, RandomCropFlip((224, 224)), BATCH, keep="never").epoch(0), list[float]()
    images = next(batches).images
    keep_freed_memory()
    step = entrants.ours(build_method(load_recipe("mae-vit-b", small, environment={})), images)
    step.seconds()
    for _ in range(ROUNDS):
        fast = step.seconds().step_fused
        began = time.process_time()
        images.copy_(next(batches).images)
        loading = time.process_time() - began
        ratios.append(fast / (loading + step.seconds().step_fused))
    batches.close()  # type: ignore[attr-defined]
    return {
        "name": "training from a loader against batches in memory, ViT-S, one core",
        "ratio": statistics.median(ratios),
        "spread": (min(ratios), max(ratios)),
        "bar": 0.95,
        "unit": "x",
    }


def run() -> list[dict[str, object]]:
    """All rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*decoded_each_time(), *decoded_less(), training()]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for row in run():
        low, high = row["spread"]  # type: ignore[misc]
        rates = f": {row['theirs']:.0f} -> {row['ours']:.0f} images/s/core" if "ours" in row else ""
        print(f"{row['name']}: {row['ratio']:.2f}x [{low:.2f}-{high:.2f}] (bar {row['bar']}x){rates}")
