"""`remask study report`: the table of a comparison from the files of its cells."""

from pathlib import Path

from remask.study.cells import Place
from remask.study.plan import load_study
from remask.study.report import write_report


def study_report(file: Path | str) -> Path:
    """Write the page of a study from what its cells left, and return the path of its Markdown; nothing is run.

    Raises UserError for a mistake in the file and a damaged result.
    """
    study = load_study(Path(file))
    return write_report(study, Place(Path(file), Path()))[0]


__all__ = ["study_report"]
