"""What test_compile runs in an interpreter of its own, which checks no shapes: forwards compiled whole."""

import functools
import sys
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist

from remask.build.pretraining import build_method
from remask.build.training import sharding_plan
from remask.recipe import Recipe, choose
from remask.seeds import generator
from remask.training.distributed import World
from remask.training.optim import adamw, parameter_groups
from remask.training.sharding import spread

SETTINGS = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "optim.batch_size=4", "optim.precision=fp32",
    "method.decoder_width=32", "method.decoder_heads=2", "method.decoder_depth=2",
]  # fmt: skip
METHODS = {
    "dmjd": ("dmjd-vit-micro-cifar", None, [*SETTINGS, "uniformity.weight=0.5"]),
    "average": (
        "dmjd-vit-micro-cifar",
        "crossmae+dmjd",
        [*SETTINGS, "jd.target=average", "masking.predicted=once"],
    ),
    "guided": ("hpm-vit-micro-cifar", "mae+dm", SETTINGS),
    "maskfeat": ("maskfeat-vit-micro-cifar", None, SETTINGS[:5]),
    "convmae": ("convmae-convit-micro-cifar", "convmae+dmjd", ["method.decoder_depth=2"]),
    "localmim": (
        "localmim-vit-micro-cifar",
        "localmim+dm",
        [*SETTINGS, "method.decoder_layers=[0, 'end']", "method.cells=[2, 8]"],
    ),
    "refiner": (
        "refiner-vit-micro-cifar",
        None,
        [
            *SETTINGS[:3],
            "optim.batch_size=8",
            "optim.precision=fp32",
            "refine.blocks=1",
            "refine.layers=[-1]",
            "refine.neighbours=3",
            "refine.queue=16",
        ],
    ),
    "pixmim": ("pixmim-vit-micro-cifar", None, SETTINGS),
}
STEPS = 4


def chosen(kind: str) -> Recipe:
    name, method, settings = METHODS[kind]
    return choose(name, {"data.source": "photos"}, method=method, settings=settings)


def losses(recipe: Recipe, how: str, backend: str) -> list[float]:
    """Four steps, each with other pictures and masks: "eager", the forward "compiled", or shared out over processes."""
    method = build_method(recipe)
    torch._dynamo.reset()
    torch.compile = functools.partial(COMPILE, backend=backend, fullgraph=how == "compiled")
    learner: torch.nn.Module = method
    if how == "compiled":
        method.forward = torch.compile(method.forward)  # type: ignore[method-assign]
    elif how != "eager":
        learner = spread(method, sharding_plan(recipe), World(), how, compiled=True)  # type: ignore[arg-type]
    optimizer, found = adamw(parameter_groups(method.named_parameters(), 0.05), 1e-3, (0.9, 0.95)), []
    for step in range(STEPS):
        size = (4, recipe.data.channels, *recipe.data.image_size)
        images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator(step))
        with torch._dynamo.config.patch(error_on_recompile=how == "compiled"):
            total = learner(images, method.draw(images, generator(0, step)))["total"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / STEPS)
        found.append(total.item())
    return found


COMPILE = torch.compile

if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in METHODS:
        backend = "aot_eager" if kind == "dmjd" else "eager"
        eager, compiled = (losses(chosen(kind), how, backend) for how in ("eager", "compiled"))
        print(kind, max(abs(a - b) for a, b in zip(eager, compiled, strict=True)), flush=True)
    store = dist.FileStore(str(Path(sys.argv[1]) / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    eager = losses(chosen("average"), "eager", "eager")
    for how in ("ddp", "fsdp"):
        found = losses(chosen("average"), how, "eager")
        print(how, max(abs(a - b) for a, b in zip(eager, found, strict=True)), flush=True)
    dist.destroy_process_group()
