"""`remask study run`: make what is missing of a comparison."""

from collections.abc import Sequence
from pathlib import Path

from remask.commands.study_page import study_report
from remask.errors import UserError
from remask.study.cells import Place, cells
from remask.study.plan import load_study
from remask.study.runner import Runner, jobs_of_machine


def study_run(
    file: Path | str,
    *,
    rows: Sequence[str] = (),
    runs: Path | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Path:
    """Run the cells of a study that have no result yet, then write its report, whose path is returned.

    rows   these alone, and what they need     runs   where the runs are made; runs/NAME by default
    jobs   processes at a time, of one thread each; as many as cores by default, one where there is a GPU
    Raises UserError for a mistake in the file, before anything runs, and at the end where cells have failed.
    """
    study = load_study(Path(file))
    if unknown := [name for name in rows if name not in study.rows]:
        raise UserError(f"{unknown[0]} is no row of {file}: there are {', '.join(study.rows)}")
    place = Place(Path(file), runs or Path("runs") / study.name)
    todo = list(cells(study, place, tuple(rows)))
    failed = Runner(jobs or jobs_of_machine(), (lambda line: None) if quiet else print).run(todo)
    page = study_report(file)
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} cells failed: {failed[0]}")
    return page


__all__ = ["study_run"]
