"""Recipe → objects: one dict literal per kind, and nothing else that knows both names and parts."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from remask.backbones import Backbone
from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.checkpoint import RunFolder, find, load_weights
from remask.images import Loader, RandomCropFlip, Source
from remask.interop.teachers import open_teacher
from remask.ledger import Ledger, forward_gflops
from remask.masking import Blocks, Counts, Masking, Score, random
from remask.method import Method
from remask.methods import beit, convmae, dm, jd, mae, maskfeat, simmim
from remask.optim import adamw, learning_rate, parameter_groups
from remask.recipe import Recipe, load_recipe
from remask.recipe import Target as TargetRecipe
from remask.runtime import Runtime, seeded
from remask.targets import Hog, Pixels, Target
from remask.targets.dalle import Dalle, load_dalle
from remask.targets.teacher import Teacher
from remask.targets.tokens import Codebook, StoredIds, read_codebook
from remask.trainer import Hook, Schedule, Trainer
from remask.types import Size

PATTERNS: Mapping[str, Score] = {"random": random, "cells": random, "blocks": Blocks()}
NETWORKS: Mapping[str, Callable[..., Backbone]] = {
    "convvit": create_convvit, "beit": create_beit, "swin": create_swin, "": create_vit,
}  # fmt: skip
"""Who makes a backbone, by how its name begins; the rest are plain vision transformers."""

UNDECAYED, TABLES = ("simmim", "beit"), ("cls_token", "pos_embed", "relative_position_bias_table")
"""Methods whose papers spare position tables and tokens from weight decay; MAE, MaskFeat and ConvMAE do not."""


def build_backbone(recipe: Recipe) -> Backbone:
    """The network of [backbone] for pictures of [data]."""
    part, data = recipe.backbone, recipe.data
    sizes = {"patch_size": part.patch_size, "embed_dim": part.width, "depth": part.depth, "num_heads": part.heads}
    overrides = {name: value for name, value in sizes.items() if value is not None}
    create = next(create for start, create in NETWORKS.items() if part.name.startswith(start))
    if create is create_vit:
        create = partial(create_vit, positions=part.positions)
    return create(part.name, data.image_size, data.mean, data.std, drop_path=part.drop_path, overrides=overrides)


def build_masking(recipe: Recipe) -> Masking:
    """The pattern of [masking], one view; DM comes as a plug-in."""
    return Masking(recipe.masking.ratio, PATTERNS[recipe.masking.pattern], recipe.masking.cell)


def build_target(part: TargetRecipe, recipe: Recipe, patch: Size) -> Target:
    """A target for a backbone's patches. A codebook that is still to be fitted has empty words."""
    data = recipe.data
    cell = part.cell or (8 if min(patch) >= 16 else max(min(patch) // 2, 1))
    kinds: dict[str, Callable[[], Target]] = {
        "pixels": lambda: Pixels(patch, data.mean, data.std, per_patch=part.norm == "patch"),
        "hog": lambda: Hog(patch, data.mean, data.std, part.flavour, cell, part.bins, part.norm),  # type: ignore[arg-type]
        "features": lambda: _teacher(part, recipe, patch),
        "tokens": lambda: _tokenizer(part, recipe, patch),
    }
    return kinds[part.kind]()


def _teacher(part: TargetRecipe, recipe: Recipe, patch: Size) -> Target:
    assert part.teacher
    with seeded(0, part.teacher):  # draws nothing of the student's weights; an untrained one is the same in every run
        network, mean, std, size, width = open_teacher(part.teacher, part.weights)
    return Teacher(
        network, patch, recipe.data.mean, recipe.data.std,
        teacher_mean=mean, teacher_std=std, size=size, norm=part.norm,  # type: ignore[arg-type]
        width=width, name=part.teacher,
    )  # fmt: skip


def _tokenizer(part: TargetRecipe, recipe: Recipe, patch: Size) -> Target:
    if part.file is None:
        features = build_target(codebook_features(part), recipe, patch)
        return Codebook(features, torch.zeros(part.vocabulary, features.width))
    if part.tokenizer == "dalle":
        return Dalle(load_dalle(Path(part.file)), patch, recipe.data.mean, recipe.data.std)
    if part.tokenizer == "stored":
        return StoredIds(Path(part.file), patch, part.vocabulary)
    centres, about = read_codebook(Path(part.file))
    return Codebook(build_target(TargetRecipe.model_validate(about["target"]), recipe, patch), centres)


def codebook_features(part: TargetRecipe) -> TargetRecipe:
    """What a codebook without a file is fitted on."""
    if part.over != "features":
        return TargetRecipe.model_validate(part.over)
    return TargetRecipe.model_validate({"kind": "features", "teacher": part.teacher, "weights": part.weights})


def build_method(recipe: Recipe) -> Method:
    """Base method, then DM, then JD; a target that two branches share is one object, computed once."""
    with seeded(recipe.seed, "weights"):
        backbone, masking, part = build_backbone(recipe), build_masking(recipe), recipe.method
        target = build_target(part.target, recipe, backbone.patch)
        size = recipe.data.image_size
        decoder = (part.decoder_width, part.decoder_depth, part.decoder_heads, part.decoder_mlp_ratio)
        bases: dict[str, Callable[[], Method]] = {
            "mae": lambda: mae(backbone, masking, target, size, *decoder),
            "simmim": lambda: simmim(backbone, masking, target),
            "maskfeat": lambda: maskfeat(backbone, masking, target),
            "beit": lambda: beit(backbone, masking, target),
            "convmae": lambda: convmae(backbone, masking, target, size, *decoder),
        }
        method = bases[part.name]()
        if recipe.dm:
            method = dm(method, recipe.dm.views, None if recipe.dm.independent else recipe.dm.prediction)
        if recipe.jd:
            shared = recipe.jd.target == part.target
            visible = target if shared else build_target(recipe.jd.target, recipe, backbone.patch)
            method = jd(method, visible, recipe.jd.width, recipe.jd.beta, recipe.jd.weight, recipe.jd.layers)
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
    named = list(method.named_parameters())
    exempt = [name for name, _ in named if recipe.method.name in UNDECAYED and name.endswith(TABLES)]
    optimizer = adamw(parameter_groups(named, optim.weight_decay, no_decay=exempt), lr, optim.betas)
    schedule = Schedule(
        optim.epochs, len(loader), lr, optim.warmup_epochs, optim.min_lr, optim.clip, part.accumulate,
        optim.max_steps, part.log_every, part.save_every_minutes, part.keep_every_epochs,
        optim.drop_epoch,
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
    return run, _beside(load_recipe(path / "recipe.toml", environment={}), path)


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """A codebook that a run keeps in its own folder is found wherever the folder is moved."""
    file = recipe.method.target.file
    if file is None or not (folder / file).is_file():
        return recipe
    target = recipe.method.target.model_copy(update={"file": str(folder / file)})
    return recipe.model_copy(update={"method": recipe.method.model_copy(update={"target": target})})


def trained(run: RunFolder, recipe: Recipe, name: str = "last") -> Method:
    """The method of a run with the weights of a checkpoint."""
    method = build_method(recipe)
    load_weights(find(run, name) / "model.safetensors", method)
    return method
