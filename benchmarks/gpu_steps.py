"""Parts of `make bench-gpu`: steps of published sizes, beside the textbook's, and what surrounds them."""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.entrants import row
from benchmarks.reference import Reference
from remask.build.pretraining import build_method
from remask.build.training import gflops_per_image
from remask.recipe import Recipe, load_recipe
from remask.seeds import generator
from remask.training.optim import adamw, parameter_groups
from remask.training.runtime import Runtime

Rows = Iterator[dict[str, Any]]
SMALL = {"data.image_size": 32, "method.decoder_width": 32, "method.decoder_depth": 1, "method.decoder_heads": 4}
TINY = {"vit": {"backbone.name": "vit_micro", "backbone.width": 32, "backbone.heads": 2}}
TINY["convit"] = {"backbone.name": "convvit_micro"}


@dataclass(frozen=True)
class Case:
    """A recipe, its bars in percent of the card's rate and against the textbook, and the pictures of the latter."""

    what: str
    recipe: str
    mfu: float
    faster: float | None = None
    together: int = 512


CASES = (
    Case("MAE ViT-B", "mae-vit-b", 40),
    Case("DMJD ViT-B, K = 2, .75", "mae-dmjd-vit-b", 40, 1.8),
    Case("DMJD ConViT-B, K = 2, block .6", "convmae-dmjd-convit-b", 25, 2.5, 256),
    Case("MAE ViT-L", "mae-vit-l", 45),
)


@dataclass(frozen=True)
class Session:
    """Where all is measured. Tiny: toy sizes, in fp32 on a CPU, traced but not compiled."""

    device: torch.device
    tiny: bool
    peak: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def how(self) -> str:
        return "toy sizes, fp32, traced" if self.tiny else "bf16, compiled"

    @property
    def backend(self) -> str:
        return "eager" if self.tiny else "inductor"

    @property
    def batch(self) -> int:
        return 2 if self.tiny else 512

    @property
    def steps(self) -> int:
        return 2 if self.tiny else 12

    def recipe(self, case: Case, **more: object) -> Recipe:
        small = {**SMALL, **TINY["convit" if "convit" in case.recipe else "vit"], "backbone.depth": 1}
        return load_recipe(case.recipe, {**(small if self.tiny else {}), **more}, environment={})

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call, on the device."""
        if not self.cuda:
            began = time.perf_counter()
            work()
            return time.perf_counter() - began
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def clean(self) -> None:
        """Give back what a part held."""
        gc.collect()
        torch._dynamo.reset()
        if self.cuda:
            torch.cuda.empty_cache()


@dataclass
class Step:
    """A step as the trainer takes it: masks drawn on the host, forward in autocast, backward, AdamW."""

    model: nn.Module
    images: Any
    draw: Callable[..., Any]
    optimizer: torch.optim.AdamW
    runtime: Runtime
    done: int = field(default=0)

    def __call__(self, images: Any = None) -> None:
        images = self.images if images is None else images
        raw = images[1] if isinstance(images, tuple) else images
        views = self.draw(raw, generator(0, "draw", self.done))
        with self.runtime.autocast():
            loss = self.model(images, views)["total"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1


def ours(session: Session, case: Case, batch: int, mode: str | None = None) -> Step:
    """Compiled, in bf16; `mode` is torch.compile's."""
    recipe = session.recipe(case)
    method = build_method(recipe)
    runtime = Runtime(session.device, session.dtype)
    runtime.prepare(method)
    optimizer = adamw(parameter_groups(method.named_parameters(), 0.05), 1e-4, (0.9, 0.95))
    images = pictures(session, batch, recipe.data.image_size)
    how: dict[str, str] = {"mode": mode} if mode else {"backend": session.backend}
    method.forward = torch.compile(method.forward, dynamic=False, **how)
    return Step(method, images, method.draw, optimizer, runtime)


def textbook(session: Session, case: Case, batch: int) -> Step:
    """Eager, with automatic mixed precision."""
    recipe = session.recipe(case)
    reference = Reference(build_method(recipe)).to(session.device)
    images = reference.prepare(pictures(session, batch, recipe.data.image_size))
    return Step(reference, images, reference.draw, reference.optimizer(), Runtime(session.device, session.dtype))


def pictures(session: Session, count: int, size: tuple[int, int]) -> Tensor:
    """Noise, 8 bits, on the device."""
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator(0)).to(session.device)


def speed(session: Session, case: Case) -> Rows:
    """MFU, and whether the host ever waits or compiles again."""
    torch._dynamo.utils.counters.clear()
    step = ours(session, case, session.batch)
    for _ in range(3):
        step()
    if session.cuda:
        torch.cuda.reset_peak_memory_stats()
    before = compilations()
    waits = host_waits(session, step)
    took = statistics.median(session.seconds(step) for _ in range(session.steps))
    rate, views = session.batch / took, step.model.masking.views  # type: ignore[union-attr]
    flops = 3e9 * gflops_per_image(session.recipe(case))
    peak = torch.cuda.max_memory_allocated() / 1e9 if session.cuda else 0.0
    facts = {"images_per_s": rate, "views_per_s": rate * views, "peak_gb": peak}  # type: ignore[operator]
    said = ", ".join(
        f"{value:.1f} {key.replace('_per_', '/').replace('peak_gb', 'GB')}" for key, value in facts.items()
    )
    what = f"{case.what}, batch {session.batch}, {session.how}"
    yield {
        "name": f"{what}: MFU ({said})",
        "ratio": 100 * rate * flops / session.peak,
        "bar": case.mfu,
        "unit": "%",
    } | facts
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    yield {"name": f"{what}: graph breaks", "ratio": breaks, "bar": -0.5, "unit": ""}
    yield {
        "name": f"{what}: compilations after the third step",
        "ratio": compilations() - before,
        "bar": -0.5,
        "unit": "",
    }
    yield waits | {"name": f"{what}: steps in which the host waits for the device", "bar": -0.5, "unit": ""}


def compilations() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def host_waits(session: Session, step: Step) -> dict[str, Any]:
    """One step in which CUDA raises where the host would wait."""
    if not session.cuda:
        return {"unmeasured": "no CUDA device"}
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return {"ratio": 1, "why": str(error).splitlines()[0]}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"ratio": 0}


def against(session: Session, case: Case) -> Rows:
    """Interleaved with the textbook, at a batch that both can hold."""
    assert case.faster
    batch, found = min(session.batch, case.together), None
    while found is None:
        with contextlib.suppress(torch.OutOfMemoryError):
            found = interleaved(session, [textbook(session, case, batch), ours(session, case, batch)])
        if found is None:
            batch //= 2
            session.clean()
    name = f"{case.what}, batch {batch}, {session.how}: the textbook, eager, against ours"
    yield row(name, [theirs / own for theirs, own in found], case.faster)


def interleaved(session: Session, entrants: Sequence[Step]) -> list[list[float]]:
    for step in entrants:
        step(), step()
    return [[session.seconds(step) for step in entrants] for _ in range(session.steps)]


def graphs(session: Session) -> Rows:
    """A small network on few pictures, where launching kernels is most of the work: with CUDA graphs and without."""
    case, batch = Case("DMJD ViT-Ti", "dmjd-vit-tiny", 0), 32
    name = f"{case.what}, batch {batch}, {session.how}: without CUDA graphs against with them"
    if not session.cuda:
        yield {"name": name, "bar": 1.0, "unit": "x", "unmeasured": "no CUDA device"}
        return
    found = interleaved(session, [ours(session, case, batch), ours(session, case, batch, "reduce-overhead")])
    yield row(name, [plain / graph for plain, graph in found], 1.0)


def surroundings(session: Session, case: Case) -> Rows:
    """Target, distances (forward and backward) and AdamW by themselves, over the whole step."""
    step = ours(session, case, session.batch)
    method: Any = step.model
    for _ in range(3):
        step()
    whole = statistics.median(session.seconds(step) for _ in range(session.steps))
    views = method.draw(step.images, generator(0))
    target, masked, visible = method.branches[0].target, *(views.ids(r) for r in ("masked", "visible"))
    size, device = target.width, session.device
    predictions = [torch.randn(*ids.shape, size, device=device, requires_grad=True) for ids in (masked, visible)]

    def around(images: Tensor, masked_rows: Tensor, visible_rows: Tensor) -> Tensor:
        everything = target(images, views)
        pairs = zip((masked_rows, visible_rows), method.branches, strict=True)
        terms = [b.term(b.distance(rows, views.gather(everything, b.region)).mean()) for rows, b in pairs]
        return torch.stack(terms).sum()

    compiled = torch.compile(around, backend=session.backend, dynamic=False)
    with step.runtime.autocast():
        method(step.images, views)["total"].backward()

    def aside() -> None:
        compiled(step.images, *predictions).backward()
        step.optimizer.step()

    for _ in range(3):
        aside()
    share = [100 * session.seconds(aside) / whole for _ in range(session.steps)]
    yield row(f"{case.what}: HOG, loss and optimiser, share of the step", share, -8, "%")
