"""The command line. Parses, calls `remask.commands`, and turns mistakes into one line and exit code 2.

Nothing heavy is imported before a command needs it, so that `remask --help` answers at once.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from remask.cli import data as cli_data
from remask.cli import downstream as cli_downstream
from remask.cli import hints as cli_hints
from remask.cli import look as cli_look
from remask.cli import options
from remask.cli import plan as cli_plan
from remask.cli import study as cli_study
from remask.cli import train as cli_train
from remask.cli.ending import end, report_error, report_interrupt
from remask.files.escaping import escape_on
from remask.training import launcher, stopping


class _Interruptible(TyperGroup):
    """Its own `main` would turn Ctrl-C into an exit code, and forget what the exception says of it."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> Any:
        """The result of a command, or its exit code."""
        try:
            with self.make_context("remask", [*(args or ())]) as context:
                return self.invoke(context)
        except typer.Exit as end:
            return end.exit_code


app = typer.Typer(
    name="remask",
    cls=_Interruptible,
    help="Efficient masked image modeling: pre-train a vision backbone on your pictures, then see what it learned.",
    epilog="Start with: remask pretrain --data DIR   (or, with no pictures at hand: remask pretrain --recipe demo)",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


def _version(given: bool) -> bool:
    if given:
        from remask import __version__

        print(__version__)
        raise typer.Exit
    return given


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """`main` looks for --debug itself, so that it may stand anywhere."""


cli_train.register(app)
cli_look.register(app)
cli_downstream.register(app)
cli_data.register(app)
cli_plan.register(app)
cli_study.register(app)


@app.command()
def export(
    run: options.Run,
    out: Annotated[Path | None, options.out("Where to.  [RUN/export]")] = None,
    image_size: options.ImageSize = None,
    checkpoint: options.Checkpoint = "last",
) -> None:
    """Write a run for other programs.

    Pre-training: the backbone's weights, how timm rebuilds it, and a script that loads it; position tables are resized
    to the size asked. A downstream run: the whole model with its classes, for timm where timm has it, and the backbone.
    """
    from remask.commands.refusals import check_folder_out, check_run
    from remask.recipe.values import image_size as parsed

    size = parsed(image_size)
    check_run(run, checkpoint)
    check_folder_out(out)
    from remask.commands import exporting

    print(exporting.export(run, out, image_size=size, checkpoint=checkpoint))


@app.command()
def reconstruct(
    run: options.Run,
    images: Annotated[str | None, options.images("Pictures to show.  [the run's own]")] = None,
    out: Annotated[Path | None, options.out("[RUN/pictures/reconstruction.png]", "PNG")] = None,
    count: options.Count = 4,
    seed: options.Seed = 0,
    checkpoint: options.Checkpoint = "last",
    exclude: options.Exclude = None,
    quiet: options.Quiet = False,
) -> None:
    """Draw masked views and predictions."""
    from remask.commands.refusals import check_file_out, check_reconstruct

    check_reconstruct(run, checkpoint, images, exclude or ())
    check_file_out(out)
    from remask.commands import reconstruction

    drawn = reconstruction.reconstruct(
        run, images, out=out, count=count, seed=seed, checkpoint=checkpoint, exclude=exclude or (), quiet=quiet
    )
    print(drawn)


@app.command()
def codebook(
    data: Annotated[str, options.data("Pictures to fit the words on.")],
    out: Annotated[Path, options.out("New safetensors file.", "FILE")],
    recipe: Annotated[str, options.recipe("Where picture and patch size come from.")] = "beit-vit-b",
    target: Annotated[str, options.target("hog, hog-l2, pixels, pixels-norm, or a teacher as timm:NAME.")] = "hog",
    vocabulary: Annotated[int | None, typer.Option(metavar="N", help="Number of words.  [the recipe's]")] = None,
    limit: options.Limit = None,
    exclude: options.Exclude = None,
    seed: options.Seed = 0,
    set_: options.Settings = None,
    quiet: options.Quiet = False,
) -> None:
    """Fit a codebook of patches by k-means.

    Its words are what BEiT predicts: --set method.target.file=FILE.
    """
    from remask.commands.choosing import choose_codebook_recipe
    from remask.commands.refusals import check_file_out, check_source, refuse_file

    refuse_file(out)
    choose_codebook_recipe(recipe, target, vocabulary, set_ or [])
    check_source(data, limit, exclude or ())
    check_file_out(out)
    from remask.commands import codebooks

    written = codebooks.codebook(
        data, out, recipe=recipe, target=target, vocabulary=vocabulary, limit=limit, seed=seed, settings=set_ or [],
        exclude=exclude or [], quiet=quiet,
    )  # fmt: skip
    print(written)


@app.command()
def report(run: options.Run) -> None:
    """Write one HTML page about a run.

    Curves, pictures, probe table, cost and recipe in RUN/report.html, which opens offline.
    """
    from remask.commands.refusals import check_run

    check_run(run)
    from remask.commands import reporting

    print(reporting.report(run))


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or the folder of an export.", show_default=False)],
) -> None:
    """Tell which files of a run are intact.

    Checkpoints and exports by the digests they were written with, other files by reading them; exit code 2 where one is
    damaged.
    """
    from remask.commands import verifying

    verifying.verify(run, say=print)


@app.command()
def recipes(json: options.Json = False) -> None:
    """List the recipes."""
    from remask.commands import recipe_list

    recipe_list.recipes(as_json=json)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name or a TOML file.", show_default=False)],
    set_: options.Settings = None,
    json: options.Json = False,
) -> None:
    """Print a recipe's equation, size and cost."""
    from remask.commands import recipe_page

    recipe_page.show(recipe, set_ or [], as_json=json)


@app.command()
def doctor() -> None:
    """Check versions, devices, speed and disk."""
    from remask.commands import diagnosis

    diagnosis.doctor()


def main() -> NoReturn:
    """Entry point: 0 done, 2 a mistake that one line explains, 130 interrupted, 143 terminated, 75 start it again."""
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # wait a fraction of a millisecond, then leave the core to others
    if said := launcher.left_over():
        print(f"remask: {said}", file=sys.stderr)
    escape_on(sys.stdout, sys.stderr)
    debug = "--debug" in sys.argv
    arguments = cli_hints.aliased([argument for argument in sys.argv[1:] if argument != "--debug"])
    with stopping.answered():
        code = _run(arguments, debug)
    end(code)


def _run(arguments: list[str], debug: bool) -> int:
    """The exit code of a command, after one line about what went wrong."""
    try:
        return app(arguments, standalone_mode=False) or 0
    except BrokenPipeError as error:  # the reader of the output is gone, as `head` after its lines
        if error.filename:
            return report_error(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return 1
    except Exception as error:
        if debug:
            raise
        return report_error(error)
    except KeyboardInterrupt as error:
        return report_interrupt(error)


if __name__ == "__main__":
    main()
