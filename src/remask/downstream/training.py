"""One session of a downstream task (fine-tuning, segmentation, detection): train, test in between and at the end.

The run folder is like that of pre-training, with eval/TASK.json and pictures; `remask resume` continues it exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from remask.downstream.data_sources import of_task
from remask.errors import UserError
from remask.evaluation.results import keep
from remask.files.escaping import printable
from remask.files.records import make_folder
from remask.images.loading.loader import TooManyBad
from remask.images.sources.differences import of_classes
from remask.interop.loaded import loaded_of
from remask.recipe import dump
from remask.recipe.changes import calmer
from remask.recipe.downstream import Downstream
from remask.training.checkpoint import intact, load_weights, starting_point
from remask.training.cost import Ledger
from remask.training.data_record import CARE, FIRST, Care, Checked, DataRecord, resumed
from remask.training.distributed import World
from remask.training.environment import environment
from remask.training.gathering import bad_of_all
from remask.training.optim import Averaged, Schedule, adamw, parameter_groups
from remask.training.progress import Watch, console
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime
from remask.training.trainer import Batches, Hook, Trainer


class Task(NamedTuple):
    """A downstream task: model, training batches, test.

    model     a Classifier, Segmenter or Detector
    train     batches of labelled images; None if a run is only tested
    images    number of images in an epoch
    test      (model, watch) -> the content of eval/TASK.json, with the key `headline`; `watch` shows progress. Its key
              "files", {name: content}, is written as files beside eval/TASK.json
    show      writes figures: (model, folder) -> None
    gflops    forward GFLOP of one image
    facts     content of task.json, which a later test needs: "classes" and others
    notes     lines about the sources, for the start of the log
    left_out  a line for each item of the data that was left out
    sources   opened sources by role, "data" and "val"; several if one source was split into them
    """

    model: Any
    train: Batches | None
    images: int
    test: Callable[[Any, Watch], dict[str, Any]]
    headline: str
    gflops: float
    show: Callable[[Any, Path], None]
    facts: dict[str, Any]
    notes: Sequence[str]
    left_out: Sequence[str]
    sources: Mapping[str, tuple[Any, ...]]


def train(
    task: Task, recipe: Downstream, runtime: Runtime, path: Path, *, fresh: bool, quiet: bool, care: Care = CARE,
    checkpoint: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train in a new run folder (`fresh`), or resume the one at `path`; test at the end. Collective.

    checkpoint   to resume from: exactly this one; None: the last, or the newest that is intact
    Returns the content of eval/TASK.json; the run's state is then "trained". Raises TooManyBad, after saving a
    checkpoint, for too many unusable images, and UserError if a run's data changed, unless `care` accepts it.
    """
    assert task.train
    task.train.patience = recipe.runtime.patience
    world, optim, quiet = runtime.world, recipe.optim, quiet or not runtime.world.main
    run, say = RunFolder(path, world.main), (lambda line: None) if quiet else print
    start, record = None if fresh else world.first(lambda: _start(task, recipe, run, checkpoint)), DataRecord(run, say)
    checked = world.first(lambda: record.check(of_task(recipe, task.sources, say), care, fresh, bool(start)))
    model = Averaged(task.model, optim.ema) if optim.ema else task.model
    ddp_model = runtime.prepare(task.model)  # every parameter that is trained gets a gradient in every step
    model.to(runtime.device)
    optimizer = adamw(groups(task.model, optim.weight_decay, optim.layer_decay), optim.peak, optim.betas)
    if isinstance(model, Averaged):
        model.follow(optimizer)
    ledger = Ledger(task.images, 1, runtime.gpus, task.gflops)
    trainer = Trainer(
        model, task.train, optimizer, schedule(recipe, len(task.train)), runtime, run, ledger, seed=recipe.seed,
        hooks=_hooks(task, model, recipe, world), tensorboard=recipe.runtime.tensorboard, draw=task.model.draw,
        **({} if world.alone else {"ddp_model": ddp_model, "global_batch_size": optim.batch_size}),  # type: ignore[arg-type]
    )  # fmt: skip
    begin = partial(_create_run, trainer, task, recipe, record, checked)
    lines = [] if start else _loaded(task)
    lines += world.first(begin) if fresh else resumed(trainer, record, checked, care, start)
    trainer.calmer, trainer.notes["data"] = calmer(optim), checked.digests
    screen = console(trainer.schedule.steps, recipe.name, quiet)
    screen.say(f"{recipe.name} on {task.images} pictures, {runtime.describe()} → {printable(path)}")
    for line in (*task.notes, *lines):
        screen.say(line)
    result = dict[str, Any]()

    def then() -> None:
        run.write("cost.json", ledger.cost(runtime.peak_memory_mb()))
        result.update(conclude(task, model, run, recipe, quiet))

    try:
        trainer.train(screen, then, ended="trained")
    except TooManyBad:
        if world.alone:  # else the other processes do not know of it, and the last checkpoint is the one before
            trainer.save("last")
            trainer.saver.wait()
        raise
    return result


def check_processes(recipe: Downstream, world: World) -> None:
    """Raise UserError for settings of a task that several processes cannot keep."""
    optim, settings = recipe.optim, recipe.runtime
    if world.alone:
        return
    if settings.parallel == "fsdp":
        raise UserError(f"{recipe.task} keeps a whole copy of the network in each process: set runtime.parallel ddp")
    if optim.batch_size < world.size * settings.accumulate:
        raise UserError(
            f"optim.batch_size {optim.batch_size} leaves nothing for some of {world.size} processes in "
            f"{settings.accumulate} part(s) each: raise it, it is the batch of all processes, or start fewer"
        )


def _loaded(task: Task) -> list[str]:
    """What is said of the weights that the network starts from."""
    loaded = loaded_of(task.model.backbone)
    return [loaded.line] if loaded else []


def _create_run(trainer: Trainer, task: Task, recipe: Downstream, record: DataRecord, checked: Checked) -> list[str]:
    run = RunFolder.reserve(trainer.run.path)
    run.write("task.json", task.facts)
    record.keep(checked.changes, {})
    run.begin(dump(recipe), {**environment(), "processes": trainer.world.size})
    return checked.lines


def _start(task: Task, recipe: Downstream, run: RunFolder, checkpoint: str | None) -> Path | None:
    """The checkpoint that a run goes on from; None for one that ended before its first."""
    _same_classes(task, recipe, run)
    return starting_point(run, checkpoint)


def _same_classes(task: Task, recipe: Downstream, run: RunFolder) -> None:
    """Raise UserError if classes differ from those of the run's head: resuming would mix them up."""
    known, now = run.read("task.json").get("classes", []), task.facts.get("classes", [])
    if list(known) == list(now):
        return
    raise UserError(
        f"{run.path} has learned other classes: {', '.join(of_classes(known, now))}; a head keeps its classes, so put "
        f"them back, or start a new run with remask {recipe.task}"
    )


def conclude(
    task: Task, model: nn.Module, run: RunFolder, recipe: Downstream, quiet: bool = True, changed: Sequence[str] = (),
    checkpoint: str = "last",
) -> dict[str, Any]:  # fmt: skip
    """Test a trained model, write eval/TASK.json and pictures; returns the content of eval/TASK.json. Collective.

    changed      changes of the test images since the training, in words
    checkpoint   name of the checkpoint of `model`, for the result
    """
    tested = learned(model).eval()
    result = task.test(tested, Watch("test", quiet))
    files = result.pop("files", {})
    if not run.writes:
        return result
    result["cost"] = run.read_or_empty("cost.json")
    if changed:
        result["protocol"]["changed"] = list(changed)
    result["protocol"] |= {"checkpoint": checkpoint, "pictures": _images(task, result)}
    data, identity = _test_identity(task, recipe)
    keep(run, recipe.task, result, data, identity | {"checkpoint": checkpoint}, files)
    folder = run.path / "pictures"
    make_folder(folder)
    task.show(tested, folder)
    return result


def _images(task: Task, result: Mapping[str, Any]) -> dict[str, Any]:
    """{"train", "test": numbers of images, "bad": unusable ones, "left_out": by role}; "train" is None if unknown."""
    trained_on = task.images if task.train else sum(task.facts.get("pictures", [])) or None
    left_out = {role: dict(getattr(group[0], "left_out", {})) for role, group in task.sources.items()}
    counts = {"train": trained_on, "test": result["images"], "bad": {"test": result["bad_images"]}}
    return {**counts, "left_out": left_out}


def _test_identity(task: Task, recipe: Downstream) -> tuple[str, dict[str, Any]]:
    """The address of the test images, and what identifies them: {"address", "exclude", "sources": digests by role}."""
    role = "val" if "val" in task.sources else "data"
    sources = of_task(recipe, {role: task.sources[role]}, lambda line: None)
    digests = {name: inventory.digest() for name, inventory in sources.found.items() if name != FIRST}
    data: Any = recipe.data  # type: ignore[attr-defined]
    address = str(data.val or data.source)
    return address, {"address": address, "exclude": list(data.exclude), "sources": digests}


def tested_on_other(task: Task, run: RunFolder, recipe: Downstream) -> list[str]:
    """Lines for the log about changes of the test images since a run was trained; [] if there are none."""
    changes = DataRecord(run, lambda line: None).since(of_task(recipe, task.sources, lambda line: None))
    held_out = "" if "val" in task.sources else "; the fifth held out is another, and may have been trained on"
    return [f"{change}: tested as it is now{held_out}" for change in changes]


def restored(built: Any, recipe: Downstream, run: RunFolder, name: str = "last") -> nn.Module:
    """A built model with the weights of a run's checkpoint `name`, and their average if the recipe has one."""
    model: nn.Module = Averaged(built, recipe.optim.ema) if recipe.optim.ema else built
    load_weights(intact(run, name) / "model.safetensors", model)
    return model


def learned(model: nn.Module) -> Any:
    """The model to test: the averaged one if there is one."""
    return model.average.module if isinstance(model, Averaged) else model


def groups(model: Any, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """AdamW groups of a task: rates decay with the backbone's depth (BEiT), heads have the full rate."""
    exempt: list[str] = model.no_decay() if hasattr(model, "no_decay") else []
    return parameter_groups(
        model.named_parameters(), weight_decay, no_decay=exempt,
        depth_of=model.param_depth, depth=model.backbone.depth, layer_decay=layer_decay,
    )  # fmt: skip


def schedule(recipe: Downstream, steps_per_epoch: int) -> Schedule:
    """The trainer's schedule, from [optim] and [runtime]."""
    optim, runtime = recipe.optim, recipe.runtime
    return Schedule(
        optim.epochs, steps_per_epoch, optim.peak, optim.warmup_epochs, optim.min_lr, optim.clip,
        runtime.accumulate, optim.max_steps, runtime.log_every, runtime.save_every_minutes, runtime.keep_every_epochs,
        drops=tuple(optim.epochs * share for share in optim.drops) if optim.schedule == "steps" else (),
        power=optim.power if optim.schedule == "poly" else None, max_skipped=optim.max_skipped,
    )  # fmt: skip


def _hooks(task: Task, model: nn.Module, recipe: Downstream, world: World) -> list[Hook]:
    """What is done after an epoch: processes tell each other which images are unusable, and the model is tested."""
    tested = _test_hook(task, model, recipe)
    return [tested] if world.alone else [bad_of_all(getattr(task.train, "loader", task.train)), tested]


def _test_hook(task: Task, model: nn.Module, recipe: Downstream) -> Hook:
    """Hook that returns {"val/HEADLINE": value} every few epochs; the final test comes after training."""
    every, last = recipe.test.every_epochs, recipe.optim.epochs  # type: ignore[attr-defined]

    def hook(epoch: int) -> Mapping[str, float]:
        if epoch % every or epoch == last:
            return {}
        with torch.random.fork_rng():
            value = task.test(learned(model).eval(), Watch("test", quiet=True))[task.headline]
        return {} if value is None else {f"val/{task.headline}": float(value)}

    return hook


__all__ = [
    "Task", "check_processes", "conclude", "groups", "learned", "restored", "schedule", "tested_on_other", "train",
]  # fmt: skip
