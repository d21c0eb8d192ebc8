"""A run killed in mid-epoch and resumed continues bit by bit as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remask.recipe import choose
from remask.runs.opening import open_run
from remask.runs.session import train

SETTINGS = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "backbone.drop_path=0.2", "method.decoder_width=32",
    "method.decoder_heads=2", "method.decoder_depth=1", "jd.width=32", "optim.batch_size=16", "optim.epochs=3",
    "optim.precision=fp32", "runtime.log_every=3", "runtime.threads=1", "runtime.save_every_minutes=0.0005",
    "data.image_size=16",
]  # fmt: skip


def remask(*arguments: str | Path, wait: bool = True) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "remask.cli.main", *map(str, arguments)], text=True, stderr=subprocess.PIPE
    )
    if wait:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return process


def pretrain(out: Path, wait: bool = True) -> subprocess.Popen[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return remask("pretrain", "--recipe", "demo", "--limit", "640", "--out", out, *settings, "--quiet", wait=wait)


def curve(run: Path) -> list[tuple[int, float, float, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss/total"], line["loss/masked"], line["lr"]) for line in lines]


def step_saved(run: Path) -> int:
    try:
        return int(json.loads((run / "checkpoints" / "last" / "state.json").read_text())["step"])
    except (OSError, ValueError):
        return 0


def steps_logged(run: Path) -> int:
    try:
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_killed_and_resumed_equals_never_killed(tmp_path: Path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pretrain(whole)
    process = pretrain(cut, wait=False)
    deadline = time.monotonic() + 200
    while not (steps_logged(cut) > 50 and step_saved(cut) % 40) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed: make it longer"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 50 < steps_logged(cut) < 120
    remask("resume", cut, "--quiet")
    assert curve(cut) == curve(whole)
    assert json.loads((cut / "status.json").read_text())["state"] == "finished"
    last = "checkpoints/last/model.safetensors"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path: Path):
    run = tmp_path / "run"
    process = pretrain(run, wait=False)
    while steps_logged(run) < 6 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert json.loads((run / "checkpoints" / "last" / "state.json").read_text())["step"] == status["step"]


@pytest.mark.parametrize("pattern", ["green", "attention", "loss"])
def test_masks_that_adapt_go_on_bit_by_bit(pattern: str, tmp_path: Path) -> None:
    """In mid-epoch: the averages of network and head, and how far the training is, decide the next masks."""
    small = [setting for setting in SETTINGS if not setting.startswith("jd.")]
    small += [f"masking.pattern={pattern}", "data.limit=64", "runtime.log_every=1", "average.decay=[0.5, 0.9]"]
    small = [setting for setting in small if pattern != "green" or not setting.startswith("average.")]

    def run(folder: Path, steps: int) -> Path:
        settings = [*small, f"optim.max_steps={steps}"]
        train(choose("mae-vit-micro-cifar", {"data.source": "digits:train"}, settings=settings), folder, True, True)
        return folder

    whole, cut = run(tmp_path / "whole", 11), run(tmp_path / "cut", 6)
    begun, recipe = (cut / "metrics.jsonl").read_text().splitlines(), open_run(cut)[1]
    longer = recipe.optim.model_copy(update={"max_steps": 11})
    train(recipe.model_copy(update={"optim": longer}), cut, True, False)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, cut)]
    assert len(begun) == 6
    assert len(lines[0]) == len(lines[1]) == 11
    losses = [[{k: v for k, v in json.loads(line).items() if k.startswith("loss/")} for line in run] for run in lines]
    assert losses[0] == losses[1]
    last = "checkpoints/last/model.safetensors"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()
