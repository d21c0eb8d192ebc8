"""What a training step costs: forward GFLOP by the flop counter, whole steps beside others', memory kept for backward.

FLOPs and bytes are exact. Times are process CPU seconds on one thread, interleaved round by round. All entrants reuse
freed memory alike (`keep_freed_memory`). The textbook's step is that of benchmarks/reference.py: same work, same
weights. "each with its own AdamW" is what a user of the other gets: PyTorch's for-loop there, the fused form here;
"same AdamW" is fused on both sides.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.entrants import Entrant, Seconds, hugging_face, lightly, ours, rounds, row, textbook
from remask.backbones.normalise import Normalise
from remask.build import build_method, gflops_per_image
from remask.recipe import load_recipe
from remask.runtime import generator, keep_freed_memory

Settings = dict[str, object]
Rows = Iterator[dict[str, object]]

ROUNDS, FEW = 4, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANDOM: Settings = {"masking.pattern": "random", "masking.cell": 1, "masking.ratio": 0.75}
FLOPS: list[tuple[str, Settings, float]] = [
    ("mae-vit-b", {}, 19.6),
    ("mae-dmjd-vit-b", {}, 38.2),
    ("convmae-dmjd-convit-b", {}, 78.0),
    ("convmae-dmjd-convit-b", RANDOM, 62.5),
    ("convmae-dmjd-convit-l", RANDOM, 128.5),
]
DMJD: list[tuple[str, str, Settings, int, int, float, float]] = [
    ("DMJD ViT-B, K = 2, random .75", "mae-dmjd-vit-b", {}, 4, 7, 1.10, 0.8),
    ("DMJD ConViT-B, K = 2, random .75", "convmae-dmjd-convit-b", RANDOM, 2, 3, 1.6, 0.65),
    ("DMJD ConViT-B, K = 2, block .6", "convmae-dmjd-convit-b", {}, 2, 4, 1.45, 0.65),
]
"""What, recipe, what is changed in it, pictures, rounds (more where the bar is near), bars of time and of memory.

The bar of memory is for .75."""
NO_BF16 = "this CPU has no AVX512-bf16"


def pictures(count: int, size: tuple[int, int] = (224, 224)) -> Tensor:
    """Noise, 8 bits."""
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator(0))


def built(name: str, settings: Settings):  # type: ignore[no-untyped-def]
    """A recipe's method."""
    return build_method(load_recipe(name, settings, environment={}))


def compared(name: str, times: list[dict[str, Seconds]], other: str, bar: float) -> Rows:
    """Two rows: another's step over ours, as each is used, and with the same optimizer."""
    own = [(t[other].step / t["ours"].step_fused) for t in times]
    yield row(f"{name}, each with its own AdamW", own, bar)
    yield row(f"{name}, same AdamW", [t[other].step_fused / t["ours"].step_fused for t in times], 1.0)


def flops() -> Rows:
    for name, settings, bar in FLOPS:
        what = f"forward GFLOP per image, {name}{', random .75' if settings else ''}"
        cost = gflops_per_image(load_recipe(name, settings, environment={}))
        yield {"name": what, "ratio": cost, "bar": -bar, "unit": "GFLOP"}


def mae() -> Rows:
    """ViT-B at K = 1 beside the textbook and two libraries."""
    images, method = pictures(4), built("mae-vit-b", {})
    pixels = Normalise(MEAN, STD)(images)
    entrants = {"the textbook": textbook(method, images), "Hugging Face ViTMAE": hugging_face(pixels)}
    entrants |= {"lightly's MAE": lightly(pixels), "ours": ours(method, images)}
    times = rounds(entrants, ROUNDS)
    for other in [*entrants][:-1]:
        yield from compared(f"MAE ViT-B, batch 4, fp32: {other} against ours", times, other, 1.05)
    loop = [t["the textbook"].usual / t["the textbook"].fused for t in times]
    yield row("AdamW of ViT-B's MAE: for-loop against fused", loop, 2.5)


def dmjd(what: str, recipe: str, settings: Settings, batch: int, count: int, bar: float, memory: float) -> Rows:
    """One backbone and masking, in fp32 and where the CPU has it in bf16."""
    images, name = pictures(batch), f"{what}, batch {batch}"
    method = built(recipe, settings)
    entrants = {"the textbook": textbook(method, images), "ours": ours(method, images)}
    times = rounds(entrants, count)
    yield from compared(f"{name}, fp32: the textbook against ours", times, "the textbook", bar)
    if "block" not in what:
        share = entrants["ours"].saved_bytes() / entrants["the textbook"].saved_bytes()
        said = f"saved activations, {name}, fp32: ours against the textbook's"
        yield {"name": said, "ratio": share, "bar": -memory, "unit": "x"}
    yield from half(name, recipe, settings, images, bar, entrants["ours"])


def half(name: str, recipe: str, settings: Settings, images: Tensor, bar: float, single: Entrant) -> Rows:
    """bf16 against bf16, and ours against ours in fp32."""
    said = f"{name}, bf16: the textbook against ours, each with its own AdamW"
    gain = f"{name}: ours in fp32 against bf16"
    gain_bar = None if "block" in name else 2.8 if "ViT-B" in name and "ConViT" not in name else 2.6
    if not bf16():
        yield {"name": said, "bar": bar, "unit": "x", "unmeasured": NO_BF16}
        if gain_bar:
            yield {"name": gain, "bar": gain_bar, "unit": "x", "unmeasured": NO_BF16}
        return
    method = built(recipe, settings)
    entrants = {"the textbook": textbook(method, images, torch.bfloat16), "fp32": single}
    entrants["ours"] = ours(method, images, torch.bfloat16)
    times = rounds(entrants, ROUNDS)
    yield row(said, [t["the textbook"].step / t["ours"].step_fused for t in times], bar)
    if gain_bar:
        yield row(gain, [t["fp32"].step_fused / t["ours"].step_fused for t in times], gain_bar)


def bf16() -> bool:
    """Whether this CPU multiplies bf16 itself."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def scaling() -> Rows:
    """What a step costs as views and pixels grow."""
    small: Settings = {"backbone.name": "vit_small_patch16_224", "method.decoder_depth": 4}
    images = pictures(4)
    views = {k: ours(built("mae-dmjd-vit-b", {**small, "dm.views": k}), images) for k in (1, 2, 4)}
    times = rounds({str(k): entrant for k, entrant in views.items()}, FEW)
    for k in (2, 4):
        share = [t[str(k)].step_fused / t["1"].step_fused / k for t in times]
        yield row(f"step time, K = {k} against K times K = 1, ViT-S", share, -1.15)
    sides = {str(s): ours(built("fastmim-vit-b", {"data.image_size": s}), pictures(2, (s, s))) for s in (224, 128)}
    share = [t["128"].step_fused / t["224"].step_fused for t in rounds(sides, FEW)]
    yield row("step time, FastMIM ViT-B at 128 px against 224 px", share, -0.42)


def run() -> Rows:
    """All rows, as they are found."""
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts: list[Callable[[], Rows]] = [flops, mae, scaling]
        for part in parts:
            yield from part()
        for case in DMJD:
            yield from dmjd(*case)
    finally:
        torch.set_num_threads(threads)
