"""Runs that are there open as what they are, and anything else is one line."""

from pathlib import Path

import pytest

from remask.errors import UserError
from remask.recipe import dump, load_recipe
from remask.recipe.downstream import TASKS
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.runs.opening import open_run, open_task


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run of pre-training and one of fine-tuning."""
    task = load(TASKS["finetune"], FOLDER / "finetune", "small", environment={})
    for name, recipe in (("run", load_recipe("demo", environment={})), ("tuned", task)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text(dump(recipe))
    (tmp_path / "tuned" / "task.json").write_text('{"range": "byte"}')
    return tmp_path


def test_each_opens_as_what_it_is(runs: Path) -> None:
    assert open_run(runs / "run")[1] == load_recipe("demo", {"data.range": "byte", "masking.count": "mae"}, {})
    run, recipe = open_task(runs / "tuned", {"data.val": "digits"})
    assert (run.path, recipe.task, recipe.data.range, recipe.data.val) == (runs / "tuned", "finetune", "byte", "digits")


def test_the_other_kind_and_no_run_at_all_are_one_line(runs: Path) -> None:
    with pytest.raises(UserError, match="is a run of a downstream task"):
        open_run(runs / "tuned")
    with pytest.raises(UserError, match="is a run of pre-training"):
        open_task(runs / "run")
    for opened in (open_run, open_task):
        with pytest.raises(UserError, match=r"is no run: it holds no recipe\.toml"):
            opened(runs)
