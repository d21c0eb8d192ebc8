"""`remask plan`: memory, time, disk and loader that a recipe will take, as numbers and as a page of text."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from remask.errors import UserError
from remask.images.loading.memory import available_mb
from remask.images.sources.opening import open_source
from remask.planning.anatomy import Anatomy, PeakMemory, anatomy, peak_memory
from remask.planning.devices import MFU, device, is_this_machine
from remask.planning.micro_batches import SHARE
from remask.planning.rehearsal import Forecast, dry_run, forecast
from remask.recipe import Recipe, method_label
from remask.runs.progressive import phases
from remask.training.oom import fewest_micro_batches
from remask.training.runtime import Runtime, resolve

IMAGENET = 1_281_167
"""Images of ImageNet-1k's training set."""

CORE = 600.0
"""JPEGs of 500×375 that a core decodes and crops a second: an assumption; remask doctor measures it."""


@dataclass(frozen=True)
class PlanOptions:
    """What the plan is for.

    device    a name of the table of data sheets, or auto, cpu, cuda: this machine
    gpus      number of such devices
    images    of an epoch; None: as many as the recipe's source has, or else ImageNet-1k
    mfu       share of the peak that training reaches; None: MFU, an assumption
    core      images a second that a core decodes
    measure   train the real batch too; only on this machine
    """

    device: str = "auto"
    gpus: int = 1
    images: int | None = None
    mfu: float | None = None
    core: float = CORE
    measure: bool = False

    @property
    def this_machine(self) -> bool:
        """Whether the plan is for this machine."""
        return is_this_machine(self.device)


def plan(recipe: Recipe, options: PlanOptions) -> dict[str, Any]:
    """The numbers of the plan by name, with `measure` also what a step of the real batch took.

    Raises UserError for a batch that the devices cannot share, a device that is not known, and too few images.
    """
    batch, rest = divmod(recipe.optim.batch_size, options.gpus)
    if rest or (options.this_machine and options.gpus > 1):
        raise UserError(
            f"optim.batch_size {recipe.optim.batch_size} cannot be shared by {options.gpus} devices"
            if rest
            else "this machine is planned for one device; for several name one: --device h200"
        )
    counted = anatomy(recipe)
    numbers = _for_this_machine if options.this_machine else _for_named_device
    found = numbers(recipe, options, counted, batch)
    speed, images = found["images_per_s"] * options.gpus, _images(recipe, options)
    steps = min(recipe.optim.epochs * (images // recipe.optim.batch_size), recipe.optim.max_steps or 10**12)
    hours = steps * recipe.optim.batch_size * _size_share(recipe, counted) / speed / 3600
    gpus = options.gpus if found["memory_of"] == "device" else 0
    return {
        "recipe": recipe.name, "method": method_label(recipe), "gpus": gpus, "images": images,
        "epochs": recipe.optim.epochs, "steps": steps, "batch_size": recipe.optim.batch_size, "batch_per_device": batch,
        "checkpointing": recipe.runtime.checkpointing, "across_batch": recipe.across_batch,
        "parameters": {"backbone": counted.backbone, "total": counted.total, "trained": counted.trained},
        "gflops_per_image": {"forward": counted.forward, "training": counted.training}, **found,
        "images_per_s_all": round(speed, 1), "hours": round(hours, 6), "gpu_hours": round(hours * gpus, 6),
        # weights, and two moments of what is trained
        "checkpoint_mb": round((4 * counted.total + 8 * counted.trained) / 2**20, 1),
        "loader": {
            "images_per_s_per_device": found["images_per_s"], "images_per_s_per_core": options.core,
            "cores_per_device": math.ceil(found["images_per_s"] / options.core),
        },
    }  # fmt: skip


def _for_named_device(recipe: Recipe, options: PlanOptions, counted: Anatomy, batch: int) -> dict[str, Any]:
    """The numbers for a device of the table: bytes are counted, the peak is its data sheet's, MFU is assumed."""
    sheet, mfu = device(options.device), options.mfu or MFU
    dtype = torch.float32 if recipe.optim.precision == "fp32" else torch.bfloat16
    room, accumulate = SHARE * sheet.megabytes, recipe.runtime.accumulate
    counted_in: dict[int, PeakMemory] = {}

    def fits(micro_batches: int) -> bool:
        counted_in[micro_batches] = peak_memory(recipe, batch, micro_batches, dtype)
        return counted_in[micro_batches].total <= room

    micro_batches = fewest_micro_batches(fits, batch, recipe.across_batch) if accumulate == "auto" else accumulate
    memory = counted_in.get(micro_batches) or peak_memory(recipe, batch, micro_batches, dtype)
    return {
        "device": sheet.name, "memory_of": "device", "accumulate": micro_batches,
        "memory_mb": {**{name: round(mb, 1) for name, mb in memory._asdict().items()}, "total": round(memory.total, 1)},
        "available_mb": round(sheet.megabytes, 1), "fits": memory.total <= room,
        "images_per_s": round(sheet.tflops * 1e3 * mfu / counted.training, 2), "mfu": mfu, "tflops": sheet.tflops,
    }  # fmt: skip


def _for_this_machine(recipe: Recipe, options: PlanOptions, counted: Anatomy, batch: int) -> dict[str, Any]:
    """The numbers for this machine: a line through two small batches, each trained in a fresh process."""
    name = recipe.runtime.device if options.device == "auto" else options.device
    recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": name})})
    runtime = resolve(name, recipe.optim.precision, recipe.runtime.compile, recipe.runtime.threads)
    expected, room = forecast(recipe, batch, counted.training), _available_mb(runtime)
    accumulate = recipe.runtime.accumulate
    micro_batches = (
        fewest_micro_batches(lambda n: expected.memory_mb(batch, n) <= SHARE * room, batch, recipe.across_batch)
        if accumulate == "auto"
        else accumulate
    )
    total = expected.memory_mb(batch, micro_batches)
    gpu = runtime.device.type == "cuda"
    facts = {
        "device": runtime.describe(), "memory_of": "device" if gpu else "process", "accumulate": micro_batches,
        "memory_mb": {
            "per_image": round(expected.mb_per_image, 4), "pictures": round(expected.kept_mb, 1),
            "total": round(total, 1),
        },
        "available_mb": round(room, 1), "fits": total <= SHARE * room,
        "images_per_s": round(batch / expected.seconds(batch, micro_batches), 2),
        "rehearsed": [expected.small._asdict(), expected.large._asdict()],
    }  # fmt: skip
    if options.measure:
        facts["measured"] = _measured(recipe, batch, micro_batches, expected)
    return facts


def _measured(recipe: Recipe, batch: int, micro_batches: int, expected: Forecast) -> dict[str, float]:
    """What a few steps of the real batch took, and the forecast's numbers as ratios to it."""
    found = dry_run(recipe, batch, micro_batches)
    expected = expected._replace(kept_mb=0.0)  # the steps are too few to keep all images
    return {
        "memory_mb": round(found.peak_mb, 1),
        "images_per_s": round(batch / found.seconds, 2),
        "memory_ratio": round(expected.memory_mb(batch, micro_batches) / found.peak_mb, 3),
        "speed_ratio": round(found.seconds / expected.seconds(batch, micro_batches), 3),
        "cpu_seconds_ratio": round(expected.cpu_seconds(batch, micro_batches) / found.cpu_seconds, 3),
    }


def _available_mb(runtime: Runtime) -> float:
    """MB of memory that training on this machine may take."""
    return torch.cuda.mem_get_info(runtime.device)[0] / 2**20 if runtime.device.type == "cuda" else available_mb()


def _images(recipe: Recipe, options: PlanOptions) -> int:
    """Images of an epoch. Raises UserError for fewer than a batch."""
    source, limit, patterns = recipe.data.source, recipe.data.limit, recipe.data.exclude
    found = len(open_source(source, limit=limit, exclude=patterns)) if source and not options.images else None
    count = options.images or found or limit or IMAGENET
    if count < recipe.optim.batch_size:
        raise UserError(f"{count} images are less than a batch of {recipe.optim.batch_size}; lower optim.batch_size")
    return count


def _size_share(recipe: Recipe, counted: Anatomy) -> float:
    """Mean cost of an image over a run, in units of the last size's: less than 1 where images grow (FastMIM-P)."""
    if not recipe.progress:
        return 1.0
    done, total = 0, 0.0
    for phase in phases(recipe):
        total += (phase.end - done) * anatomy(phase.recipe).training
        done = phase.end
    return total / done / counted.training


def text(facts: dict[str, Any]) -> str:
    """The plan as a page for people."""
    memory, size, flops, loader = (facts[key] for key in ("memory_mb", "parameters", "gflops_per_image", "loader"))
    micro_batches, gpus, cores = facts["accumulate"], facts["gpus"], loader["cores_per_device"]
    shared = f"{gpus} devices × " if gpus > 1 else ""
    less = "a smaller optim.batch_size" if facts["across_batch"] else "--set runtime.accumulate=auto"
    advice = f"does not fit; try {less} or --set runtime.checkpointing=true"
    batch = f"{shared}{facts['batch_per_device']} images, in {micro_batches} part{'s' * (micro_batches > 1)}"
    where = "of a device" if facts["memory_of"] == "device" else "free here"
    lines = {
        "network": f"{size['total'] / 1e6:,.1f} M parameters, {size['backbone'] / 1e6:,.1f} M of them in the backbone",
        "work": f"{flops['forward']:,.2f} GFLOP an image forward, {flops['training']:,.2f} in training, all views",
        "batch": f"{facts['batch_size']} = {batch}{', blocks recomputed' * facts['checkpointing']}",
        "memory": f"{_gib(memory['total'])} of {_gib(facts['available_mb'])} GiB {where}: "
        f"{'fits' if facts['fits'] else advice}",
        " ": _memory(memory),
        "speed": f"{facts['images_per_s']:,.0f} images/s{' a device' * (gpus > 1)}"
        + f", {facts['images_per_s_all']:,.0f} in all" * (gpus > 1),
        "time": f"{facts['hours']:,.1f} h for {facts['epochs']} epochs of {facts['images']:,} images"
        + f" = {facts['gpu_hours']:,.0f} GPU-hours" * (gpus > 0),
        "loader": f"{cores} core{'s' * (cores > 1)}{' a device' * (gpus > 1)} at {loader['images_per_s_per_core']:g} "
        "images/s a core",
        "disk": f"{_gib(facts['checkpoint_mb'])} GiB a checkpoint, twice that while one is written",
        "measured": _comparison(facts),
        "assumed": _assumed(facts),
    }
    table = "\n".join(f"{name:<11} {line}" for name, line in lines.items() if line)
    return f"{facts['recipe']}: {facts['method']} on {shared}{facts['device']}\n\n{table}"


def _memory(memory: dict[str, float]) -> str:
    if "weights" not in memory:
        kept = f" · {_gib(memory['pictures'])} GiB of decoded pictures, kept" if memory["pictures"] else ""
        return f"{memory['per_image']:.2f} MiB for each image of a part{kept}"
    names = {"rest": "gradients and transient tensors", "optimizer": "AdamW", "activations": "kept for backward"}
    return " · ".join(f"{_gib(mb)} {names.get(name, name)}" for name, mb in memory.items() if name != "total")


def _comparison(facts: dict[str, Any]) -> str:
    if not (found := facts.get("measured")):
        return ""
    return (
        f"{_gib(found['memory_mb'])} GiB, {found['images_per_s']:,.0f} images/s; predicted / measured: "
        f"memory {found['memory_ratio']:.2f}, speed {found['speed_ratio']:.2f}, "
        f"processor time {found['cpu_seconds_ratio']:.2f}"
    )


def _assumed(facts: dict[str, Any]) -> str:
    if "mfu" not in facts:
        batches = " and ".join(str(done["batch"]) for done in facts["rehearsed"])
        return f"a line through real steps with batches of {batches}; nothing else runs on this machine"
    return (
        f"{facts['mfu']:.0%} of {facts['tflops']:g} TFLOP/s (data sheet, dense bf16) is reached, devices add up, the "
        f"loader keeps up;\n{'':<12}memory is that of live tensors, without an allocator's gaps and CUDA's own"
    )


def _gib(mb: float) -> str:
    return f"{mb / 1024:,.2f}"


__all__ = ["PlanOptions", "plan", "text"]
