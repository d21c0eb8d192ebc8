"""Early refusals beside those of paths: finished runs, an --out that torchrun may come back to, devices to plan for."""

import json
from pathlib import Path

import pytest

from remask.commands.refusals import check_plan, check_pretrain, check_subject, check_unfinished
from remask.errors import UserError
from remask.recipe import dump, load_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.toml").write_text(dump(load_recipe("demo", environment={})))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "step": 9}))
    for name in ("export/backbone.safetensors", "pictures/reconstruction.png", "report.html"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_finished_run_is_continued_where_torchrun_started_it_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is finished: probe it"):
        check_unfinished(run)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    check_unfinished(run)


def test_a_run_that_torchrun_may_come_back_to_is_no_mistake(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("demo", environment={})
    with pytest.raises(UserError, match="already exists and is not empty"):
        check_pretrain(recipe, run)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    check_pretrain(recipe, run)
    check_pretrain(recipe, None)


def test_several_processes_check_once_they_have_joined(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails alone before that would end without a word."""
    recipe = load_recipe("demo", {"data.source": "absent"}, {})
    with pytest.raises(UserError, match="there is no file"):
        check_pretrain(recipe, None)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_pretrain(recipe, run)


def test_networks(run: Path) -> None:
    check_subject(str(run))
    check_subject("timm:any_name", "epoch-0100")
    with pytest.raises(UserError, match="holds no checkpoint 'epoch-0100'"):
        check_subject(str(run), "epoch-0100")


def test_devices_to_plan_for() -> None:
    check_plan("h200", measure=False, mfu=True)
    check_plan("cuda:1", measure=True, mfu=False)
    for name, measure, mfu in (("h200", True, False), ("auto", False, True), ("h2000", False, False)):
        with pytest.raises(UserError):
            check_plan(name, measure=measure, mfu=mfu)
