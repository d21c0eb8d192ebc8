"""run_folder.py: the run folder, its small files, and what is refused or kept when one is there already."""

from pathlib import Path

import pytest

from remask.errors import UserError
from remask.training.run_folder import FORMAT, RunFolder, refuse_existing


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "seed = 0\n", {"torch": "2"})


def test_a_new_run_holds_its_recipe_and_environment(run: RunFolder) -> None:
    assert (run.path / "recipe.toml").read_text() == "seed = 0\n"
    assert run.read("env.json") == {"format": 2, "torch": "2"}
    assert all((run.path / name).is_dir() for name in ("checkpoints", "pictures", "eval"))
    assert RunFolder.open(run.path).path == run.path


def test_an_existing_folder_is_refused_and_left_alone(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"already exists.*remask resume .*run; or choose another --out"):
        RunFolder.create(run.path, "seed = 1\n", {})
    assert (run.path / "recipe.toml").read_text() == "seed = 0\n"


def test_an_empty_folder_is_free_and_a_file_is_not(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "absent")
    refuse_existing(tmp_path)
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(UserError, match="not empty: choose another --out"):
            refuse_existing(path)


@pytest.mark.parametrize(("state", "step", "free"), [("failed", 0, True), ("failed", 3, False), ("running", 0, False)])
def test_a_run_that_failed_before_its_first_step_is_free(run: RunFolder, state: str, step: int, free: bool) -> None:
    run.write("status.json", {"state": state, "step": step})
    if free:
        refuse_existing(run.path)
    else:
        with pytest.raises(UserError, match="already exists"):
            refuse_existing(run.path)


@pytest.mark.parametrize("content", ["[]", "all is well", '{"state": "failed", "step": 0}'])
def test_a_folder_with_somebody_elses_status_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(UserError, match="not empty"):
        refuse_existing(tmp_path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run: it holds no recipe\.toml"):
        RunFolder.open(tmp_path)


def test_json_files_are_replaced_whole(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write("cost.json", {"images": 1})
    with pytest.raises(TypeError):
        run.write("cost.json", {"images": object()})
    assert run.read("cost.json") == {"images": 1}
    monkeypatch.setattr(
        Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        run.write("cost.json", {"images": 2})
    assert run.read("cost.json") == {"images": 1}
    assert run.read("absent.json") == {}


def test_json_may_lie_in_a_folder(run: RunFolder) -> None:
    run.write("eval/probe.json", {"top1": 50.0})
    assert run.read("eval/probe.json") == {"top1": 50.0}


def test_metrics_are_appended_and_rewound(run: RunFolder) -> None:
    assert run.metrics() == []
    run.rewind(5)  # nothing there, nothing to do
    for step in (2, 4, 6, 8):
        run.log({"step": step, "loss/total": 1 / step})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9, "loss/to')  # killed in mid-line
    run.rewind(6)
    assert [line["step"] for line in run.metrics()] == [2, 4, 6]
    run.log({"step": 7})
    assert [line["step"] for line in run.metrics()] == [2, 4, 6, 7]
    assert run.metrics()[0]["loss/total"] == 0.5
    assert sorted(path.name for path in run.path.glob("*.part")) == []


def test_metrics_of_a_killed_run_are_readable_before_it_is_resumed(run: RunFolder) -> None:
    run.log({"step": 2})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss/to')
    assert [line["step"] for line in run.metrics()] == [2]


def test_a_run_knows_its_format(run: RunFolder) -> None:
    assert RunFolder.open(run.path).format == FORMAT
    run.write("env.json", {"torch": "2"})  # as before formats were written
    assert RunFolder.open(run.path).format == 1
    run.write("env.json", {"format": FORMAT + 1})
    with pytest.raises(UserError, match=f"is a run of format {FORMAT + 1}, and this remask knows {FORMAT}"):
        RunFolder.open(run.path)
