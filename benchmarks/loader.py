"""Images per second and core: our decode + crop against Pillow + torchvision's v1 float transforms, as MAE trains.

One thread, process CPU time, the two interleaved round by round; the ratio is the result, the rates are the machine's.
"""

import io
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image

from remask.images import RandomCropFlip, decode, open_source

PICTURES, ROUNDS, BAR = 200, 9, 2.0


def jpegs() -> list[bytes]:
    """Real photographs as 500x375 JPEGs of quality 90: windows of scikit-image's."""
    photos = open_source("photos")
    generator = torch.Generator().manual_seed(0)
    window = RandomCropFlip((375, 500), scale=(0.3, 1.0))
    encoded = []
    for i in range(PICTURES):
        picture = window(decode(photos.read(i)), generator).permute(1, 2, 0).contiguous().numpy()
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
    """uint8 all the way; the normalisation is left to the device."""
    crop, generator = RandomCropFlip((size, size)), torch.Generator()
    return lambda data: crop(decode(data), generator)


def rate(work: Callable[[bytes], torch.Tensor], data: list[bytes]) -> float:
    """Pictures per second of CPU time."""
    begin = time.process_time()
    for encoded in data:
        work(encoded)
    return len(data) / (time.process_time() - begin)


def measure(size: int, data: list[bytes]) -> dict[str, object]:
    """One row: the median ratio of interleaved rounds, their spread, and both rates."""
    slow, fast = theirs(size), ours(size)
    rate(slow, data[:20]), rate(fast, data[:20])
    pairs = [(rate(slow, data), rate(fast, data)) for _ in range(ROUNDS)]
    ratios = sorted(b / a for a, b in pairs)
    return {
        "name": f"loader {size} px",
        "ratio": statistics.median(ratios),
        "spread": (ratios[0], ratios[-1]),
        "bar": BAR,
        "unit": "x Pillow + torchvision v1, images/s/core",
        "theirs": statistics.median(a for a, _ in pairs),
        "ours": statistics.median(b for _, b in pairs),
    }


def run() -> list[dict[str, object]]:
    """All rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = jpegs()
        return [measure(size, data) for size in (224, 128)]
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for row in run():
        low, high = row["spread"]  # type: ignore[misc]
        print(
            f"{row['name']}: {row['ratio']:.2f}x [{low:.2f}-{high:.2f}] (bar {row['bar']}x): "
            f"{row['theirs']:.0f} -> {row['ours']:.0f} images/s/core"
        )
