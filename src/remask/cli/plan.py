"""`remask plan`: parsing only, as in `remask.cli.main`."""

from json import dumps
from typing import Annotated, Any

import typer

from remask.cli.options import Exclude

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe; repeatable.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(plan)


def plan(
    recipe: Annotated[str, typer.Option(help="A recipe's name (remask recipes) or a TOML file.")] = "dmjd-vit-tiny",
    device: Annotated[
        str,
        typer.Option(help="h200, h100, a100, a100-40, a6000, l40s, rtx4090, v100; or auto, cpu, cuda: this machine."),
    ] = "",
    gpus: Annotated[int, typer.Option(metavar="N", min=1, help="Devices that share the batch.")] = 1,
    data: Annotated[
        str | None, typer.Option(metavar="SRC", help="Pictures: their number, and what is decoded.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Images of an epoch.  [those of --data, or ImageNet-1k's]")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(metavar="SHARE", min=0.01, max=1, help="Share of a named device's peak.  [0.35]")
    ] = None,
    core_rate: Annotated[float, typer.Option(metavar="N", min=1, help="Images/s that a core decodes.")] = 600.0,
    method: Annotated[str | None, typer.Option(help="As in remask pretrain: mae+dmjd and the like.")] = None,
    model: Annotated[str | None, typer.Option(help="As in remask pretrain: vit_base_patch16_224.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Unique pictures per step, over all devices.")] = None,
    image_size: Annotated[str | None, typer.Option(metavar="HxW", help="Size after cropping, 224 or 96x160.")] = None,
    exclude: Exclude = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="This machine: train the real batch too, compare.")
    ] = False,
    set_: Settings = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a recipe will take before it runs: memory, hours, disk.

    For a device that is named, bytes and FLOPs are counted exactly and its speed is assumed. For this machine a few
    real steps are trained in processes of their own. Several --gpus without a --device are h200.
    """
    from remask.recipe import choose

    name = device or ("auto" if gpus == 1 else "h200")
    check_device(name, measure=measure, mfu=mfu is not None)
    flags: dict[str, Any] = {
        "data.source": data, "backbone.name": model, "optim.epochs": epochs, "optim.batch_size": batch_size,
        "data.image_size": image_size, "data.exclude": exclude or None,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    chosen = choose(recipe, given, method=method, settings=set_ or [])

    from remask.commands.plan import Asked, plan, text

    facts = plan(chosen, Asked(name, gpus, images, mfu, core_rate, measure))
    print(dumps(facts, indent=2) if json else text(facts))


def check_device(name: str, *, measure: bool, mfu: bool) -> None:
    """Only this machine is measured, and only another has a speed to assume."""
    from remask.errors import UserError

    here = name.partition(":")[0] in ("auto", "cpu", "cuda", "mps")
    if measure and not here:
        raise UserError(f"--measure trains on this machine, and --device {name} is another: leave one of them out")
    if mfu and here:
        raise UserError("--mfu is for a --device that is named; this machine's speed is measured")


__all__ = ["register"]
