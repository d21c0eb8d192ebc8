"""Other people's files on the command line: what was loaded is said once, what cannot be is one line, exit code 2."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from remask.backbones.vit import create_vit
from remask.cli import main as cli
from remask.interop.mae import MEAN, STD

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def state() -> dict[str, Any]:
    torch.manual_seed(0)
    network = create_vit("vit_tiny_patch16_224", (32, 32), MEAN, STD, overrides=SMALL).network
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.state_dict()


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    monkeypatch.setattr(sys, "argv", ["remask", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr()


def features(path: Path) -> np.ndarray[Any, Any]:
    return np.load(path)["feature"]


def test_embed_says_what_it_took(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state, tmp_path / "plain.pth")
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()} | {"module.head.bias": torch.zeros(5)}
    torch.save({"model": wrapped, "best_acc": np.float64(71)}, tmp_path / "x.pth")
    data = ("--data", "digits", "--limit", 8, "--image-size", 32)
    code, _ = run(
        monkeypatch, capsys, "embed", f"mae:{tmp_path}/plain.pth", "--heads", 2, *data, "--out", tmp_path / "a.npz"
    )
    assert code == 0
    code, printed = run(
        monkeypatch, capsys, "embed", f"mae:{tmp_path}/x.pth,heads=2", *data, "--out", tmp_path / "b.npz"
    )
    assert code == 0
    said = f'mae:{tmp_path}/x.pth: 30 tensors of its entry "model"; the prefix module. was taken off; left out: head\n'
    assert printed.err.count(said) == 1
    assert np.array_equal(features(tmp_path / "a.npz"), features(tmp_path / "b.npz"))
    assert np.isfinite(features(tmp_path / "a.npz")).all()
    quiet = run(monkeypatch, capsys, "embed", f"mae:{tmp_path}/x.pth,heads=2", *data, "--out", tmp_path / "c.npz", "-q")
    assert (quiet[0], quiet[1].err) == (0, "")


COMMANDS: dict[str, tuple[str, ...]] = {
    "embed": ("--data", "digits", "--limit", "8", "--out", "o.npz", "-q"),
    "probe": ("--data", "digits", "--limit", "50", "--out", "o", "-q"),
    "finetune": ("--data", "digits", "--limit", "50", "--out", "o", "-q"),
    "attention": ("--out", "o.png"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_loaded_is_one_line(
    command: str,
    state: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    nan = {**state, "blocks.1.mlp.fc1.weight": torch.full((64, 16), float("nan"))}
    torch.save({"model": nan}, "nan.pth")
    torch.save({"model": {**state, "norm.bias": np.zeros(16)}}, "entry.pth")
    Path("lfs.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    for spec, telling in {
        "mae:nan.pth,heads=2": "blocks.1.mlp.fc1.weight has 1,024 of 1,024 values NaN",
        "mae:entry.pth,heads=2": '"norm.bias" under "model" is a numpy array',
        "mae:lfs.pth,heads=2": "git lfs pull",
        "mae:entry.pth,layer=2": "'layer' is no setting of a network",
        "untrained:vit_tiny_patch16_224.augreg_in21k": "give untrained:vit_tiny_patch16_224 for random",
    }.items():
        code, printed = run(monkeypatch, capsys, command, spec, *COMMANDS[command])
        assert code == 2, printed
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("remask: ")
        assert telling in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_training_from_a_file_says_so_and_outlives_it(
    state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run has its own checkpoints: the file that it started from is needed once."""
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "model_ema": state}, "x.pth")
    sizes = ("width=16", "depth=2", "heads=2", "patch_size=8")
    sets = [word for size in sizes for word in ("--set", f"backbone.{size}")]
    code, printed = run(
        monkeypatch, capsys, "pretrain", "--recipe", "mae-vit-micro-cifar", "--data", "photos", "--image-size", 64,
        *sets, "--set", "backbone.weights=mae:x.pth,heads=2", "--set", "optim.max_steps=1", "--batch-size", 4,
        "--set", "runtime.threads=1", "--out", "run",
    )  # fmt: skip
    assert code == 0, printed
    said = f'mae:{tmp_path}/x.pth: 30 tensors of its entry "model_ema"; its entry "model_ema", a moving average, was '
    assert printed.err.count(said) == 1
    assert "positions resized from 4×4 to 8×8" in printed.err
    Path("x.pth").unlink()
    code, printed = run(monkeypatch, capsys, "embed", "run", "--data", "photos", "--limit", 2, "--out", "o.npz")
    assert code == 0, printed
    code, printed = run(
        monkeypatch, capsys, "finetune", "run", "--data", "digits", "--limit", 40, "--image-size", 32, "--out", "tuned",
        "--set", "optim.epochs=1", "--set", "optim.batch_size=8", "--set", "runtime.threads=1",
    )  # fmt: skip
    assert code == 0, printed
    assert printed.err.count(f"run:{tmp_path}/run: 30 tensors; positions resized from 8×8 to 4×4") == 1
