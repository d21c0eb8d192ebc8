"""A training step never asks the device for a number: seen in its operations, and by CUDA itself where it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from remask.build.pretraining import build_method
from remask.build.training import build_loader, build_trainer
from remask.images.loading.loader import Batch
from remask.images.sources.opening import open_source
from remask.recipe import choose
from remask.training.run_folder import RunFolder
from remask.training.runtime import resolve
from remask.training.trainer import Trainer

READS_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique", "bincount")
"""Operations whose result, or its size, the host has to wait for."""

SETTINGS = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "optim.batch_size=4", "optim.clip=1.0",
    "optim.precision=fp32", "data.limit=8", "runtime.accumulate=2", "runtime.workers=0", "runtime.compile=false",
]  # fmt: skip
DECODER = ["method.decoder_width=32", "method.decoder_heads=2", "method.decoder_depth=2"]
METHODS = {
    "mae": ("mae-vit-micro-cifar", None, DECODER),
    "dmjd": ("dmjd-vit-micro-cifar", None, DECODER),
    "maskfeat": ("maskfeat-vit-micro-cifar", None, []),
    "convmae+dmjd": ("convmae-convit-micro-cifar", "convmae+dmjd", ["method.decoder_depth=2"]),
}


class Watch(TorchDispatchMode):
    """Notes every operation that reads back."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.found = 0, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        uneven = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        self.count += 1
        self.found += [name] * (name in READS_BACK or by_mask or uneven)
        return func(*args, **(kwargs or {}))


def trainer(path: Path, kind: str, device: str) -> tuple[Trainer, list[Batch]]:
    name, method, more = METHODS[kind]
    settings = [*(SETTINGS if "convit" not in name else SETTINGS[3:]), *more]
    recipe = choose(name, {"data.source": "photos", "runtime.device": device}, method=method, settings=settings)
    runtime, source = resolve(device, "fp32", compile=False), open_source("photos", limit=8)
    made = build_method(recipe)
    loader = build_loader(recipe, source, runtime, made)
    return build_trainer(recipe, made, loader, runtime, RunFolder.create(path, "", {})), list(loader.epoch(0))


def take(made: Trainer, batch: Batch) -> dict[str, Tensor]:
    """A step, as `train` takes it."""
    losses = made.step(batch)
    made.global_step += 1
    return losses


@pytest.mark.parametrize("kind", METHODS)
def test_no_operation_of_a_step_reads_back(kind: str, tmp_path: Path) -> None:
    """Draws, forward, backward, clipping, optimizer, the sums for the log; the first step sets the optimizer up."""
    made, batches = trainer(tmp_path / "run", kind, "cpu")
    take(made, batches[0])
    with Watch() as watch:
        losses = take(made, batches[1])
        made.log.window.add(losses, 0.0, 4)
    assert watch.count > 300
    assert not watch.found


def test_the_watch_sees_what_reads_back() -> None:
    x = torch.arange(4.0)
    for act in (lambda: x.sum().item(), lambda: bool(x.sum() > 0), lambda: x.nonzero(), lambda: x[x > 1]):
        with Watch() as watch:
            act()
        assert watch.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA alone can say whether a step waits for it")
@pytest.mark.parametrize("kind", METHODS)
def test_cuda_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    made, batches = trainer(tmp_path / "run", kind, "cuda")
    take(made, batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        made.log.window.add(take(made, batches[1]), 0.0, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
