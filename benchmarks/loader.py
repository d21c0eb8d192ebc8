"""Images per second and core: our decode + crop against Pillow + torchvision's v1 float transforms, as MAE trains.

One thread, process CPU time, the two interleaved round by round; the ratio is the result, the rates are the machine's.
"""

import io
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image

from remask.images import RandomCropFlip, decode, open_source

ROUNDS = 9
CASES = ((224, (375, 500), 2.0), (128, (375, 500), 2.4), (128, (2250, 3000), 2.4))
"""Pixels of a crop and of the photographs, and the bar. The large ones are decoded no larger than their crop needs."""


def jpegs(shape: tuple[int, int]) -> list[bytes]:
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
    return encoded


def theirs(size: int) -> Callable[[bytes], torch.Tensor]:
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
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def ours(size: int) -> Callable[[bytes], torch.Tensor]:
    """uint8 all the way, as with `data.reduced`; the normalisation is left to the device."""
    crop, seeds = RandomCropFlip((size, size)), itertools.count()

    def work(data: bytes) -> torch.Tensor:
        seed = next(seeds)

        def allowed(rows: int, columns: int) -> int:
            return crop.reduction(rows, columns, torch.Generator().manual_seed(seed))

        return crop(decode(data, reduction=allowed), torch.Generator().manual_seed(seed))

    return work


def rate(work: Callable[[bytes], torch.Tensor], data: list[bytes]) -> float:
    """Pictures per second of CPU time."""
    begin = time.process_time()
    for encoded in data:
        work(encoded)
    return len(data) / (time.process_time() - begin)


def measure(size: int, shape: tuple[int, int], bar: float) -> dict[str, object]:
    """One row: the median ratio of interleaved rounds, their spread, and both rates."""
    data, slow, fast = jpegs(shape), theirs(size), ours(size)
    rate(slow, data[:20]), rate(fast, data[:20])
    pairs = [(rate(slow, data), rate(fast, data)) for _ in range(ROUNDS)]
    ratios = sorted(b / a for a, b in pairs)
    return {
        "name": f"loader {size} px of {shape[1]}×{shape[0]}",
        "ratio": statistics.median(ratios),
        "spread": (ratios[0], ratios[-1]),
        "bar": bar,
        "unit": "x Pillow + torchvision v1, images/s/core",
        "theirs": statistics.median(a for a, _ in pairs),
        "ours": statistics.median(b for _, b in pairs),
    }


def run() -> list[dict[str, object]]:
    """All rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [measure(*case) for case in CASES]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for row in run():
        low, high = row["spread"]  # type: ignore[misc]
        print(
            f"{row['name']}: {row['ratio']:.2f}x [{low:.2f}-{high:.2f}] (bar {row['bar']}x): "
            f"{row['theirs']:.0f} -> {row['ours']:.0f} images/s/core"
        )
