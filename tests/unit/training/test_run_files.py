"""A checkpoint knows the recipe and the metrics it was written beside, and leftovers go when a run is finished."""

from pathlib import Path

import pytest
import torch
from torch import nn

from remask.errors import UserError
from remask.training.checkpoint import save, starting_point
from remask.training.run_folder import RunFolder


def begun(path: Path, steps: int) -> RunFolder:
    run = RunFolder.create(path, "seed = 0\n", {})
    for step in range(1, steps + 1):
        run.log({"step": step, "loss/total": 1.5})
    return run


def test_the_digest_is_that_of_the_lines_so_far_and_is_taken_up_where_it_was(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 3)
    first = run.digests()
    assert run.digests() == first
    run.log({"step": 4, "loss/total": 2.5})
    assert run.digests()["metrics.jsonl"] == RunFolder(run.path).digests()["metrics.jsonl"]
    assert run.changed(first) == []
    run.rewind(3)
    assert run.digests() == first
    assert RunFolder(run.path, writes=False).digests() == {}


@pytest.mark.parametrize("name", ["recipe.toml", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_what_changed_beside_a_checkpoint_is_said(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run", 3)
    model = nn.Linear(2, 2)
    save(run, "last", model, torch.optim.AdamW(model.parameters()), {"step": 3, "files": run.digests()})
    run.log({"step": 4, "loss/total": 2.5})
    assert starting_point(RunFolder(run.path)) == run.path / "checkpoints/last"
    assert capsys.readouterr().err == ""
    content = bytearray((run.path / name).read_bytes())
    content[7] ^= 1
    (run.path / name).write_bytes(bytes(content) if damage == "bit" else content[:5] if damage == "cut" else b"")
    if damage == "gone":
        (run.path / name).unlink()
    again = RunFolder(run.path)
    starting_point(again)
    said = capsys.readouterr().err
    assert said == f"remask: {again.recovered}\n"
    assert f"{name} is not what it was when the checkpoint was written" in said


def test_what_a_killed_save_left_goes_when_the_run_is_finished(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", 1)
    left = run.path / "checkpoints" / ".last.0123456789abcdef.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"old")
    (run.path / "checkpoints" / "last").mkdir()
    run.finish()
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["last"]


@pytest.mark.parametrize(("content", "free"), [(b"", True), (b'{"host": "n', True), (b'{"h', True), (b"mine", False)])
def test_a_folder_whose_lock_was_cut_by_a_power_cut_is_taken_over(tmp_path: Path, content: bytes, free: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_bytes(content)
    if free:
        RunFolder.create(tmp_path / "run", "seed = 0\n", {})
    else:
        with pytest.raises(UserError, match="already exists and is not empty"):
            RunFolder.create(tmp_path / "run", "seed = 0\n", {})
