"""A power cut at any operation of a save leaves a whole checkpoint as `last`: the old one or the new one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from remask.files import records
from remask.files.manifest import damage
from remask.files.records import atomic_write
from remask.training.checkpoint import intact, restore, save
from remask.training.run_folder import RunFolder
from tests.faults.recorder import Operation, Recorder, materialise, replayed


def saved(run: RunFolder, step: int) -> nn.Module:
    """A checkpoint of a small network at a step, whose weights are the step."""
    torch.manual_seed(step)
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    nn.init.constant_(model.weight, step)
    run.log({"step": step, "loss/total": 1.0})
    save(run, "last", model, optimizer, {"step": step})
    return model


def check(folder: Path) -> int:
    """The step of the checkpoint that such a run resumes from, which must be whole, and so must its metrics be."""
    run = RunFolder(folder)
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    found = intact(run)
    assert damage(found) == []
    step = int(restore(found, model, optimizer)["step"])
    assert torch.equal(model.weight, torch.full((4, 3), float(step)))
    assert [line["step"] for line in run.metrics() if line["step"] <= step] == [*range(1, step + 1)]
    return step


@pytest.mark.parametrize("exchanges", [True, False])
def test_every_state_that_a_power_cut_may_leave_holds_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    run = RunFolder.create(tmp_path / "run", "seed = 0\n", {})
    saved(run, 1)
    if not exchanges:
        monkeypatch.setattr(records, "exchange", lambda one, other: False)
    recorder = Recorder(run.path)
    with recorder.recording(monkeypatch):
        saved(run, 2)
    steps, count = set[int](), 0
    for lost, state in recorder.states():
        materialise(state, tmp_path / "after")
        try:
            steps.add(check(tmp_path / "after"))
        except Exception as error:
            raise AssertionError(f"after {lost}: {error}; {[op[:3] for op in recorder.operations]}") from error
        count += 1
    assert steps == {1, 2}
    assert count > 80
    materialise(replayed(recorder.before, recorder.operations, {}), tmp_path / "after")
    assert check(tmp_path / "after") == 2


def test_a_run_goes_on_from_every_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next save works whatever was left, and leaves nothing else behind."""
    run = RunFolder.create(tmp_path / "run", "seed = 0\n", {})
    saved(run, 1)
    recorder = Recorder(run.path)
    with recorder.recording(monkeypatch):
        saved(run, 2)
    for _, state in [*recorder.states()][::7]:
        materialise(state, tmp_path / "after")
        after = RunFolder(tmp_path / "after")
        after.rewind(check(after.path))
        saved(after, check(after.path) + 1)
        assert [path.name for path in (after.path / "checkpoints").iterdir()] == ["last"]


@pytest.mark.parametrize("missing", ["file", "folder"])
def test_the_recorder_sees_what_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without the sync of the files, or of their folder, some state is broken, or the new name may be lost."""
    run = RunFolder.create(tmp_path / "run", "seed = 0\n", {})
    saved(run, 1)
    monkeypatch.setattr(records, "sync_file" if missing == "file" else "sync_folder", lambda path: None)
    recorder = Recorder(run.path)
    with recorder.recording(monkeypatch):
        saved(run, 2)
    broken = 0
    for _, state in recorder.states():
        materialise(state, tmp_path / "after")
        try:
            check(tmp_path / "after")
        except Exception:
            broken += 1
    assert broken > 0


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / "file"
    with atomic_write(path) as tmp:
        tmp.write_text("old")
    recorder = Recorder(path.parent)
    with recorder.recording(monkeypatch), atomic_write(path) as tmp:
        tmp.write_text("new")
    assert {state["file"] for _, state in recorder.states()} == {b"old", b"new"}
    assert recorder.operations[-1] == Operation("sync", "")
