"""A model of scaling on paper: what a step costs on 8, 64 and 512 GPUs, and what limits it. No GPU is measured here.

    python -m benchmarks.scaling

prints the tables of docs/scaling.md. FLOPs and parameters are counted on the networks themselves; speeds are assumed.
"""

import math
import time
from dataclasses import dataclass

import torch

from remask.build.pretraining import build_method
from remask.build.training import gflops_per_image
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.recipe import load_recipe
from remask.seeds import generator

PEAK, MFU = 790e12, 0.40  # bf16 FLOP/s of one H200-class GPU, and the share of them that is used
FIXED = 8e-3  # seconds of a step that no GPU shortens: kernels launched one by one, optimizer
WITHIN, ACROSS = 450e9, 50e9  # bytes/s of a GPU to its machine (NVLink) and to others (its own 400 Gbit/s card)
HOP, BUCKET, GPUS = 15e-6, 25e6, 8  # seconds a message takes across machines, bytes of a DDP bucket, GPUs a machine
BACKWARD = 2 / 3  # share of the compute in which gradients can travel
DECODED, CORES = 1000, 12  # pictures a second and core, decoded and cropped; cores a GPU
EPOCH = 1_281_167

MODELS = {
    "MAE ViT-B": ("mae-vit-b", {}),
    "DMJD ViT-B, K = 2": ("mae-dmjd-vit-b", {}),
    "DMJD ConViT-B, K = 2": ("convmae-dmjd-convit-b", {}),
    "MAE ViT-L": ("mae-vit-l", {}),
    "DMJD ViT-L, K = 2": ("mae-dmjd-vit-l", {}),
}


@dataclass(frozen=True)
class Model:
    """A recipe's forward GFLOP an image, in all its views, and its trained parameters."""

    name: str
    gflops: float
    parameters: int

    @property
    def flops(self) -> float:
        """Of a step, per image: the backward pass costs two forwards."""
        return 3e9 * self.gflops


@dataclass(frozen=True)
class Step:
    """Seconds of a step on `gpus` GPUs with `images` pictures each."""

    model: Model
    gpus: int
    images: float

    @property
    def compute(self) -> float:
        return self.images * self.model.flops / (PEAK * MFU)

    @property
    def exchange(self) -> float:
        """All-reduce of fp32 gradients: a ring inside each machine, and one across them for each GPU's eighth."""
        size, inside, machines = 4 * self.model.parameters, min(self.gpus, GPUS), math.ceil(self.gpus / GPUS)
        ring = 2 * size * (inside - 1) / inside / WITHIN
        if machines == 1:
            return ring
        latency = math.ceil(size / BUCKET) * 2 * math.log2(machines) * HOP
        return ring + 2 * (size / inside) * (machines - 1) / machines / ACROSS + latency

    @property
    def exposed(self) -> float:
        """What does not hide behind the backward pass: the excess, and the last bucket."""
        last = self.exchange * min(1.0, BUCKET / (4 * self.model.parameters))
        return max(self.exchange - BACKWARD * self.compute, last)

    @property
    def seconds(self) -> float:
        return self.compute + FIXED + self.exposed

    @property
    def demand(self) -> float:
        """Pictures a second that one GPU asks of its loader."""
        return self.images / self.seconds

    @property
    def efficiency(self) -> float:
        """Against one GPU that computes all the time."""
        return self.compute / self.seconds


def counted(name: str, recipe_name: str, settings: dict[str, object]) -> Model:
    recipe = load_recipe(recipe_name, settings, environment={})
    with torch.device("meta"):
        trained = sum(p.numel() for p in build_method(recipe).parameters() if p.requires_grad)
    return Model(name, gflops_per_image(recipe), trained)


def table(models: list[Model], batch: int | None, per_gpu: int = 0) -> None:
    """A row for each model and number of GPUs: one batch shared by all, or so many pictures for each."""
    heads = "images a GPU | compute | exchange | step | efficiency | images/s a GPU | cores a GPU | epoch"
    print(f"| model | GPUs | {heads} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for model in models:
        for gpus in (8, 64, 512):
            step = Step(model, gpus, batch / gpus if batch else per_gpu)
            print(
                f"| {model.name} | {gpus} | {step.images:g} | {1e3 * step.compute:.1f} ms | "
                f"{1e3 * step.exchange:.1f} ms | {1e3 * step.seconds:.1f} ms | {step.efficiency:.0%} | "
                f"{step.demand:.0f} | {step.demand / DECODED:.1f} | {EPOCH / step.demand / gpus:.1f} s |"
            )
    print()


def memory(models: list[Model]) -> None:
    """GB for weights, gradients and AdamW's moments in fp32: a copy each (DDP), or pieces (FSDP)."""
    print("| model | parameters | DDP, each GPU | FSDP on 8 | on 64 | on 512 |")
    print("|---|--:|--:|--:|--:|--:|")
    for model in models:
        whole = 16 * model.parameters / 1e9
        shares = " | ".join(f"{whole / gpus:.3f} GB" for gpus in (8, 64, 512))
        print(f"| {model.name} | {model.parameters / 1e6:.0f} M | {whole:.1f} GB | {shares} |")
    print()


def drawing(batch: int = 4096, gpus: int = 8) -> None:
    """The one row that is measured: CPU time of a step's masks on one thread, all of them and one process's part."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    print("| masks of 4096 images, 14 × 14 tokens | all | the part of one of 8 |\n|---|--:|--:|")
    for name, masking in (
        ("random .75", Masking(0.75)),
        ("random .75, K = 2", Masking(0.75, views=2)),
        ("block-wise .4", Masking(0.4, Blocks())),
    ):
        times = []
        for part in (slice(None), slice(0, batch // gpus)):
            masking(batch, (14, 14), generator(0), part)
            began = time.process_time()
            masking(batch, (14, 14), generator(1), part)
            times.append(f"{1e3 * (time.process_time() - began):.0f} ms")
        print(f"| {name} | {' | '.join(times)} |")
    torch.set_num_threads(threads)


def main() -> None:
    """Print the tables."""
    models = [counted(name, *what) for name, what in MODELS.items()]
    print("| model | GFLOP forward an image | of a step |\n|---|--:|--:|")
    for model in models:
        print(f"| {model.name} | {model.gflops:.1f} | {model.flops / 1e9:.1f} |")
    print("\nOne batch of 4096 for all:\n")
    table(models, 4096)
    print("512 images for each GPU, the batch growing with them:\n")
    table(models[:3], None, 512)
    print("Weights, gradients and moments:\n")
    memory(models)
    print("Measured, on one thread of this machine:\n")
    drawing()


if __name__ == "__main__":
    main()
