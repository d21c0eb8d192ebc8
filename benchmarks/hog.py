"""What the HOG target costs as bags of table rows, against two forms that spread pixels over an axis of bins.

`repeated` has the structure of DMJD's code: every pixel is compared with every bin. `plain` scatters magnitudes into
planes, as MaskFeat's does, which is faster. The bars of the central flavour were set against the first. Times are
process CPU seconds on one thread, the forms interleaved round by round; the ratio counts.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from remask.seeds import generator
from remask.targets.hog import Flavour, Hog, central_gradient, in_cells, sobel_gradient
from remask.training.runtime import keep_freed_memory

ROUNDS, BATCH = 7, 16
Histogram = Callable[[Tensor, Flavour, int, int], Tensor]
"""Float pixel values 0..255, flavour, cell, bins -> [B, C, bins, h, w]."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plain(pixels: Tensor, flavour: Flavour, cell: int, bins: int) -> Tensor:
    """One plane per bin, then sums."""
    magnitude, index = measured(pixels, flavour, bins)
    b, c, h, w = pixels.shape
    rows, cols = h // cell, w // cell
    planes = pixels.new_zeros(b, c, bins, h, w).scatter_(2, index.long().unsqueeze(2), magnitude.unsqueeze(2))
    cells = planes[..., : rows * cell, : cols * cell].unflatten(-1, (cols, cell)).unflatten(-3, (rows, cell))
    sums = cells.sum((-3, -1))
    return sums / cell**2 if flavour == "central" else sums


def repeated(pixels: Tensor, flavour: Flavour, cell: int, bins: int) -> Tensor:
    """Magnitude and bin of a cell's pixels, once for each bin: what equals the bin is summed."""
    magnitude, index = (
        in_cells(part, cell).unsqueeze(1).repeat(1, bins, 1) for part in measured(pixels, flavour, bins)
    )
    sums = (magnitude * (index == torch.arange(bins).unsqueeze(1)).int()).sum(-1)
    b, c, h, w = pixels.shape
    cells = sums.view(b, c, h // cell, w // cell, bins).movedim(-1, 2)
    return cells / cell**2 if flavour == "central" else cells


def measured(pixels: Tensor, flavour: Flavour, bins: int) -> tuple[Tensor, Tensor]:
    """Magnitude of each pixel's gradient, and the number of its bin."""
    down, right = (central_gradient if flavour == "central" else sobel_gradient)(pixels)
    across, along = (down, right) if flavour == "central" else (right, down)
    index = (torch.atan2(across, along) * (bins / math.pi) + 5e-7).floor().remainder(bins)
    return torch.hypot(down, right), index


def whole(form: Histogram, target: Hog, images: Tensor) -> Tensor:
    """The whole target with one of the two in it."""
    histogram = form(images.float(), target.flavour, target.cell, target.bins)
    return target._tokens(F.layer_norm(histogram.movedim(2, -1), (target.bins,)))


def textbook(target: Hog, images: Tensor) -> Tensor:
    """The target in the form of the code that its flavour comes from."""
    return whole(repeated if target.flavour == "central" else plain, target, images)


def pictures() -> Tensor:
    """8-bit pictures as smooth as photographs: coarse noise enlarged sixteen times, with some fine noise on it."""
    draw = generator(0)
    coarse = 255 * torch.rand(BATCH, 3, 14, 14, generator=draw)
    fine = 12 * torch.randn(BATCH, 3, 224, 224, generator=draw)
    return (F.interpolate(coarse, (224, 224), mode="bicubic") + fine).clamp(0, 255).to(torch.uint8)


CASES: tuple[tuple[Flavour, str, Histogram, float, float], ...] = (
    ("central", "every pixel in every bin", repeated, 3.0, 7.0),
    ("central", "planes", plain, 3.0, 3.0),
    ("sobel", "planes", plain, 2.0, 2.0),
)
"""Flavour, the other form's name and itself, and the bars: as ours is, and compiled."""


def run() -> Iterator[dict[str, object]]:
    """Two rows a case, of the whole target with LayerNorm: as it is, and compiled."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = pictures()
    for flavour, called, slow, eager, compiled in CASES:
        target = Hog((16, 16), MEAN, STD, flavour)
        what = f"HOG {flavour} target, batch {BATCH}: {called} against ours"
        forms: list[tuple[str, Callable[[Tensor], Tensor], float]] = [(what, target, eager)]
        if shutil.which("c++") or shutil.which("g++"):
            forms.append((f"{what}, compiled", torch.compile(target.forward), compiled))
        else:
            yield {"name": f"{what}, compiled", "bar": compiled, "unit": "x", "unmeasured": "no C++ compiler here"}
        for name, form, bar in forms:
            torch.testing.assert_close(form(images), whole(slow, target, images), atol=1e-5, rtol=0)
            times = [seconds(whole, slow, target, images) / seconds(form, images) for _ in range(ROUNDS)]
            spread = min(times), max(times)
            yield {"name": name, "ratio": statistics.median(times), "spread": spread, "bar": bar, "unit": "x"}
    torch.set_num_threads(threads)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Process CPU time of a call."""
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began
