"""What a training step costs: forward GFLOP by the flop counter, whole steps beside others', memory kept for backward.

FLOPs and bytes are exact. Times are process CPU seconds on one thread, interleaved round by round. The textbook's step
is that of benchmarks/reference.py: same work, same weights. Each entrant has a process and runs as its user has it
(docs/decisions/0012): the others with PyTorch's for-loop AdamW and freed memory that goes back to the kernel, ours with
the fused AdamW and memory that is kept. `python -m benchmarks alike` gives the others these two as well.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.apart import Maker, apart, rounds
from benchmarks.entrants import Entrant, Seconds, hugging_face, lightly, ours, row, textbook
from remask.backbones.normalise import Normalise
from remask.build.pretraining import build_method
from remask.build.training import gflops_per_image
from remask.recipe import load_recipe
from remask.seeds import generator

Settings = dict[str, object]
Rows = Iterator[dict[str, object]]

FEW, ROUNDS, MORE = 3, 4, 6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANDOM: Settings = {"masking.pattern": "random", "masking.cell": 1, "masking.ratio": 0.75}
FLOPS: list[tuple[str, Settings, float]] = [
    ("mae-vit-b", {}, 19.6),
    ("mae-dmjd-vit-b", {}, 38.2),
    ("convmae-dmjd-convit-b", {}, 78.0),
    ("convmae-dmjd-convit-b", RANDOM, 62.5),
    ("convmae-dmjd-convit-l", RANDOM, 128.5),
]
TEXTBOOK = "the textbook"
PEERS: dict[str, Callable[[Tensor], Entrant]] = {"Hugging Face ViTMAE": hugging_face, "lightly's MAE": lightly}
NO_BF16 = "this CPU has no AVX512-bf16"
GAIN_WITHOUT_AMX = 1.5
"""bf16 over fp32 where vectors alone multiply it: measured 1.85 and 1.89 on an AMD EPYC; twice is what they can do."""


class Case(NamedTuple):
    """What is compared with the textbook, on how many pictures, in how many rounds, and the bars.

    memory   of saved activations (.75 only)   gain   of bf16 over fp32, on processors with AMX tiles
    """

    what: str
    recipe: str
    settings: Settings
    batch: int
    rounds: int
    time: float
    memory: float | None = None
    gain: float | None = None


DMJD = (
    Case("DMJD ViT-B, K = 2, random .75", "mae-dmjd-vit-b", {}, 4, MORE, 1.10, 0.8, 2.8),
    Case("DMJD ConViT-B, K = 2, random .75", "convmae-dmjd-convit-b", RANDOM, 2, FEW, 1.6, 0.65, 2.6),
    Case("DMJD ConViT-B, K = 2, block .6", "convmae-dmjd-convit-b", {}, 2, FEW, 1.45),
)


def trained(make: Callable[..., Entrant], recipe: str, settings: Settings, batch: int, *dtype: torch.dtype) -> Entrant:
    """A recipe's method in training, on noise of 8 bits; `make` is `ours` or `textbook`."""
    chosen = load_recipe(recipe, settings, environment={})
    size = (batch, chosen.data.channels, *chosen.data.image_size)
    return make(build_method(chosen), torch.randint(0, 256, size, dtype=torch.uint8, generator=generator(0)), *dtype)


def peer(name: str, batch: int) -> Entrant:
    """Another library's MAE ViT-B; its pictures are normalised before the step."""
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, generator=generator(0))
    return PEERS[name](Normalise(MEAN, STD)(images))


def compared(name: str, times: Sequence[dict[str, Seconds]], other: str, bar: float, *, alike: bool) -> Rows:
    """Another's step over ours: as each runs; or with memory alike, and then the optimizer too: never below 1."""
    name, own = f"{name}: {other} against ours", [t["ours"].step_fused for t in times]
    usual, fused = [t[other].step for t in times], [t[other].step_fused for t in times]
    yield row(f"{name}, {'memory alike' if alike else 'as each runs'}", divided(usual, own), bar)
    if alike:
        yield row(f"{name}, memory and AdamW alike", divided(fused, own), 1.0)


def divided(theirs: Sequence[float], own: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(theirs, own, strict=True)]


def flops() -> Rows:
    for name, settings, bar in FLOPS:
        what = f"forward GFLOP per image, {name}{', random .75' if settings else ''}"
        cost = gflops_per_image(load_recipe(name, settings, environment={}))
        yield {"name": what, "ratio": cost, "bar": -bar, "unit": "GFLOP"}


def mae(batch: int = 4, *, alike: bool = False) -> Rows:
    """ViT-B at K = 1 beside the textbook and two libraries."""
    recipe: tuple[str, Settings, int] = ("mae-vit-b", {}, batch)
    makers = {"ours": Maker(partial(trained, ours, *recipe), keep=True)}
    makers[TEXTBOOK] = Maker(partial(trained, textbook, *recipe), keep=alike)
    makers |= {name: Maker(partial(peer, name, batch), keep=alike) for name in PEERS}
    with apart(makers) as entrants:
        times = rounds(entrants, ROUNDS)
    for other in (TEXTBOOK, *PEERS):
        yield from compared(f"MAE ViT-B, batch {batch}, fp32", times, other, 1.05, alike=alike)
    if not alike:
        loop = [t[TEXTBOOK].usual / t[TEXTBOOK].fused for t in times]
        yield row("AdamW of ViT-B's MAE: for-loop against fused", loop, 2.5)


def dmjd(case: Case, *, alike: bool = False) -> Rows:
    """One backbone and masking beside the textbook: time, and unless `alike` bytes, and bf16 where the CPU has it."""
    recipe, name = (case.recipe, case.settings, case.batch), f"{case.what}, batch {case.batch}"
    makers = {"ours": Maker(partial(trained, ours, *recipe), keep=True)}
    makers[TEXTBOOK] = Maker(partial(trained, textbook, *recipe), keep=alike)
    if bf16() and not alike:
        makers["ours, bf16"] = Maker(partial(trained, ours, *recipe, torch.bfloat16), keep=True)
        makers["the textbook, bf16"] = Maker(partial(trained, textbook, *recipe, torch.bfloat16), keep=False)
    with apart(makers) as entrants:
        times = rounds(entrants, case.rounds)
        yield from compared(f"{name}, fp32", times, TEXTBOOK, case.time, alike=alike)
        if case.memory and not alike:
            share = entrants["ours"].saved_bytes() / entrants[TEXTBOOK].saved_bytes()
            said = f"saved activations, {name}, fp32: ours against the textbook's"
            yield {"name": said, "ratio": share, "bar": -case.memory, "unit": "x"}
    if not alike:
        yield from half(name, case, times)


def half(name: str, case: Case, times: Sequence[dict[str, Seconds]]) -> Rows:
    """bf16 against bf16, and ours against ours in fp32."""
    bars = {f"{name}, bf16: the textbook against ours, as each runs": case.time}
    if case.gain:
        bars[f"{name}: ours in fp32 against bf16"] = case.gain if amx() else GAIN_WITHOUT_AMX
    if not bf16():
        yield from ({"name": said, "bar": bar, "unit": "x", "unmeasured": NO_BF16} for said, bar in bars.items())
        return
    own = [t["ours, bf16"].step_fused for t in times]
    others = [t["the textbook, bf16"].step for t in times], [t["ours"].step_fused for t in times]
    for (said, bar), other in zip(bars.items(), others, strict=False):
        yield row(said, divided(other, own), bar)


def amx() -> bool:
    """Whether this CPU multiplies tiles of bf16, several times as fast as its vector unit does."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


def bf16() -> bool:
    """Whether this CPU multiplies bf16 itself."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def scaling() -> Rows:
    """What a step costs as views and pixels grow."""
    small: Settings = {"backbone.name": "vit_small_patch16_224", "method.decoder_depth": 4}
    runs = {f"K = {k}": ("mae-dmjd-vit-b", {**small, "dm.views": k}, 4) for k in (1, 2, 4)}
    runs |= {f"{side} px": ("fastmim-vit-b", {"data.image_size": side}, 2) for side in (224, 128)}
    with apart({name: Maker(partial(trained, ours, *run), keep=True) for name, run in runs.items()}) as entrants:
        times = [{name: seconds.step_fused for name, seconds in t.items()} for t in rounds(entrants, FEW)]
    for k in (2, 4):
        share = [t[f"K = {k}"] / t["K = 1"] / k for t in times]
        yield row(f"step time, K = {k} against K times K = 1, ViT-S", share, -1.15)
    share = [t["128 px"] / t["224 px"] for t in times]
    yield row("step time, FastMIM ViT-B at 128 px against 224 px", share, -0.42)


def run() -> Rows:
    """All rows, as they are found."""
    yield from flops()
    yield from mae()
    yield from scaling()
    for case in DMJD:
        yield from dmjd(case)
