"""A pre-training recipe's loader, optimizer, schedule and trainer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from remask.backbones.masked_input import Dropped
from remask.build.pretraining import TABLES, UNDECAYED, build_method, checkpoint_blocks, counts, scaling_of
from remask.errors import UserError
from remask.images.loading.device_crops import no_decoder
from remask.images.loading.loader import Loader
from remask.images.sources.opening import Source
from remask.images.transforms import RandomCropFlip, SimpleCropFlip, Transform
from remask.method import Method
from remask.recipe import Recipe
from remask.recipe.changes import calmer
from remask.targets.cached import Cached
from remask.training.cost import Ledger, forward_gflops
from remask.training.optim import Schedule, adamw, learning_rate, parameter_groups
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime, auto_workers
from remask.training.sharding import ShardingPlan, trace_plan
from remask.training.trainer import Hook, Trainer


def peak_lr(recipe: Recipe, method: Method) -> float:
    """Peak learning rate: optim.lr, or optim.base_lr scaled by the rule, with the realised m_pred / m_corr."""
    optim = recipe.optim
    gain = counts(method, recipe).gain if optim.lr_rule == "dmjd" else 1.0
    return optim.lr or learning_rate(optim.base_lr or 0.0, optim.batch_size, gain)  # the recipe requires one of them


def build_loader(recipe: Recipe, source: Source, runtime: Runtime, method: Method, **report: Any) -> Loader:
    """The loader of random crops of the source; no batch holds an image twice. report: callbacks of `Loader`."""
    data, workers = recipe.data, recipe.runtime.workers
    if recipe.method.name == "refiner" and len(source) < (pairs := recipe.optim.batch_size // 2):
        raise UserError(
            f"{len(source)} images are fewer than the {pairs} pairs of a batch, which are told apart: lower "
            f"optim.batch_size to at most {2 * len(source)}"
        )
    crop: Transform = RandomCropFlip(data.image_size, data.crop_scale, data.crop_ratio, data.flip)
    if data.crop == "simple":
        crop = SimpleCropFlip(data.image_size, data.crop_padding, data.flip)
    return Loader(
        source, crop, recipe.optim.batch_size, seed=recipe.seed,
        workers=auto_workers(runtime) if workers == "auto" else workers,
        channels=data.channels, min_side=min(method.backbone.patch), max_bad=data.max_bad, reduced=data.reduced,
        crops=data.crops, keep=data.keep, device=runtime.device,
        on_device=data.decode == "cuda" and not no_decoder(runtime.device, data.channels),
        pin=runtime.device.type == "cuda", share=runtime.world.share, scaling=scaling_of(data), **report,
    )  # fmt: skip


def build_trainer(
    recipe: Recipe,
    method: Method,
    loader: Loader,
    runtime: Runtime,
    run: RunFolder,
    hooks: Sequence[Hook] = (),
    until_epoch: int | None = None,
) -> Trainer:
    """The trainer of a method, with optimizer, schedule and cost ledger.

    until_epoch   epoch after which training stops; None: the recipe's last
    """
    optim, settings, size = recipe.optim, recipe.runtime, runtime.world.size
    gflops, micro_batches = gflops_per_image(recipe), _micro_batches(recipe, size)
    lr = peak_lr(recipe, method)
    if settings.checkpointing:
        checkpoint_blocks(method)
    if method.guide and runtime.parallel == "fsdp" and not runtime.world.alone:
        raise UserError(
            f'masking.pattern "{recipe.masking.pattern}" asks the moving average for masks before a step gathers its '
            "pieces: set runtime.parallel ddp, or choose another masking.pattern"
        )
    ddp_model = runtime.prepare(method, None if runtime.world.alone else sharding_plan(recipe))
    for target in {branch.target for branch in method.branches if isinstance(branch.target, Cached)}:
        target.reserve(len(loader.source), recipe.data.image_size)
    optimizer = adamw(_groups(recipe, method), lr, optim.betas)
    schedule = Schedule(
        optim.epochs, len(loader), lr, optim.warmup_epochs, optim.min_lr, optim.clip, micro_batches,
        optim.max_steps, settings.log_every, settings.save_every_minutes, settings.keep_every_epochs,
        (optim.drop_epoch,) if optim.drop_epoch else (), until_epoch, max_skipped=optim.max_skipped,
    )  # fmt: skip
    loader.patience, images = settings.patience, len(loader) * optim.batch_size
    tokens, views = tokens_per_image(recipe, method), method.masking.views
    ledger = Ledger(images, views, runtime.gpus, gflops, tokens, recipe.ete_per_epoch)
    trainer = Trainer(
        method, loader, optimizer, schedule, runtime, run, ledger,
        seed=recipe.seed, hooks=hooks, tensorboard=settings.tensorboard, ddp_model=ddp_model,
        global_batch_size=optim.batch_size if size > 1 else None,
    )  # fmt: skip
    trainer.calmer = calmer(optim)
    if settings.state_dict_type == "sharded" and size > 1:
        trainer.saver.sharded = runtime.world
    return trainer


def tokens_per_image(recipe: Recipe, method: Method) -> int:
    """Tokens that the backbone reads of an image, in all its views."""
    counted = counts(method, recipe)
    return method.masking.views * (counted.tokens - counted.hidden * isinstance(method.sees, Dropped))


def _groups(recipe: Recipe, method: Method) -> list[dict[str, Any]]:
    """AdamW's groups. A refiner's backbone starts after its frozen epochs, and its rate decays with depth."""
    named, decay = list(method.named_parameters()), recipe.optim.weight_decay
    exempt = [name for name, _ in named if recipe.method.name in UNDECAYED and name.endswith(TABLES)]
    if recipe.method.name != "refiner":
        return parameter_groups(named, decay, no_decay=exempt)
    section, backbone, inside = recipe.refine, method.backbone, "backbone.network."
    groups = parameter_groups(
        [(name, p) for name, p in named if name.startswith(inside)], decay, depth=backbone.depth,
        depth_of=lambda name: backbone.param_depth(name.removeprefix(inside)), layer_decay=section.layer_decay,
    )  # fmt: skip
    for group in groups:
        group["from_epoch"] = section.frozen * recipe.optim.epochs
    return groups + parameter_groups([(n, p) for n, p in named if not n.startswith(inside)], section.head_decay)


def _micro_batches(recipe: Recipe, processes: int) -> int:
    """Initial number of micro-batches per process and batch. Raises UserError if a micro-batch would be empty."""
    micro_batches, batch = recipe.runtime.accumulate, recipe.optim.batch_size
    if micro_batches == "auto":
        if processes > 1:
            raise UserError(
                "runtime.accumulate auto tries one process's memory: give several a number of parts, which "
                "remask plan --gpus N helps to find"
            )
        return 1
    if recipe.method.name == "refiner" and batch % (2 * processes):
        raise UserError(
            f"optim.batch_size {batch} is of pairs of crops, which {processes} process(es) cannot share evenly: make "
            f"it a multiple of {2 * processes}"
        )
    if batch < processes * micro_batches:
        raise UserError(
            f"optim.batch_size {batch} leaves nothing for some of {processes} processes in {micro_batches} part(s) "
            "each: raise it, it is the batch of all processes, or start fewer"
        )
    return micro_batches


def sharding_plan(recipe: Recipe) -> ShardingPlan:
    """Module names and parameters for DDP or FSDP, traced on a copy of the method on the "meta" device."""
    with torch.device("meta"):
        method = build_method(recipe)
        image = torch.zeros(2, recipe.data.channels, *recipe.data.image_size, dtype=torch.uint8)
        plan = trace_plan(method, lambda: method(image)["total"])
    return replace(plan, at_times_silent=recipe.method.name == "refiner" and recipe.refine.frozen > 0)


def gflops_per_image(recipe: Recipe) -> float:
    """Forward GFLOP of one image in all its views, counted on the "meta" device."""
    with torch.device("meta"):
        method, crops = build_method(recipe), recipe.data.crops
        images = torch.zeros(crops, recipe.data.channels, *recipe.data.image_size, dtype=torch.uint8)
        return forward_gflops(lambda: method(images)) / crops
