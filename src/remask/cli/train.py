"""The commands that train without labels: pretrain, refine, resume. Parsing only, as in `remask.cli.main`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from remask.cli import options

DEFAULT_RECIPE = "dmjd-vit-tiny"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pretrain, refine, resume):
        app.command()(command)


def pretrain(
    recipe: options.Recipe = DEFAULT_RECIPE,
    data: Annotated[str | None, options.data("Pictures: folder, list file, tar shards, parquet, a set's name.")] = None,
    out: Annotated[Path | None, options.out("New folder for the run.  [runs/RECIPE-DATE]")] = None,
    method: options.Method = None,
    model: options.Model = None,
    target: Annotated[
        str | None, options.target("What masked tokens predict: pixels[-norm], hog[-l2], tokens, clip.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="dmae, moma: mae:FILE,heads=12; mocov3:FILE,heads=12; run:RUN; repeatable."),
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    image_size: options.CropSize = None,
    limit: options.Limit = None,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="End after N steps.")] = None,
    max_bad: options.MaxBad = None,
    probe: Annotated[str | None, typer.Option(metavar="SRC", help="Labelled pictures for kNN on the way.")] = None,
    exclude: options.Exclude = None,
    range_: options.Range = None,
    seed: options.SeedOrNone = None,
    device: options.Device = None,
    set_: options.Settings = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Shrink the recipe to seconds, to see that it runs.")] = False,
    verify_data: options.Verify = False,
    quiet: options.Quiet = False,
) -> None:
    """Pre-train a backbone on unlabelled pictures."""
    from remask.commands.refusals import check_pretrain
    from remask.recipe import choose

    flags: dict[str, Any] = {
        "data.source": data, "backbone.name": model, "method.target": target, "optim.epochs": epochs, "seed": seed,
        "optim.batch_size": batch_size, "data.image_size": image_size, "data.limit": limit, "data.max_bad": max_bad,
        "optim.max_steps": max_steps, "probe.source": probe, "runtime.device": device, "data.range": range_,
    }  # fmt: skip
    given = {key: value for key, value in {**flags, "data.exclude": exclude or None}.items() if value is not None}
    chosen = choose(recipe, given, method=method, teachers=teacher or [], settings=set_ or [], smoke=smoke)
    check_pretrain(chosen, out)
    _say_toy(model if smoke and not quiet else None, chosen.backbone.name)
    from remask.commands import pretraining

    _print_run(pretraining.pretrain(chosen, out=out, quiet=quiet, verify_data=verify_data), quiet)


def _print_run(run: Path, quiet: bool) -> None:
    """With --quiet the folder is all that is printed, once however many processes train it."""
    if quiet and os.environ.get("RANK", "0") == "0":
        print(run)


def _say_toy(model: str | None, toy: str) -> None:
    """Say which small network stands for the one that was named: --smoke replaces nothing else that is named."""
    if model and model != toy:
        print(f"smoke: {toy} stands for {model}", file=sys.stderr)


def refine(
    run: options.Run,
    data: Annotated[str | None, options.data("Pictures.  [those of the run]")] = None,
    out: Annotated[Path | None, options.out("New folder for the run.  [runs/RUN-refined-DATE]")] = None,
    epochs: Annotated[int | None, options.epochs("One shows half of the pictures, each in two crops.")] = None,
    batch_size: Annotated[int | None, options.batch_size("Crops per step, two of a picture, over all devices.")] = None,
    limit: options.Limit = None,
    max_bad: options.MaxBad = None,
    probe: Annotated[str | None, typer.Option(metavar="SRC", help="Labelled pictures for kNN on the way.")] = None,
    exclude: options.Exclude = None,
    seed: options.SeedOrNone = None,
    device: options.Device = None,
    set_: options.Settings = None,
    verify_data: options.Verify = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the last blocks of a run further, so that neighbours are alike (MIM-Refiner).

    A short second stage after masked pre-training, without labels, which leaves a new run; --set refine.… changes it.
    """
    from remask.commands.refusals import check_pretrain
    from remask.runs.refining import refine_recipe

    flags: dict[str, Any] = {
        "data.source": data, "optim.epochs": epochs, "optim.batch_size": batch_size, "data.limit": limit,
        "data.max_bad": max_bad, "probe.source": probe, "seed": seed, "runtime.device": device,
        "data.exclude": exclude or None,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    check_pretrain(refine_recipe(run, given, set_ or []), out)
    from remask.commands import refining

    done = refining.refine(run, given, settings=set_ or [], out=out, quiet=quiet, verify_data=verify_data)
    _print_run(done, quiet)


def resume(
    run: options.Run,
    checkpoint: Annotated[str | None, options.checkpoint("Exactly this one.  [last, or the newest intact]")] = None,
    device: options.Device = None,
    set_: options.SettingsOfRun = None,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Go on where the data is not what the run was trained on.")
    ] = False,
    verify_data: options.Verify = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue a run exactly where it was.

    Names, sizes and labels of its data are compared with those that it was trained on, and a change stops it. An edit
    that keeps name and size is seen with --verify-data alone, if the run was started or resumed with it before. --set
    takes optim.base_lr, lr, min_lr, clip, precision, max_skipped, and of runtime workers, threads, patience, log_every,
    save_every_minutes, keep_every_epochs and tensorboard; the run keeps and records what was set.
    """
    from remask.commands.refusals import check_device, check_unfinished

    check_unfinished(run, checkpoint, set_ or [])
    check_device(device)
    from remask.commands import resuming

    given = {"settings": set_ or [], "accept_changed_data": accept_changed_data, "verify_data": verify_data}
    _print_run(resuming.resume(run, checkpoint=checkpoint, device=device, quiet=quiet, **given), quiet)
