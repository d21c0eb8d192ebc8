"""Cells are made by real commands; here those run in this process, since starting a new one takes seconds."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from remask.cli import main as cli
from remask.commands import study_run
from remask.errors import UserError
from remask.study.cells import Cell, Place, cells
from remask.study.plan import load_study
from remask.study.runner import Runner

TEXT = """
title = "Digits"
data = "digits:train"
seeds = [0]
budget = {{ images = {images} }}
set = {{ {small} }}
compare = [["tuned", "tuned"]]

[probe]
data = "digits:train"
val = "digits:val"
limit = 100
shots = 2

[rows.mae]
recipe = "mae-vit-micro-cifar"

[rows.tuned]
verb = "finetune"
start = "row:mae"
data = "digits:train"
val = "digits:val"
budget = {{ epochs = 1 }}
set = {{ "data.image_size" = 8, "optim.max_steps" = 2 }}
"""

SMALL = {
    "optim.batch_size": 20, "backbone.depth": 1, "data.channels": 1, "data.image_size": 8, "backbone.patch_size": 2,
}  # fmt: skip


class Here(Runner):
    """Runs each command in this process, and keeps what it was."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.ran: list[list[str]] = []
        super().__init__(1, self.lines.append)

    def remask(self, words: list[str], log: Path, lock: int | None = None) -> None:
        self.ran.append(words)
        before, sys.argv = sys.argv, ["remask", *words, "-q"]
        try:
            cli.main()
        except SystemExit as ended:
            if ended.code:
                raise UserError(f"remask {words[0]} failed") from None
        finally:
            sys.argv = before


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _written(tmp_path)


def _written(folder: Path, images: int = 60) -> Path:
    file, small = folder / "digits.toml", ", ".join(f'"{key}" = {value}' for key, value in SMALL.items())
    file.write_text(TEXT.format(images=images, small=small))
    return file


def todo_of(file: Path) -> Sequence[Cell]:
    return list(cells(load_study(file), Place(file, file.parent / "runs")))


def verbs(runner: Here) -> list[str]:
    return [words[0] for words in runner.ran]


def test_cells_are_made_once_and_again_where_their_settings_change(file: Path) -> None:
    todo = todo_of(file)
    runner = Here()
    assert runner.run(todo) == []
    assert verbs(runner) == ["pretrain", "probe", "finetune"]
    mae, tuned = (json.loads(cell.file.read_text()) for cell in todo)
    assert mae["measures"].keys() == {"linear", "kNN", "linear, 2 labels", "kNN, 2 labels"}
    assert mae["measures"]["linear"].keys() == {"trained", "untrained", "pixels"}
    assert mae["cost"]["images"] == 60
    assert mae["curve"][-1][0] == 3
    assert tuned["measures"]["top1"].keys() == {"trained"}
    assert str(file.parent) not in json.dumps([mae, tuned]), "results name no folder of this machine"
    assert mae["command"].startswith("remask pretrain --recipe mae-vit-micro-cifar --data digits:train --epochs 1")

    again = Here()
    assert again.run(todo) == []
    assert again.ran == []

    longer = todo_of(_written(file.parent, images=80))
    again = Here()
    assert again.run(longer) == []
    assert verbs(again) == ["pretrain", "probe", "finetune"], "and the row that starts from the changed one"
    assert sum("its settings have changed" in line for line in again.lines) == 2


def test_a_cut_run_is_resumed_and_a_failed_cell_stops_those_that_need_it(file: Path) -> None:
    todo = todo_of(file)
    runner = Here()
    run = runner.folder(todo[0])
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "interrupted"}')
    (run / "checkpoints").mkdir()
    failed = runner.run(todo)
    assert runner.ran == [["resume", str(run)]]
    assert failed == ["mae-seed0: remask resume failed"]
    assert not todo[1].file.exists()


def test_what_a_command_says_last_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Runner(1, print).remask(["pretrain", "--recipe", "nothing"], tmp_path / "log")
    assert str(caught.value).startswith('remask pretrain failed: unknown recipe "nothing"')
    assert str(tmp_path / "log") in str(caught.value)


def test_one_process_at_a_time_makes_a_cell(file: Path) -> None:
    import fcntl

    todo = todo_of(file)
    runner = Here()
    run = runner.folder(todo[0])
    run.parent.mkdir()
    with (run.parent / f".{run.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert runner.run(todo[:1]) == []
    assert runner.ran == []
    assert runner.lines == ["mae-seed0: another process runs it"]


def test_rows_that_are_none(file: Path) -> None:
    with pytest.raises(UserError, match=r"mea is no row of .*digits\.toml: there are mae, tuned"):
        study_run(file, rows=["mea"], quiet=True)


def test_a_run_without_a_checkpoint_is_begun_anew(file: Path) -> None:
    todo = todo_of(file)[:1]
    runner = Here()
    run = runner.folder(todo[0])
    run.mkdir(parents=True)
    (run / "status.json").write_text('{"state": "running"}')
    assert runner.run(todo) == []
    assert verbs(runner) == ["pretrain", "probe"]


def test_a_row_brings_those_it_needs(file: Path) -> None:
    place = Place(file, file.parent / "runs")
    assert [cell.name for cell in cells(load_study(file), place, ("tuned",))] == ["mae", "tuned"]
    assert [cell.name for cell in cells(load_study(file), place, ("mae",))] == ["mae"]
