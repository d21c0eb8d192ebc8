"""remask plan and runtime.accumulate = "auto", through the command line."""

import json
import sys
from pathlib import Path

import pytest

from remask import commands
from remask.cli import main as cli
from remask.planning import micro_batches as parts_module
from remask.planning.rehearsal import DryRun, Forecast


def said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code, and what was printed, or the mistake."""
    monkeypatch.setattr(sys, "argv", ["remask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out or printed.err


def test_for_a_device_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--recipe", "mae-vit-micro-cifar", "--device", "a100", "--images", "50000"]
    code, page = said(words, monkeypatch, capsys)
    assert code == 0
    assert "20 epochs of 50,000 images" in page
    assert "assumed     35% of 312 TFLOP/s" in page
    code, facts = said([*words, "--json"], monkeypatch, capsys)
    assert json.loads(facts)["images"] == 50000


def test_flags_of_pretrain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--recipe", "mae-vit-micro-cifar", "--device", "a100", "--images", "50000", "--json"]
    flags = ["--epochs", "7", "--batch-size", "500", "--image-size", "64", "--model", "vit_tiny_patch16_224"]
    code, facts = said([*words, *flags], monkeypatch, capsys)
    settings = ["optim.epochs=7", "optim.batch_size=500", "data.image_size=64", "backbone.name=vit_tiny_patch16_224"]
    same = said([*words, *(part for setting in settings for part in ("--set", setting))], monkeypatch, capsys)
    assert (code, facts) == same
    assert (json.loads(facts)["steps"], json.loads(facts)["batch_size"]) == (700, 500)


def test_for_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rehearsals in fresh processes; a bar on them is in benchmarks/plan.py."""
    small = ["--set", "optim.batch_size=12", "--set", "runtime.threads=1", "--data", "digits", "--device", "cpu"]
    code, facts = said(["plan", "--recipe", "mae-vit-micro-cifar", *small, "--json"], monkeypatch, capsys)
    assert code == 0
    found = json.loads(facts)
    assert [done["batch"] for done in found["rehearsed"]] == [2, 6]
    assert found["memory_mb"]["total"] > 100
    assert found["images_per_s"] > 0
    assert found["gpus"] == found["gpu_hours"] == 0


@pytest.mark.parametrize(
    ("arguments", "telling"),
    [
        (["--device", "h20"], "did you mean h200?"),
        (["--recipe", "mae-vit-bb"], "mae-vit-b"),
        (["--recipe", "dmae-vit-b", "--device", "h200"], "mae_pretrain_vit_large.pth"),
        (["--measure", "--device", "h200"], "--measure trains on this machine"),
        (["--mfu", "0.4", "--device", "cpu"], "--mfu is for a --device that is named"),
        (["--gpus", "3"], "cannot be shared by 3 devices"),
        (["--set", "runtime.accumulate=often"], "runtime.accumulate"),
    ],
)
def test_mistakes(arguments: list[str], telling: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    code, line = said(["plan", *arguments], monkeypatch, capsys)
    assert code == 2
    assert line.startswith("remask: ")
    assert line.count("\n") == 1, line
    assert telling in line


def test_a_run_with_auto_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """It says what it chose, and its losses are those of a run that was told as much."""
    line = Forecast(DryRun(1, 1.0, 1.0, 500.0), DryRun(2, 1.0, 1.0, 600.0), image_mb=0.0)
    monkeypatch.setattr(parts_module, "forecast", lambda *_: line)
    monkeypatch.setattr(parts_module, "available_mb", lambda: 1000.0)
    monkeypatch.setattr(parts_module, "peak_resident_mb", lambda: 0.0)
    settings = ["backbone.depth=2", "optim.batch_size=10", "optim.max_steps=3", "runtime.log_every=1"]
    settings += ["optim.precision=fp32", "runtime.device=cpu", "runtime.tensorboard=false"]
    losses = []
    for name, micro_batches in (("auto", "auto"), ("told", "2")):
        run = commands.pretrain(
            "mae-vit-micro-cifar", {"data.source": "digits", "data.limit": 30},
            settings=[*settings, f"runtime.accumulate={micro_batches}"], out=tmp_path / name,
        )  # fmt: skip
        losses.append([json.loads(row)["loss/total"] for row in (run / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] == losses[1]
    assert "accumulate: a batch of 10 in 2 parts (0.9 GiB expected, 0.9 GiB there)" in capsys.readouterr().err
