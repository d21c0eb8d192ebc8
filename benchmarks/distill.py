"""What teachers cost: a step of DMAE and of MOMA with one and with two teachers beside one of MAE, in one run.

FLOPs are exact, by the flop counter, and held against their bound: what the student's step costs, and the teachers'
blocks that are used, once forward. Times are process CPU seconds on one thread, interleaved round by round. Memory is
the peak of a fresh process, less what it held before it built anything.

By default all widths are a quarter of those of ViT-L → ViT-B at 224 px, so that a CPU is done in minutes;
`python -m benchmarks.distill --scale 1` measures the published sizes.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from remask.backbones.vit import ViT, create_vit
from remask.masking import Masking
from remask.method import Method
from remask.methods import dmae, mae, moma
from remask.seeds import generator
from remask.targets import Pixels, TokenTeacher
from remask.training.optim import adamw, parameter_groups
from remask.training.runtime import keep_freed_memory

ROUNDS = 3
ROWS = ("MAE", "DMAE", "MOMA, one teacher", "MOMA, two teachers")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sizes:
    """Pixels, patch, batch, the share hidden, and by what the widths of ViT-B, ViT-L and decoder are divided."""

    pixels: int = 224
    patch: int = 16
    batch: int = 2
    ratio: float = 0.75
    scale: int = 4

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels, self.pixels

    def network(self, width: int, depth: int, heads: int) -> ViT:
        small = {"patch_size": self.patch, "embed_dim": width // self.scale, "depth": depth}
        small |= {"num_heads": max(1, heads // self.scale)}
        return create_vit("vit_base_patch16_224", self.size, MEAN, STD, overrides=small)

    def teacher(self, sees: str) -> TokenTeacher:
        network, patch = self.network(1024, 24, 16), (self.patch, self.patch)
        layer, norm = (17, "unit") if sees == "view" else (23, "layer")
        return TokenTeacher(network, patch, MEAN, STD, layer=layer, sees=sees, norm=norm, name="ViT-L")  # type: ignore[arg-type]

    def method(self, name: str) -> Method:
        """A row: the student is a ViT-B that hides the same share in all of them."""
        student, masking = self.network(768, 12, 12), Masking(self.ratio)
        if name.startswith("MOMA"):
            return moma(student, masking, [self.teacher("image") for _ in range(1 + name.endswith("two teachers"))])
        pixels = Pixels((self.patch, self.patch), MEAN, STD)
        decoder = {"width": 512 // self.scale, "depth": 8, "heads": max(1, 16 // self.scale)}
        if name == "MAE":
            return mae(student, masking, pixels, self.size, **decoder)
        return dmae(student, masking, pixels, [self.teacher("view")], self.size, [8], **decoder)

    def images(self) -> Tensor:
        return torch.randint(0, 256, (self.batch, 3, *self.size), dtype=torch.uint8, generator=generator(0))


class Step:
    """Forward, backward and AdamW."""

    def __init__(self, name: str, sizes: Sizes) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.method, self.images = sizes.method(name), sizes.images()
        self.optimizer = adamw(parameter_groups(self.method.named_parameters(), 0.05), 1e-4, (0.9, 0.95))

    def seconds(self) -> float:
        began = time.process_time()
        self.method(self.images)["total"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.process_time() - began

    def flops(self) -> int:
        """Forward and backward, all of it."""
        with FlopCounterMode(display=False) as counter:
            self.method(self.images)["total"].backward()
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops()

    def teachers_flops(self) -> int:
        """Of the blocks that are used, on the tokens that they see: counted block by block, apart from the method."""
        views, flops = self.method.draw(self.images, generator(0)), 0
        for target in (branch.target for branch in self.method.branches if isinstance(branch.target, TokenTeacher)):
            network = target.network.held[0]
            seen = views.visible.shape[1] if target.per_view else views.mask.shape[-1]
            tokens = torch.zeros(len(self.images), network.prefix + seen, network.width)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network.network.blocks[0](tokens)
            flops += (target.layer + 1) * counter.get_total_flops()
        return flops


def bounds(sizes: Sizes) -> dict[str, tuple[float, float]]:
    """By row: FLOPs of a step over those of its student and its teachers' blocks, and over those of MAE's step."""
    found, mae_step = {}, Step("MAE", sizes).flops()
    for name in ROWS[1:]:
        step = Step(name, sizes)
        flops, teachers = step.flops(), step.teachers_flops()
        student = mae_step if name == "DMAE" else flops_of_student(sizes)
        found[name] = flops / (student + teachers), flops / mae_step
    return found


def flops_of_student(sizes: Sizes) -> int:
    """Of MOMA's student alone, forward and backward: a ViT on visible tokens, without a decoder."""
    step = Step("MAE", sizes)
    views = step.method.draw(step.images, generator(0))
    with FlopCounterMode(display=False) as counter:
        features = step.method.encode(step.images, views)[-1]
        (features.tokens.sum() + features.prefix.sum()).backward()
    return counter.get_total_flops()


def times(sizes: Sizes) -> dict[str, list[float]]:
    """Seconds of each row's step over MAE's, round by round."""
    steps = {name: Step(name, sizes) for name in ROWS}
    for step in steps.values():
        step.seconds()
    rounds = [{name: step.seconds() for name, step in steps.items()} for _ in range(ROUNDS)]
    return {name: [seconds[name] / seconds["MAE"] for seconds in rounds] for name in ROWS[1:]}


def memory(name: str, sizes: Sizes) -> float:
    """MB that three steps of a row take beyond an empty process, by a process of its own."""
    command = [sys.executable, "-m", "benchmarks.distill", "--peak", name, "--sizes", json.dumps(asdict(sizes))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(name: str, sizes: Sizes) -> float:
    """What `memory` asks its process for."""
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.ones(64, 64, requires_grad=True).square().sum().backward()  # what torch loads late
    before = peak_mb()
    step = Step(name, sizes)
    for _ in range(3):
        step.seconds()
    return peak_mb() - before


def peak_mb() -> float:
    """Most that this process has held. Linux hands getrusage's number on to children, so it is read elsewhere there."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(sizes: Sizes | None = None) -> Iterator[dict[str, object]]:
    """All rows, as they are found. A time's bar is 1.25 times its FLOPs: small products are less efficient."""
    sizes = sizes or Sizes()
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    flops = bounds(sizes)
    for name, (share, _) in flops.items():
        what = f"FLOPs of a step, {name}, against the student's and the teachers' used blocks"
        yield {"name": what, "ratio": share, "bar": -1.05, "unit": "x"}
    for name, ratios in times(sizes).items():
        what = f"step time, {name}, against MAE ({flops[name][1]:.2f} times its FLOPs)"
        spread = min(ratios), max(ratios)
        bar = -1.25 * flops[name][1]
        yield {"name": what, "ratio": statistics.median(ratios), "spread": spread, "bar": bar, "unit": "x"}
    held = {name: memory(name, sizes) for name in ROWS}
    for name in ROWS[1:]:
        what = f"peak memory of training, {name}, against MAE's {held['MAE']:.0f} MB"
        yield {"name": what, "ratio": held[name] / held["MAE"], "bar": -2.0, "unit": "x"}
    torch.set_num_threads(threads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the rows for other sizes, or the peak of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in asdict(Sizes()).items():
        parser.add_argument(f"--{key}", type=type(value), default=value)
    parser.add_argument("--peak", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    sizes = Sizes(**(given.sizes or {key: getattr(given, key) for key in asdict(Sizes())}))
    if given.peak:
        print(peak(given.peak, sizes))
        return
    for row in run(sizes):
        low, high = row.get("spread", (row["ratio"], row["ratio"]))  # type: ignore[misc]
        limit = -float(row["bar"])  # type: ignore[arg-type]
        print(f"{row['name']}: {row['ratio']:.3f} x [{low:.2f}-{high:.2f}] (at most {limit:.2f})", flush=True)


if __name__ == "__main__":
    main()
