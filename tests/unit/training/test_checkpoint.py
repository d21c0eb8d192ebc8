"""checkpoint.py: whole or not at all, read without executing anything, one line for what does not fit.

The run folder is in test_run_folder.
"""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from remask.errors import UserError
from remask.files import records
from remask.training import checkpoint
from remask.training.checkpoint import load_weights, restore, save
from remask.training.run_folder import RunFolder, find


def pair(seed: int = 0, width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer, one step taken."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, width)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "seed = 0\n", {"torch": "2"})


def read_back(run: RunFolder, name: str = "last") -> tuple[nn.Module, int]:
    model, optimizer = pair(seed=99)
    return model, restore(find(run, name), model, optimizer)["step"]


# ----------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_comes_back_exactly(run: RunFolder) -> None:
    model, optimizer = pair()
    save(run, "last", model, optimizer, {"step": 7, "loss": 0.1 + 0.2})
    other, twin = pair(seed=1)
    state = restore(find(run), other, twin)
    assert state == {"step": 7, "loss": 0.1 + 0.2}
    assert same(model, other)
    for key, moments in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, twin.state_dict()["state"][key][name]) for name, value in moments.items())


def test_saving_again_replaces_and_leaves_nothing_behind(run: RunFolder) -> None:
    for step in (1, 2, 3):
        save(run, "last", *pair(seed=step), {"step": step})
    model, step = read_back(run)
    assert step == 3
    assert same(model, pair(seed=3)[0])
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["last"]


def test_names_are_apart(run: RunFolder) -> None:
    save(run, "epoch-0001", *pair(seed=1), {"step": 1})
    save(run, "last", *pair(seed=2), {"step": 2})
    assert read_back(run, "epoch-0001")[1] == 1
    assert read_back(run)[1] == 2


class Crash(BaseException):
    """Stands for kill -9: nothing that catches errors catches it."""


@pytest.mark.parametrize("writer", ["save_file", "torch.save", "write_text"])
def test_a_write_that_fails_leaves_the_old_one_readable(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    save(run, "last", *pair(seed=1), {"step": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if writer == "save_file":
            patch.setattr(checkpoint, "save_file", full)
        elif writer == "torch.save":
            patch.setattr(torch, "save", full)
        else:
            patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            save(run, "last", *pair(seed=2), {"step": 2})
    model, step = read_back(run)
    assert step == 1
    assert same(model, pair(seed=1)[0])
    save(run, "last", *pair(seed=3), {"step": 3})  # the part that was left over is no obstacle
    assert read_back(run)[1] == 3
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["last"]


def crash_at(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """os.METHOD raises at its `call`-th call from now on, on a system that cannot exchange two names."""
    real, calls = getattr(os, method), iter(range(1, 100))

    def counted(*args: object) -> object:
        if next(calls) == call:
            raise Crash
        return real(*args)

    monkeypatch.setattr(records, "exchange", lambda *_: False)
    monkeypatch.setattr(os, method, counted)


@pytest.mark.parametrize(("call", "survivor"), [(1, 1), (2, 1)])
def test_a_crash_at_either_rename_leaves_a_whole_checkpoint(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, call: int, survivor: int
) -> None:
    save(run, "last", *pair(seed=1), {"step": 1})
    with monkeypatch.context() as patch:
        crash_at(patch, "rename", call)
        with pytest.raises(Crash):
            save(run, "last", *pair(seed=2), {"step": 2})
    model, step = read_back(run)
    assert step == survivor
    assert same(model, pair(seed=survivor)[0])


def test_a_second_crash_still_leaves_a_whole_checkpoint(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the renames, resumed, and killed at the next save's rename."""
    save(run, "last", *pair(seed=1), {"step": 1})
    for call in (2, 1):
        with monkeypatch.context() as patch:
            crash_at(patch, "rename", call)
            with pytest.raises(Crash):
                save(run, "last", *pair(seed=2), {"step": 2})
        assert read_back(run)[1] in (1, 2)
    save(run, "last", *pair(seed=3), {"step": 3})
    assert read_back(run)[1] == 3
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["last"]


@pytest.mark.parametrize("old", [".old", ".part"])
def test_a_crash_after_the_renames_leaves_the_new_one(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    """.part is what has the old one's content where two names can be exchanged."""
    save(run, "last", *pair(seed=1), {"step": 1})
    real = shutil.rmtree

    def crash(path: Path, **keys: object) -> None:
        if Path(path).name.endswith(old) and Path(path).exists():
            raise Crash
        real(path, **keys)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        if old == ".old":
            patch.setattr(records, "exchange", lambda *_: False)
        patch.setattr(records.shutil, "rmtree", crash)
        with pytest.raises(Crash):
            save(run, "last", *pair(seed=2), {"step": 2})
    assert read_back(run)[1] == 2
    save(run, "last", *pair(seed=3), {"step": 3})
    assert read_back(run)[1] == 3


def test_no_checkpoint_is_one_line(run: RunFolder) -> None:
    with pytest.raises(UserError, match="holds no checkpoint 'last'"):
        find(run)


# --------------------------------------------------------------------------------------------------- what is refused


def test_other_shapes_are_one_line_and_change_nothing(run: RunFolder) -> None:
    save(run, "last", *pair(), {"step": 1})
    wide, optimizer = pair(width=5)
    before = {key: value.clone() for key, value in wide.state_dict().items()}
    with pytest.raises(UserError, match=r"0.weight is \(4, 3\), not \(4, 5\)") as caught:
        restore(find(run), wide, optimizer)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in wide.state_dict().items())


def test_missing_and_unknown_keys_are_named_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"other.{i}": torch.zeros(1) for i in range(3)}, path)
    with pytest.raises(UserError) as caught:
        load_weights(path, pair()[0])
    line = str(caught.value)
    assert "0.weight is missing; 0.bias is missing; 1.weight is missing; 4 more" in line
    assert "\n" not in line


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_a_broken_weights_file_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as safetensors") as caught:
        load_weights(path, pair()[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_one_line(run: RunFolder, value: float) -> None:
    model, optimizer = pair()
    with torch.no_grad():
        model[0].weight[1, 2] = value  # type: ignore[index, operator]
    save(run, "last", model, optimizer, {"step": 7})
    other, _ = pair(seed=1)
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match=r"model\.safetensors holds .* not finite: 0\.weight has 1 of 12") as caught:
        load_weights(find(run) / "model.safetensors", other)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    "content", [
        "", "{", '{"step": 7', "[1]", "null", '{"step": "7"}', '{"step": -1}', '{"step": null}',
        '{"step": 7, "epoch": NaN}', '{"step": 7, "epoch": "x"}', "[" * 10**5, "{\"step\": 1" + "0" * 400 + "}",
    ],
)  # fmt: skip
def test_a_broken_state_is_one_line(run: RunFolder, content: str) -> None:
    model, optimizer = pair()
    save(run, "last", model, optimizer, {"step": 7})
    (find(run) / "state.json").write_text(content)
    for read in (lambda: checkpoint.position(run), lambda: restore(find(run), model, optimizer)):
        with pytest.raises(UserError, match=r"state\.json is damaged") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_the_optimizer_is_unpickled_as_tensors_only(run: RunFolder, tmp_path: Path) -> None:
    """A file that would execute something on loading is refused, and does not."""
    model, optimizer = pair()
    save(run, "last", model, optimizer, {"step": 1})

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "executed"), "w"))  # type: ignore[return-value]

    torch.save({"state": Evil(), "param_groups": []}, find(run) / "optimizer.pt")
    with pytest.raises((pickle.UnpicklingError, UserError)):
        restore(find(run), model, optimizer)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle"])
def test_a_broken_optimizer_file_is_one_line(run: RunFolder, content: bytes) -> None:
    model, optimizer = pair()
    save(run, "last", model, optimizer, {"step": 1})
    (find(run) / "optimizer.pt").write_bytes(content)
    with pytest.raises(UserError):
        restore(find(run), model, optimizer)


def test_state_is_plain_json(run: RunFolder) -> None:
    save(run, "last", *pair(), {"step": 1, "window": {"losses": {"total": 0.5}, "steps": 2}})
    assert json.loads((find(run) / "state.json").read_text())["window"]["losses"] == {"total": 0.5}


def test_weights_alone_can_be_restored(run: RunFolder) -> None:
    model, optimizer = pair()
    save(run, "last", model, optimizer, {"step": 4})
    other = pair(seed=5)[0]
    assert restore(find(run), other)["step"] == 4
    assert same(model, other)
