"""The commands of what comes after pre-training: finetune, segment, detect. `register` adds them to the app."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from remask.cli import options


@dataclass(frozen=True)
class Shared:
    """The argument and the flags that finetune, segment and detect have in common, as they were given."""

    start: options.StartOrNone = None
    recipe: Annotated[str | None, options.recipe("A recipe's name or a TOML file.  [small]")] = None
    out: Annotated[Path | None, options.out("New folder for the run.  [runs/TASK-RECIPE-DATE]")] = None
    epochs: options.Epochs = None
    batch_size: options.BatchSize = None
    lr: Annotated[float | None, typer.Option(help="Absolute learning rate.")] = None
    image_size: Annotated[
        str | None, options.image_size("Size of a training crop, 224 or 96x160.  [the network's]")
    ] = None
    heads: options.Heads = None
    normalise: options.Normalise = None
    limit: options.Limit = None
    max_bad: options.MaxBad = None
    exclude: options.Exclude = None
    range_: options.Range = None
    untrained: Annotated[bool, options.untrained("The same network from scratch, as a control.")] = False
    eval_only: Annotated[
        bool, typer.Option("--eval-only", help="Test RUN, which this command left, and train nothing.")
    ] = False
    seed: options.SeedOrNone = None
    device: options.Device = None
    set_: options.Settings = None
    verify_data: options.Verify = False
    quiet: options.Quiet = False

    def keys(self) -> dict[str, Any]:
        """The recipe keys that the flags set; None where a flag was not given."""
        return {
            "optim.epochs": self.epochs, "optim.batch_size": self.batch_size, "optim.lr": self.lr,
            "data.image_size": self.image_size, "data.limit": self.limit, "data.max_bad": self.max_bad,
            "data.exclude": self.exclude or None, "data.range": self.range_, "model.heads": self.heads,
            "model.normalise": self.normalise,
            "model.untrained": self.untrained or None, "seed": self.seed, "runtime.device": self.device,
        }  # fmt: skip


def with_shared_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the flags of `Shared` behind its own; the command receives them as its argument `shared`."""
    own = [parameter for name, parameter in inspect.signature(command).parameters.items() if name != "shared"]
    parameters = [*own, *inspect.signature(Shared).parameters.values()]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        flags = {parameter.name: given.pop(parameter.name) for parameter in own}
        command(shared=Shared(**given), **flags)

    signature = inspect.Signature([parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters])
    called.__signature__ = signature  # type: ignore[attr-defined]  # the parser reads flags from it
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


@with_shared_flags
def finetune(
    shared: Shared,
    data: Annotated[str | None, options.data("Labelled pictures to learn from.")] = None,
    val: Annotated[str | None, options.val("Labelled pictures to test on.  [1/5 of --data]")] = None,
    share: Annotated[float | None, typer.Option(help="Learn from this share of each class only: 0.1.")] = None,
) -> None:
    """Fine-tune a backbone on labelled pictures."""
    _run("finetune", shared, {"data.source": data, "data.val": val, "data.share": share})


@with_shared_flags
def segment(
    shared: Shared,
    data: Annotated[str | None, options.data("Pictures, or a set in ADE20K's layout.", options.DIR)] = None,
    masks: Annotated[str | None, typer.Option(metavar="DIR", help="Masks of --data; COCO: the panoptic JSON.")] = None,
    val: Annotated[str | None, options.val("Pictures to test on.", options.DIR)] = None,
    val_masks: Annotated[str | None, typer.Option(metavar="DIR", help="Masks of --val.")] = None,
    head: Annotated[str | None, typer.Option(help="upernet, or linear for a quick answer.")] = None,
    classes: Annotated[int | None, options.classes("Number of classes.  [stated by the set]")] = None,
) -> None:
    """Train semantic segmentation on a backbone."""
    keys = {
        "data.source": data, "data.masks": masks, "data.val": val, "data.val_masks": val_masks,
        "data.classes": classes, "model.head": head,
    }  # fmt: skip
    _run("segment", shared, keys)


@with_shared_flags
def detect(
    shared: Shared,
    data: Annotated[str | None, options.data("Pictures.", options.DIR)] = None,
    annotations: Annotated[str | None, typer.Option(metavar="JSON", help="COCO annotations of --data.")] = None,
    val: Annotated[str | None, options.val("Pictures to test on.", options.DIR)] = None,
    val_annotations: Annotated[str | None, typer.Option(metavar="JSON", help="COCO annotations of --val.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out annotations that cannot be used.")] = False,
) -> None:
    """Train object detection and instance segmentation on a backbone."""
    keys = {
        "data.source": data, "data.annotations": annotations, "data.val": val, "data.val_annotations": val_annotations,
        "data.skip_bad": skip_bad or None,
    }  # fmt: skip
    _run("detect", shared, keys)


def _run(task: str, shared: Shared, keys: dict[str, Any]) -> None:
    """Train a task, or test the model that it left, with the recipe keys of its own flags and of the shared ones."""
    from remask import commands
    from remask.commands.choosing import choose_task_recipe
    from remask.commands.refusals import check_evaluate, check_task
    from remask.errors import UserError

    given = {key: value for key, value in {**keys, **shared.keys()}.items() if value is not None}
    settings = shared.set_ or []
    if not shared.eval_only:
        check_task(choose_task_recipe(task, shared.start, shared.recipe, given, settings), shared.out)
        train = getattr(commands, task)
        train(
            shared.start, shared.recipe, given, settings=settings, out=shared.out, quiet=shared.quiet,
            verify_data=shared.verify_data, say=print,
        )  # fmt: skip
        return
    if shared.start is None:
        raise UserError(f"--eval-only tests a run that remask {task} left: give its folder")
    check_evaluate(Path(shared.start), given, shared.device)
    commands.evaluate(Path(shared.start), given, device=shared.device, quiet=shared.quiet, say=print)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (finetune, segment, detect):
        app.command()(command)


__all__ = ["register"]
