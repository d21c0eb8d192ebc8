"""saving.py and the trainer: what is large is written beside the next steps, and is on the disk before a run ends."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from remask.errors import UserError
from remask.training import saving
from remask.training.checkpoint import gather, intact, newest_kept, restore, starting_point, write
from remask.training.run_folder import RunFolder, find
from remask.training.saving import Saver
from tests.toy import Killed, Toy, kill, losses, train, trainer


def pair(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    nn.init.constant_(model.weight, value)
    return model, optimizer


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "seed = 0\n", {})


def test_a_thread_writes_what_the_model_was_and_save_does_not_wait(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, real = threading.Event(), saving.write

    def slow(*given: object) -> None:
        assert go_on.wait(30)
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write", slow)
    model, optimizer = pair(1.0)
    saver = Saver(run, background=0)
    saver.save(["epoch-0001", "last"], model, optimizer, {"step": 1})
    assert not (run.path / "checkpoints" / "last").exists()
    nn.init.constant_(model.weight, 2.0)  # the next step
    optimizer.state_dict()["state"][0]["exp_avg"].zero_()
    go_on.set()
    saver.wait()
    for name in ("epoch-0001", "last"):
        other, twin = pair(9.0)
        assert restore(find(run, name), other, twin) == {"step": 1}
        assert torch.equal(other.weight, torch.ones(4, 3))
        assert twin.state_dict()["state"][0]["exp_avg"].abs().sum() > 0


def test_small_ones_are_written_at_once(run: RunFolder) -> None:
    saver = Saver(run)
    saver.save(["last"], *pair(1.0), {"step": 1})
    assert (run.path / "checkpoints" / "last" / "manifest.json").is_file()
    assert saver._thread is None


def test_an_error_of_the_thread_is_raised_at_the_next_call(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write", full)
    for call in ("check", "wait"):
        saver = Saver(run, background=0)
        saver.save(["last"], *pair(1.0), {"step": 1})
        assert saver._thread
        saver._thread.join()
        with pytest.raises(OSError, match="No space"):
            getattr(saver, call)()
        saver.wait()  # once


@pytest.mark.parametrize("dies_in", [1, 6, 9, 12])
def test_training_with_a_thread_is_the_same_bit_by_bit(
    tmp_path: Path, dies_in: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = losses(train(trainer(tmp_path / "whole")))
    monkeypatch.setattr(Saver.__init__, "__defaults__", (0,))
    killed = trainer(tmp_path / "run", Toy(at={dies_in: kill}), save_minutes=0.0)
    with pytest.raises(Killed):
        train(killed)
    resumed = trainer(tmp_path / "run", make=False)
    resumed.resume()
    assert resumed.global_step == dies_in - 1
    assert losses(train(resumed)) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_for_the_checkpoint(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Saver.__init__, "__defaults__", (0,))
    made = trainer(tmp_path / "run", Toy(at={7: lambda: os.kill(os.getpid(), number)}))
    with pytest.raises(KeyboardInterrupt):
        train(made)
    assert json.loads((find(made.run) / "state.json").read_text())["step"] == 7


def test_a_disk_that_fills_up_fails_the_run_and_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Saver.__init__, "__defaults__", (0,))
    real, calls = saving.write, iter(range(9))

    def full(*given: object) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write", full)
    made = trainer(tmp_path / "run")
    with pytest.raises(OSError, match="No space"):
        train(made)
    assert made.run.read("status.json")["state"] == "failed"
    assert json.loads((find(made.run) / "state.json").read_text())["step"] == 5


# ---------------------------------------------------------------------------------------------- kept and damaged ones


def test_a_kept_checkpoint_is_there_before_last_moves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = saving.write

    def killed(run: RunFolder, name: str, content: object) -> None:
        real(run, name, content)  # type: ignore[arg-type]
        if name.startswith("epoch"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write", killed)
        with pytest.raises(Killed):
            train(trainer(tmp_path / "run", keep_every_epochs=1))
    run = RunFolder.open(tmp_path / "run")
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"last", "epoch-0001"}
    assert json.loads((find(run) / "state.json").read_text())["step"] == 0


def test_a_kept_checkpoint_that_an_earlier_version_lost_is_completed(tmp_path: Path) -> None:
    first = trainer(tmp_path / "run", Toy(at={6: kill}), keep_every_epochs=1)
    with pytest.raises(Killed):
        train(first)
    kept = first.run.path / "checkpoints" / "epoch-0001"
    kept.rename(tmp_path / "aside")
    resumed = trainer(tmp_path / "run", make=False, keep_every_epochs=1)
    resumed.resume()
    train(resumed)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (kept, tmp_path / "aside")]
    assert weights[0] == weights[1]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


@pytest.fixture
def kept(run: RunFolder) -> RunFolder:
    for name, step in (("epoch-0001", 5), ("epoch-0002", 10), ("last", 12)):
        content = gather(*pair(step), {"step": step})
        assert content
        write(run, name, content)
    return run


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json", "manifest.json"])
def test_a_damaged_last_is_named_and_the_newest_intact_one_is_used(
    kept: RunFolder, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert intact(kept).name == "last"
    flip(kept.path / "checkpoints" / "last" / file)
    assert starting_point(kept) == intact(kept) == kept.path / "checkpoints" / "epoch-0002"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{file} is damaged" in said
    assert "epoch-0002 (step 10) is used instead" in said
    flip(kept.path / "checkpoints" / "epoch-0002" / file)
    assert intact(kept).name == "epoch-0001"
    kept.note_recovery()
    assert "epoch-0001 (step 5) is used instead" in (kept.path / "recovered.txt").read_text()


def test_a_checkpoint_that_was_named_is_refused_and_not_replaced(kept: RunFolder) -> None:
    flip(kept.path / "checkpoints" / "epoch-0002" / "model.safetensors")
    for call in (lambda: intact(kept, "epoch-0002"), lambda: starting_point(kept, "epoch-0002")):
        with pytest.raises(UserError, match=r"model.safetensors is damaged.*; epoch-0001, last can be taken instead"):
            call()
    flip(kept.path / "checkpoints" / "last" / "model.safetensors")
    with pytest.raises(UserError, match="epoch-0001 can be taken instead"):
        starting_point(kept, "last")


def test_where_none_is_intact_it_says_so(kept: RunFolder) -> None:
    for folder in (kept.path / "checkpoints").iterdir():
        flip(folder / "optimizer.pt")
    assert newest_kept(kept) is None
    with pytest.raises(UserError, match=r"no other checkpoint of .* is intact: put one back"):
        starting_point(kept)


def test_a_missing_last_is_replaced_too_and_one_without_manifest_passes(kept: RunFolder) -> None:
    (find(kept) / "manifest.json").unlink()
    assert intact(kept).name == "last"  # as an earlier version wrote it
    (find(kept) / "state.json").unlink()
    assert intact(kept).name == "epoch-0002"


def test_a_run_without_any_begins_at_step_0(run: RunFolder) -> None:
    assert starting_point(run) is None
    with pytest.raises(UserError, match="holds no checkpoint 'last': it ended before its first: remask resume"):
        intact(run)
