"""`remask plan`: parsing only, as in `remask.cli.main`."""

from json import dumps
from typing import Annotated, Any

import typer

from remask.cli import options


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)


def plan(
    recipe: options.Recipe = "dmjd-vit-tiny",
    device: Annotated[
        str,
        options.device("h200, h100, a100, a100-40, a6000, l40s, rtx4090, v100; or auto, cpu, cuda: this machine."),
    ] = "",
    gpus: Annotated[int, typer.Option(metavar="N", min=1, help="Devices that share the batch.")] = 1,
    data: Annotated[str | None, options.data("Pictures: their number, and what is decoded.")] = None,
    images: Annotated[
        int | None, options.images("Images of an epoch.  [those of --data, or ImageNet-1k's]", "N", min=1)
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(metavar="SHARE", min=0.01, max=1, help="Share of a named device's peak.  [0.35]")
    ] = None,
    core_rate: Annotated[float, typer.Option(metavar="N", min=1, help="Images/s that a core decodes.")] = 600.0,
    method: options.Method = None,
    model: options.Model = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    image_size: options.CropSize = None,
    exclude: options.Exclude = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="This machine: train the real batch too, compare.")
    ] = False,
    set_: options.Settings = None,
    json: options.Json = False,
) -> None:
    """Say what a recipe will take before it runs: memory, hours, disk.

    For a device that is named, bytes and FLOPs are counted exactly and its speed is assumed. For this machine a few
    real steps are trained in processes of their own. Several --gpus without a --device are h200.
    """
    from remask.commands.refusals import check_plan, check_source
    from remask.recipe import choose

    name = device or ("auto" if gpus == 1 else "h200")
    check_plan(name, measure=measure, mfu=mfu is not None)
    flags: dict[str, Any] = {
        "data.source": data, "backbone.name": model, "optim.epochs": epochs, "optim.batch_size": batch_size,
        "data.image_size": image_size, "data.exclude": exclude or None,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    chosen = choose(recipe, given, method=method, settings=set_ or [])

    if images is None:
        check_source(chosen.data.source, chosen.data.limit, chosen.data.exclude)
    from remask.commands import planning

    facts = planning.plan(chosen, planning.PlanOptions(name, gpus, images, mfu, core_rate, measure))
    print(dumps(facts, indent=2) if json else planning.text(facts))


__all__ = ["register"]
