"""The commands of comparisons, `remask study run` and `report`: parsing only. `register` adds them to the app."""

from pathlib import Path
from typing import Annotated

import typer

from remask.cli import options

File = Annotated[Path, typer.Argument(metavar="FILE", help="The study: a TOML file of rows, seeds, probe and budget.")]

study = typer.Typer(
    name="study", help="Compare rows over seeds at a budget, and write the table.", rich_markup_mode=None,
    no_args_is_help=True,
)  # fmt: skip


@study.command("run")
def study_run(
    file: File,
    row: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This row alone; repeatable.")] = None,
    out: Annotated[Path | None, options.out("Where the runs are made.  [runs/NAME]")] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Processes.  [cores; 1 with a GPU]")] = None,
    quiet: options.Quiet = False,
) -> None:
    """Run what is missing of a study, resume what was cut, and write its report.

    Each cell, a row with a seed, leaves one small file in results/ beside the study; these are to be committed.
    """
    from remask.commands import studying

    print(studying.study_run(file, rows=row or (), runs=out, jobs=jobs, quiet=quiet))


@study.command("report")
def study_report(file: File) -> None:
    """Write the table of a study from the results that are there."""
    from remask.commands import study_page

    print(study_page.study_report(file))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(study)


__all__ = ["register"]
