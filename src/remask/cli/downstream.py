"""The commands of what comes after pre-training: finetune, segment, detect. `register` adds them to the app."""

from pathlib import Path
from typing import Annotated, Any

import typer

from remask.cli.options import Exclude, Range

Start = Annotated[
    str | None,
    typer.Argument(metavar="RUN|SPEC", help="A run, or mae:FILE, timm:NAME, untrained:NAME.", show_default=False),
]
Recipe = Annotated[str | None, typer.Option(help="A recipe's name or a TOML file.  [small]")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for the run.  [runs/TASK-RECIPE-DATE]")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the pictures; the warm-up keeps its share.")]
BatchSize = Annotated[int | None, typer.Option(help="Pictures per step, over all devices.")]
Lr = Annotated[float | None, typer.Option(help="Absolute learning rate.")]
ImageSize = Annotated[str | None, typer.Option(metavar="HxW", help="224 or 96x160.  [the network's]")]
Heads = Annotated[str | None, typer.Option(metavar="N", help="Attention heads, where a file does not tell them.")]
Normalise = Annotated[str | None, typer.Option(help="imagenet, half or clip, where a file does not tell.")]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Use the first N pictures only.")]
MaxBad = Annotated[float | None, typer.Option(metavar="SHARE", help="Share of bad pictures that stops.  [0.01]")]
Untrained = Annotated[bool, typer.Option("--untrained", help="The same network from scratch, as a control.")]
EvalOnly = Annotated[bool, typer.Option("--eval-only", help="Test RUN, which this command left, and train nothing.")]
Seed = Annotated[int | None, typer.Option(help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe; repeatable.")
]
Verify = Annotated[
    bool, typer.Option("--verify-data", help="Hash all pictures, so that a resume sees edits that keep name and size.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]


def finetune(
    start: Start = None,
    data: Annotated[str | None, typer.Option(metavar="SRC", help="Labelled pictures to learn from.")] = None,
    val: Annotated[
        str | None, typer.Option(metavar="SRC", help="Labelled pictures to test on.  [1/5 of --data]")
    ] = None,
    recipe: Recipe = None,
    out: Out = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    image_size: ImageSize = None,
    heads: Heads = None,
    normalise: Normalise = None,
    limit: Limit = None,
    max_bad: MaxBad = None,
    exclude: Exclude = None,
    range_: Range = None,
    share: Annotated[float | None, typer.Option(help="Learn from this share of each class only: 0.1.")] = None,
    untrained: Untrained = False,
    eval_only: EvalOnly = False,
    seed: Seed = None,
    device: Device = None,
    set_: Settings = None,
    verify_data: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a backbone on labelled pictures."""
    flags = {
        "data.source": data, "data.val": val, "data.image_size": image_size, "data.limit": limit, "data.share": share,
        "data.max_bad": max_bad,
        "data.exclude": exclude or None, "data.range": range_,
        **_common(epochs, batch_size, lr, heads, normalise, untrained, seed, device),
    }  # fmt: skip
    _run("finetune", start, recipe, flags, set_, out, eval_only, device, quiet, verify_data)


def segment(
    start: Start = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Pictures, or a set in ADE20K's layout.")] = None,
    masks: Annotated[str | None, typer.Option(metavar="DIR", help="Masks of --data; COCO: the panoptic JSON.")] = None,
    val: Annotated[str | None, typer.Option(metavar="DIR", help="Pictures to test on.")] = None,
    val_masks: Annotated[str | None, typer.Option(metavar="DIR", help="Masks of --val.")] = None,
    recipe: Recipe = None,
    out: Out = None,
    head: Annotated[str | None, typer.Option(help="upernet, or linear for a quick answer.")] = None,
    classes: Annotated[int | None, typer.Option(metavar="N", help="Number of classes.  [stated by the set]")] = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    image_size: Annotated[str | None, typer.Option(metavar="HxW", help="Size of a training crop.")] = None,
    heads: Heads = None,
    normalise: Normalise = None,
    limit: Limit = None,
    max_bad: MaxBad = None,
    exclude: Exclude = None,
    range_: Range = None,
    untrained: Untrained = False,
    eval_only: EvalOnly = False,
    seed: Seed = None,
    device: Device = None,
    set_: Settings = None,
    verify_data: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Train semantic segmentation on a backbone."""
    flags = {
        "data.source": data, "data.masks": masks, "data.val": val, "data.val_masks": val_masks, "model.head": head,
        "data.image_size": image_size, "data.limit": limit, "data.classes": classes, "data.max_bad": max_bad,
        "data.exclude": exclude or None, "data.range": range_,
        **_common(epochs, batch_size, lr, heads, normalise, untrained, seed, device),
    }  # fmt: skip
    _run("segment", start, recipe, flags, set_, out, eval_only, device, quiet, verify_data)


def detect(
    start: Start = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Pictures.")] = None,
    annotations: Annotated[str | None, typer.Option(metavar="JSON", help="COCO annotations of --data.")] = None,
    val: Annotated[str | None, typer.Option(metavar="DIR", help="Pictures to test on.")] = None,
    val_annotations: Annotated[str | None, typer.Option(metavar="JSON", help="COCO annotations of --val.")] = None,
    recipe: Recipe = None,
    out: Out = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    image_size: Annotated[str | None, typer.Option(metavar="HxW", help="Size of a training crop.")] = None,
    heads: Heads = None,
    normalise: Normalise = None,
    limit: Limit = None,
    max_bad: MaxBad = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out annotations that cannot be used.")] = False,
    exclude: Exclude = None,
    range_: Range = None,
    untrained: Untrained = False,
    eval_only: EvalOnly = False,
    seed: Seed = None,
    device: Device = None,
    set_: Settings = None,
    verify_data: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Train object detection and instance segmentation on a backbone."""
    flags = {
        "data.source": data, "data.annotations": annotations, "data.val": val, "data.val_annotations": val_annotations,
        "data.image_size": image_size, "data.limit": limit, "data.max_bad": max_bad, "data.skip_bad": skip_bad or None,
        "data.exclude": exclude or None, "data.range": range_,
        **_common(epochs, batch_size, lr, heads, normalise, untrained, seed, device),
    }  # fmt: skip
    _run("detect", start, recipe, flags, set_, out, eval_only, device, quiet, verify_data)


def _common(
    epochs: int | None, batch_size: int | None, lr: float | None, heads: str | None,
    normalise: str | None, untrained: bool, seed: int | None, device: str | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "optim.epochs": epochs, "optim.batch_size": batch_size, "optim.lr": lr, "model.heads": heads,
        "model.normalise": normalise, "model.untrained": untrained or None, "seed": seed, "runtime.device": device,
    }  # fmt: skip


def _run(
    task: str, start: str | None, recipe: str | None, flags: dict[str, Any], settings: list[str] | None,
    out: Path | None, eval_only: bool, device: str | None, quiet: bool, verify_data: bool,
) -> None:  # fmt: skip
    from remask import commands
    from remask.errors import UserError

    given = {key: value for key, value in flags.items() if value is not None}
    if not eval_only:
        begin = {"finetune": commands.finetune, "segment": commands.segment, "detect": commands.detect}[task]
        begin(start, recipe, given, settings=settings or [], out=out, quiet=quiet, verify_data=verify_data, say=print)
        return
    if start is None:
        raise UserError(f"--eval-only tests a run that remask {task} left: give its folder")
    commands.evaluate(Path(start), given, device=device, quiet=quiet, say=print)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (finetune, segment, detect):
        app.command()(command)


__all__ = ["register"]
