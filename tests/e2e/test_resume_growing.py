"""A run whose images grow, killed on either side of a switch of size, continues bit by bit as if nothing had been."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from remask import commands
from remask.training.trainer import Trainer
from tests.e2e.test_resume import curve, step_saved

SETTINGS = [
    "data.source=photos", "data.limit=16", "data.image_size=32", "progress.sizes=[16, 24, 32]",
    "backbone.patch_size=4", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "backbone.drop_path=0.2",
    "backbone.positions=learned", "method.target.cell=4", "method.decoder_width=32", "method.decoder_heads=2",
    "masking.ratio=0.6", "jd={width=32}", "dm=on", "optim.batch_size=4", "optim.epochs=3", "optim.precision=fp32",
    "runtime.log_every=3", "runtime.threads=1", "runtime.workers=0", "runtime.device=cpu", "runtime.tensorboard=false",
    "runtime.save_every_minutes=0.0000001",
]  # fmt: skip
RECIPE = "fastmim-vit-micro"
DYING = """
import json, os, signal, sys
from pathlib import Path
from remask import commands
from remask.training.trainer import Trainer

learn = Trainer.step

def dying(self, batch):
    return os.kill(os.getpid(), signal.SIGKILL) if self.global_step == int(sys.argv[2]) else learn(self, batch)

Trainer.step = dying
commands.pretrain(sys.argv[3], settings=json.loads(sys.argv[4]), out=Path(sys.argv[1]), quiet=True)
"""
KILLS = {3: 16, 4: 16, 5: 24, 9: 32}
"""Steps, counted from 0, that a run does not live to take, and the size of its last checkpoint: 16 to 3, 24 to 7."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, with what a kill would have left on the disk at each step; at the first switch a real one."""
    folder = tmp_path_factory.mktemp("growing")
    command = [sys.executable, "-c", DYING, folder / "4", "4", RECIPE, json.dumps(SETTINGS)]
    process, learn = subprocess.Popen(command), Trainer.step

    def watched(self: Trainer, batch: Any) -> Any:
        if self.global_step in {*KILLS} - {4}:
            shutil.copytree(self.run.path, folder / str(self.global_step))
        return learn(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", watched)
        patched.setattr(commands, "report", lambda path: path)
        commands.pretrain(RECIPE, settings=SETTINGS, out=folder / "whole", quiet=True)
    assert process.wait(timeout=300) == -signal.SIGKILL
    return folder


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("step", KILLS)
def test_killed_beside_a_switch_and_resumed_equals_never_killed(
    step: int, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "report", lambda path: path)  # pictures of curves, which this does not compare
    whole, cut, last = runs / "whole", runs / str(step), "checkpoints/last/model.safetensors"
    assert step_saved(cut) == step
    assert load_file(cut / last)["backbone.network.pos_embed"].shape[1] == 1 + (KILLS[step] // 4) ** 2
    assert json.loads((cut / "status.json").read_text())["state"] == "running"
    commands.resume(cut, quiet=True)
    assert curve(cut) == curve(whole)
    assert [line[0] for line in curve(whole)] == [3, 4, 6, 8, 9, 12]
    assert json.loads((cut / "status.json").read_text())["state"] == "finished"
    for file in (last, "export/backbone.safetensors", "pictures/reconstruction.png"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes(), file
    states = [torch.load(run / "checkpoints/last/optimizer.pt", weights_only=True)["state"] for run in (cut, whole)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][p][kind]) for p in states[0] for kind, value in states[0][p].items())
