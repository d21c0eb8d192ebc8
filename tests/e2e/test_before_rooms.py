"""Runs, checkpoints and exports written before the rooms were moved: they open, go on, are probed and load."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from remask import commands
from remask.downstream.build import build_model
from remask.recipe.downstream import TASKS
from remask.recipe.load import load
from remask.recipe.naming import FOLDER
from remask.training.checkpoint import load_weights

WRITTEN = Path(__file__).parent / "before_rooms"


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """DMJD on MAE, stopped after half of its 8 steps."""
    return shutil.copytree(WRITTEN / "begun", tmp_path / "begun")


def test_a_run_goes_on_as_it_would_have(begun: Path) -> None:
    """Every loss of the steps that were left, as the version that wrote the run had them, but for the CPU."""
    recipe = begun / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("max_steps = 4\n", ""))
    status = json.loads((begun / "status.json").read_text())
    (begun / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    commands.resume(begun, quiet=True)
    then, now = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (WRITTEN / "losses.jsonl", begun / "metrics.jsonl")
    )
    assert [line["step"] for line in now] == [line["step"] for line in then] == list(range(1, 9))
    for before, after in zip(then, now, strict=True):
        for name in ("loss/masked", "loss/visible", "loss/total", "lr"):
            assert after[name] == pytest.approx(before[name], rel=2e-5), (after["step"], name)


def test_a_run_is_probed_and_reported(begun: Path) -> None:
    """With what the version that wrote it found; a picture or two may differ by the CPU."""
    assert "Not probed yet" in commands.report(begun).read_text()
    result = commands.probe(begun, "digits:train", "digits:val", quiet=True)
    assert result["knn"]["top1"] == pytest.approx(62.25, abs=0.6)
    assert result["linear"]["top1"] == pytest.approx(70.7, abs=1.2)
    assert "Not probed yet" not in (begun / "report.html").read_text()


def test_a_classifier_opens_and_is_tested(tmp_path: Path) -> None:
    tuned = shutil.copytree(WRITTEN / "tuned", tmp_path / "tuned")
    recipe = load(
        TASKS["finetune"],
        FOLDER / "finetune",
        tuned / "recipe.toml",
        {"model.source": f"run:{WRITTEN / 'begun'}"},
        environment={},
    )
    model, size = build_model(recipe, json.loads((tuned / "task.json").read_text()))
    load_weights(tuned / "checkpoints" / "last" / "model.safetensors", model)
    assert model.eval().logits(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape == (1, 10)
    assert commands.report(tuned).is_file()


def test_the_script_of_an_export_runs(begun: Path) -> None:
    script = begun / "export" / "load_example.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "features (1, 16)" in done.stdout
