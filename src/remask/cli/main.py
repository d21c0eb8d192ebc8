"""The command line. Parses, calls `remask.commands`, and turns mistakes into one line and exit code 2.

Nothing heavy is imported before a command needs it, so that `remask --help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from remask.cli import data as cli_data
from remask.cli import downstream as cli_downstream
from remask.cli import hints as cli_hints
from remask.cli import look as cli_look
from remask.cli import plan as cli_plan
from remask.cli.ending import end, of_all
from remask.cli.options import Exclude, Range
from remask.files.escaping import escape_on
from remask.training import launcher

app = typer.Typer(
    name="remask",
    help="Efficient masked image modeling: pre-train a vision backbone on your pictures, then see what it learned.",
    epilog="Start with: remask pretrain --data DIR   (or, with no pictures at hand: remask pretrain --recipe demo)",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

DEFAULT_RECIPE = "dmjd-vit-tiny"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that --out named.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe; repeatable.")
]
Verify = Annotated[
    bool, typer.Option("--verify-data", help="Read all pictures and hash them: sees edits that keep name and size.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(asked: bool) -> bool:
    if asked:
        from remask import __version__

        print(__version__)
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """`main` looks for --debug itself, so that it may stand anywhere."""


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Option(help="A recipe's name (remask recipes) or a TOML file.")] = DEFAULT_RECIPE,
    data: Annotated[
        str | None,
        typer.Option(metavar="SRC", help="Pictures: folder, list file, tar shards, parquet, a set's name."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for the run.  [runs/RECIPE-DATE]")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="mae, simmim, maskfeat, beit, convmae, fastmim, dmae, moma, with +dm, +jd, +dmjd."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="vit_micro, convvit_base, a timm ViT, BEiT or Swin; for fastmim any timm name.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="What masked tokens predict: pixels[-norm], hog[-l2], tokens, clip.")
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="dmae, moma: mae:FILE,heads=12; mocov3:FILE,heads=12; run:RUN; repeatable."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures; the warm-up keeps its share.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Unique pictures per step, over all devices.")] = None,
    image_size: Annotated[str | None, typer.Option(metavar="HxW", help="Size after cropping, 224 or 96x160.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use the first N pictures only.")] = None,
    max_steps: Annotated[int | None, typer.Option(metavar="N", help="End after N steps.")] = None,
    max_bad: Annotated[float | None, typer.Option(metavar="SHARE", help="Share of bad pictures that stops.")] = None,
    probe: Annotated[str | None, typer.Option(metavar="SRC", help="Labelled pictures for kNN on the way.")] = None,
    exclude: Exclude = None,
    range_: Range = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    device: Device = None,
    set_: Settings = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Shrink the recipe to seconds, to see that it runs.")] = False,
    verify_data: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a backbone on unlabelled pictures."""
    from remask import commands
    from remask.recipe import choose

    flags: dict[str, Any] = {
        "data.source": data, "backbone.name": model, "method.target": target, "optim.epochs": epochs, "seed": seed,
        "optim.batch_size": batch_size, "data.image_size": image_size, "data.limit": limit, "data.max_bad": max_bad,
        "optim.max_steps": max_steps, "probe.source": probe, "runtime.device": device, "data.range": range_,
    }  # fmt: skip
    given = {key: value for key, value in {**flags, "data.exclude": exclude or None}.items() if value is not None}
    chosen = choose(recipe, given, method=method, teachers=teacher or [], settings=set_ or [], smoke=smoke)
    _say_toy(model if smoke and not quiet else None, chosen.backbone.name)
    commands.pretrain(chosen, out=out, quiet=quiet, verify_data=verify_data)


def _say_toy(model: str | None, toy: str) -> None:
    """The one thing that --smoke replaces although it was named."""
    if model and model != toy:
        print(f"smoke: {toy} stands for {model}", file=sys.stderr)


@app.command()
def resume(
    run: Run,
    device: Device = None,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="Go on where the data is not what the run was trained on.")
    ] = False,
    verify_data: Verify = False,
    quiet: Quiet = False,
) -> None:
    """Continue a run exactly where it was.

    Names, sizes and labels of its data are compared with those that it was trained on, and a change stops it. An edit
    that keeps name and size is seen with --verify-data alone, if the run was started or resumed with it before.
    """
    from remask import commands

    commands.resume(run, device=device, quiet=quiet, accept_changed_data=accept_changed_data, verify_data=verify_data)


cli_look.register(app)
cli_downstream.register(app)
cli_data.register(app)
cli_plan.register(app)


@app.command()
def export(
    run: Run,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to.  [RUN/export]")] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="PX", help="224 or 96x160: pictures it will see.  [the run's]")
    ] = None,
    checkpoint: Annotated[str, typer.Option(metavar="NAME", help="last, or a kept one such as epoch-0100.")] = "last",
) -> None:
    """Write a run for other programs.

    Pre-training: the backbone's weights, how timm rebuilds it, and a script that loads it; position tables are resized
    to the size asked. A downstream run: the whole model with its classes, for timm where timm has it, and the backbone.
    """
    from remask import commands
    from remask.recipe.values import image_size as parsed

    print(commands.export(run, out, image_size=parsed(image_size), checkpoint=checkpoint))


@app.command()
def reconstruct(
    run: Run,
    images: Annotated[str | None, typer.Option(metavar="SRC", help="Pictures to show.  [the run's own]")] = None,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="[RUN/pictures/reconstruction.png]")] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, max=32, help="Number of pictures.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the masks.")] = 0,
    checkpoint: Annotated[str, typer.Option(metavar="NAME", help="last, or a kept one such as epoch-0100.")] = "last",
    exclude: Exclude = None,
    quiet: Quiet = False,
) -> None:
    """Draw masked views and predictions."""
    from remask import commands

    drawn = commands.reconstruct(
        run, images, out=out, count=count, seed=seed, checkpoint=checkpoint, exclude=exclude or (), quiet=quiet
    )
    print(drawn)


@app.command()
def codebook(
    data: Annotated[str, typer.Option(metavar="SRC", help="Pictures to fit the words on.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="New safetensors file.")],
    recipe: Annotated[str, typer.Option(help="Where picture and patch size come from.")] = "beit-vit-b",
    target: Annotated[str, typer.Option(help="hog, hog-l2, pixels, pixels-norm, or a teacher as timm:NAME.")] = "hog",
    vocabulary: Annotated[int | None, typer.Option(metavar="N", help="Number of words.  [the recipe's]")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use the first N pictures only.")] = None,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(help="Seed of k-means.")] = 0,
    set_: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Fit a codebook of patches by k-means.

    Its words are what BEiT predicts: --set method.target.file=FILE.
    """
    from remask.build import codebook as codebooks

    print(
        codebooks.create(
            data, out, recipe=recipe, target=target, vocabulary=vocabulary, limit=limit, seed=seed,
            settings=set_ or [], exclude=exclude or [], quiet=quiet,
        )
    )  # fmt: skip


@app.command()
def report(run: Run) -> None:
    """Write one HTML page about a run.

    Curves, pictures, probe table, cost and recipe in RUN/report.html, which opens offline.
    """
    from remask import commands

    print(commands.report(run))


@app.command()
def recipes(json: Json = False) -> None:
    """List the recipes."""
    from remask.commands.recipe_list import recipes as print_recipes

    print_recipes(as_json=json)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name or a TOML file.", show_default=False)],
    set_: Settings = None,
    json: Json = False,
) -> None:
    """Print a recipe's equation, size and cost."""
    from remask.commands.recipe_page import show as print_recipe

    print_recipe(recipe, set_ or [], as_json=json)


@app.command()
def doctor() -> None:
    """Check versions, devices, speed and disk."""
    from remask.commands.diagnosis import doctor as print_machine

    print_machine()


def main() -> NoReturn:
    """Entry point: 0 done, 2 a mistake that one line explains, 130 interrupted."""
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # wait a fraction of a millisecond, then leave the core to others
    if said := launcher.left_over():
        print(f"remask: {said}", file=sys.stderr)
    escape_on(sys.stdout, sys.stderr)
    debug = "--debug" in sys.argv
    arguments = cli_hints.aliased([argument for argument in sys.argv[1:] if argument != "--debug"])
    try:
        end(app(arguments, standalone_mode=False) or 0)
    except Exception as error:
        if debug:
            raise
        end(of_all(error))
    except KeyboardInterrupt:
        end(130)


if __name__ == "__main__":
    main()
