"""Recipe → objects: one dict literal per kind, and nothing else that knows both names and parts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remask.backbones import Backbone
from remask.backbones.vit import create_vit
from remask.checkpoint import RunFolder, find, load_weights
from remask.images import Loader, RandomCropFlip, Source
from remask.ledger import Ledger, forward_gflops
from remask.masking import Blocks, Counts, Masking, Score, random
from remask.method import Method
from remask.methods import dm, jd, mae
from remask.optim import adamw, learning_rate, parameter_groups
from remask.recipe import Recipe, load_recipe
from remask.recipe import Target as TargetRecipe
from remask.runtime import Runtime, seeded
from remask.targets import Hog, Pixels, Target
from remask.trainer import Hook, Schedule, Trainer

PATTERNS: Mapping[str, Score] = {"random": random, "cells": random, "blocks": Blocks()}


def build_backbone(recipe: Recipe) -> Backbone:
    """The network of [backbone] for pictures of [data]."""
    part, data = recipe.backbone, recipe.data
    sizes = {"patch_size": part.patch_size, "embed_dim": part.width, "depth": part.depth, "num_heads": part.heads}
    overrides = {name: value for name, value in sizes.items() if value is not None}
    return create_vit(
        part.name,
        data.image_size,
        data.mean,
        data.std,
        positions=part.positions,
        drop_path=part.drop_path,
        overrides=overrides,
    )


def build_masking(recipe: Recipe) -> Masking:
    """The pattern of [masking], one view; DM comes as a plug-in."""
    return Masking(recipe.masking.ratio, PATTERNS[recipe.masking.pattern], recipe.masking.cell)


def build_target(part: TargetRecipe, recipe: Recipe, backbone: Backbone) -> Target:
    """A target for the backbone's patches."""
    data, patch = recipe.data, backbone.patch
    cell = part.cell or (8 if min(patch) >= 16 else max(min(patch) // 2, 1))
    kinds: dict[str, Callable[[], Target]] = {
        "pixels": lambda: Pixels(patch, data.mean, data.std, per_patch=part.norm == "patch"),
        "hog": lambda: Hog(patch, data.mean, data.std, part.flavour, cell, part.bins, part.norm),  # type: ignore[arg-type]
    }
    return kinds[part.kind]()


def build_method(recipe: Recipe) -> Method:
    """Base method, then DM, then JD; a target that two branches share is one object, computed once."""
    with seeded(recipe.seed, "weights"):
        backbone, masking, part = build_backbone(recipe), build_masking(recipe), recipe.method
        target = build_target(part.target, recipe, backbone)
        decoder = (part.decoder_width, part.decoder_depth, part.decoder_heads)
        bases: dict[str, Callable[[], Method]] = {
            "mae": lambda: mae(backbone, masking, target, recipe.data.image_size, *decoder),
        }
        method = bases[part.name]()
        if recipe.dm:
            method = dm(method, recipe.dm.views, None if recipe.dm.independent else recipe.dm.prediction)
        if recipe.jd:
            shared = recipe.jd.target == part.target
            visible = target if shared else build_target(recipe.jd.target, recipe, backbone)
            method = jd(method, visible, recipe.jd.width, recipe.jd.beta, recipe.jd.weight)
    counts(method, recipe)
    return method


def counts(method: Method, recipe: Recipe) -> Counts:
    """Tokens hidden and predicted on this recipe's grid. Raises UserError where the masking does not fit it."""
    return method.masking.counts(method.backbone.grid(recipe.data.image_size))


def peak_lr(recipe: Recipe, method: Method) -> float:
    """The learning rate after warm-up: absolute, or by the rule, with the realised m_pred / m_corr under DM."""
    optim = recipe.optim
    gain = counts(method, recipe).gain if recipe.dm and optim.lr_rule == "dmjd" else 1.0
    return optim.lr or learning_rate(optim.base_lr, optim.batch_size, gain)


def build_loader(recipe: Recipe, source: Source, runtime: Runtime, method: Method, **report: Any) -> Loader:
    """Random crops of the source in batches of unique images."""
    data, workers = recipe.data, recipe.runtime.workers
    crop = RandomCropFlip(data.image_size, data.crop_scale, data.crop_ratio, data.flip)
    return Loader(
        source,
        crop,
        recipe.optim.batch_size,
        seed=recipe.seed,
        workers=auto_workers(runtime) if workers == "auto" else workers,
        channels=data.channels,
        min_side=min(method.backbone.patch),
        max_bad=data.max_bad,
        pin=runtime.device.type == "cuda",
        **report,
    )


def auto_workers(runtime: Runtime) -> int:
    """Loader processes: as many cores as can be spared on a GPU machine; on a CPU the cores have other work."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, 12) if runtime.device.type == "cuda" else 0


def build_trainer(
    recipe: Recipe, method: Method, loader: Loader, runtime: Runtime, run: RunFolder, hooks: tuple[Hook, ...] = ()
) -> Trainer:
    """Optimizer, schedule and ledger around a method."""
    optim, part = recipe.optim, recipe.runtime
    gflops = gflops_per_image(recipe)
    lr = peak_lr(recipe, method)
    runtime.prepare(method)
    optimizer = adamw(parameter_groups(method.named_parameters(), optim.weight_decay), lr, optim.betas)
    schedule = Schedule(
        optim.epochs, len(loader), lr, optim.warmup_epochs, optim.min_lr, optim.clip, part.accumulate,
        optim.max_steps, part.log_every, part.save_every_minutes, part.keep_every_epochs,
    )  # fmt: skip
    images = len(loader) * optim.batch_size
    ledger = Ledger(images, method.masking.views, int(runtime.device.type == "cuda"), gflops)
    return Trainer(
        method, loader, optimizer, schedule, runtime, run, ledger,
        seed=recipe.seed, hooks=hooks, tensorboard=part.tensorboard,
    )  # fmt: skip


def gflops_per_image(recipe: Recipe) -> float:
    """Forward GFLOP of one image in all its views, counted on a network without memory."""
    with torch.device("meta"):
        method = build_method(recipe)
        image = torch.zeros(1, recipe.data.channels, *recipe.data.image_size, dtype=torch.uint8)
        return forward_gflops(lambda: method(image))


def parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in module.parameters())


def open_run(path: Path) -> tuple[RunFolder, Recipe]:
    """A run folder and the recipe it was made with."""
    run = RunFolder.open(path)
    return run, load_recipe(path / "recipe.toml", environment={})


def trained(run: RunFolder, recipe: Recipe, name: str = "last") -> Method:
    """The method of a run with the weights of a checkpoint."""
    method = build_method(recipe)
    load_weights(find(run, name) / "model.safetensors", method)
    return method
