"""What the HOG target costs as bags of table rows, against the plain form that spreads pixels over an axis of bins.

Times are process CPU seconds on one thread, the two forms interleaved round by round; the ratio counts.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from remask.runtime import generator, keep_freed_memory
from remask.targets.hog import Flavour, Hog, central_gradient, sobel_gradient

ROUNDS, BATCH = 7, 16
BARS: dict[Flavour, tuple[float, float]] = {"central": (3.0, 7.0), "sobel": (2.0, 2.0)}
"""Of the flavours, as it is and compiled."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plain(pixels: Tensor, flavour: Flavour, cell: int, bins: int) -> Tensor:
    """[B, C, bins, h, w] from float pixel values 0..255, as the papers' code does it: one plane per bin, then sums."""
    down, right = (central_gradient if flavour == "central" else sobel_gradient)(pixels)
    magnitude = torch.hypot(down, right)
    across, along = (down, right) if flavour == "central" else (right, down)
    index = (torch.atan2(across, along) * (bins / math.pi) + 5e-7).floor().remainder(bins).long()
    b, c, h, w = pixels.shape
    rows, cols = h // cell, w // cell
    planes = pixels.new_zeros(b, c, bins, h, w).scatter_(2, index.unsqueeze(2), magnitude.unsqueeze(2))
    cells = planes[..., : rows * cell, : cols * cell].unflatten(-1, (cols, cell)).unflatten(-3, (rows, cell))
    sums = cells.sum((-3, -1))
    return sums / cell**2 if flavour == "central" else sums


def plain_target(target: Hog, images: Tensor) -> Tensor:
    """The whole target with `plain` in it."""
    histogram = plain(images.float(), target.flavour, target.cell, target.bins)
    histogram = F.layer_norm(histogram.movedim(2, -1), (target.bins,)).movedim(-1, 2)
    return target._tokens(histogram)


def pictures() -> Tensor:
    """8-bit pictures as smooth as photographs: coarse noise enlarged sixteen times, with some fine noise on it."""
    draw = generator(0)
    coarse = 255 * torch.rand(BATCH, 3, 14, 14, generator=draw)
    fine = 12 * torch.randn(BATCH, 3, 224, 224, generator=draw)
    return (F.interpolate(coarse, (224, 224), mode="bicubic") + fine).clamp(0, 255).to(torch.uint8)


def run() -> Iterator[dict[str, object]]:
    """Two rows a flavour, of the whole target with LayerNorm: as it is, and compiled."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = pictures()
    for flavour, bars in BARS.items():
        target = Hog((16, 16), MEAN, STD, flavour)
        what = f"HOG {flavour} target, batch {BATCH}: plain form against ours"
        forms: list[tuple[str, Callable[[Tensor], Tensor], float]] = [(what, target, bars[0])]
        if shutil.which("c++") or shutil.which("g++"):
            forms.append((f"{what}, compiled", torch.compile(target.forward), bars[1]))
        else:
            missing = "no C++ compiler here"
            yield {"name": f"{what}, compiled", "bar": bars[1], "unit": "x", "unmeasured": missing}
        for name, form, bar in forms:
            torch.testing.assert_close(form(images), plain_target(target, images), atol=1e-5, rtol=0)
            times = [seconds(plain_target, target, images) / seconds(form, images) for _ in range(ROUNDS)]
            spread = min(times), max(times)
            yield {"name": name, "ratio": statistics.median(times), "spread": spread, "bar": bar, "unit": "x"}
    torch.set_num_threads(threads)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Process CPU time of a call."""
    began = time.process_time()
    work(*arguments)
    return time.process_time() - began
