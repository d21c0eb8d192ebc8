"""Checkpoints in pieces: whole or not there at all, verified, read by one process, and replaced where damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from remask import commands
from remask.errors import UserError
from remask.interop.encoders import open_encoder
from remask.recipe import load_recipe
from remask.runs.reopen import trained
from remask.runs.session import train
from remask.training.run_folder import RunFolder
from tests.e2e.elastic import noted, pictures_of
from tests.e2e.test_processes import assert_same
from tests.e2e.together import recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
ROOT = Path(__file__).resolve().parents[2]
PIECES = [f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps of two processes, and of one."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(41):
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((24, 20)).save(folder / "pictures" / f"{i:02d}.png")
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.e2e.sharded", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", *launch], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    train(recipe(folder / "pictures", "optim.max_steps=12"), folder / "one", True, True)
    return folder


def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder / "run", tmp_path / "run")


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def test_each_process_writes_its_own_and_the_manifest_names_all(folder: Path) -> None:
    for name, step in (("epoch-0001", 5), ("epoch-0002", 10), ("last", 12)):
        written = folder / "run" / "checkpoints" / name
        assert sorted(path.name for path in written.iterdir()) == [
            "manifest.json", "optimizer.pt", *PIECES, "state.json",
        ]  # fmt: skip
        sizes = [(written / piece).stat().st_size for piece in PIECES]
        assert max(sizes) < 1.2 * min(sizes), "one of them wrote most of it"
        named = json.loads((written / "manifest.json").read_text())["files"]
        assert {"optimizer.pt", "state.json", *PIECES} == {*named}
        assert json.loads((written / "state.json").read_text())["step"] == step


def test_a_save_that_fails_is_said_by_all_and_leaves_the_older_one(folder: Path) -> None:
    """A fault of one process, of the main one at two places, and pieces that the main process does not see."""
    for rank in (0, 1):
        lines = dict(line.split(": ", 1) for line in (folder / f"said{rank}.txt").read_text().splitlines())
        assert [*lines] == ["a piece", "its manifest", "its new name", "another disk"]
        for name in ("a piece", "its manifest", "its new name"):
            assert "No space left on device" in lines[name] or "the disk is full" in lines[name], lines
        assert "did not get the pieces of all processes (" in lines["another disk"]
    assert not [path for path in (folder / "run" / "checkpoints").iterdir() if path.name.startswith(".")]
    assert_begins_like_one(folder)


def assert_begins_like_one(folder: Path) -> None:
    curves = [
        [json.loads(line)["loss/total"] for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "run")
    ]
    assert len(curves[0]) == 12
    assert curves[1] == pytest.approx(curves[0], abs=1e-6)


def test_one_process_reads_the_weights(folder: Path) -> None:
    """As probe, export and reconstruct do, and a network that starts from the run's backbone."""
    run = folder / "run"
    found = trained(RunFolder(run), load_recipe(run / "recipe.toml")).state_dict()
    expected = load_file(folder / "one" / "checkpoints" / "last" / "model.safetensors")
    assert {*found} == {*expected}
    weights = [key for key in expected if key.endswith(("mlp.fc1.weight", "patch_embed.proj.weight"))]
    assert len(weights) > 2
    for key in weights:
        assert torch.allclose(found[key], expected[key], atol=2e-6), key


def test_verify_export_and_reconstruct(folder: Path, tmp_path: Path) -> None:
    run = copied(folder, tmp_path)
    (run / "status.json").write_text(json.dumps({"state": "interrupted", "step": 12, "steps": 12}))
    states = {state.name: (state.state, state.why) for state in commands.verify(run)}
    assert states["checkpoints/last"] == ("intact", "step 12")
    assert states["checkpoints/epoch-0001"] == ("intact", "step 5")
    commands.export(run)
    assert commands.reconstruct(run, quiet=True).is_file()
    backbone = load_file(run / "export" / "backbone.safetensors")
    weights = trained(RunFolder(run), load_recipe(run / "recipe.toml")).backbone.network.state_dict()
    assert all(torch.equal(backbone[key], weights[key]) for key in backbone)
    assert open_encoder(f"run:{run}").depth == 2


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_piece_is_noticed_and_the_newest_intact_one_goes_on(folder: Path, tmp_path: Path, harm: str) -> None:
    """With the pictures and losses of an undisturbed run."""
    run = copied(folder, tmp_path)
    piece = run / "checkpoints" / "last" / PIECES[1]
    flip(piece) if harm == "flipped" else piece.unlink()
    with pytest.raises(UserError, match=r"first checkpoints/last \(.*" + PIECES[1]):
        commands.verify(run)
    with noted(tmp_path / "shown.jsonl"):
        train(recipe(folder / "pictures"), run, True, False)
    assert [len(batch) for batch in pictures_of(tmp_path / "shown.jsonl")] == [7] * 10
    assert "epoch-0002 (step 10) is used instead" in json.loads((run / "status.json").read_text())["recovered"]
    assert (run / "checkpoints" / "last" / "model.safetensors").is_file()
    if harm == "flipped":
        train(recipe(folder / "pictures"), tmp_path / "undisturbed", True, True)
        assert_same(tmp_path / "undisturbed", run)


def test_sharded_is_refused_without_fsdp(folder: Path) -> None:
    with pytest.raises(UserError, match=r"runtime\.state_dict_type"):
        recipe(folder / "pictures", "runtime.state_dict_type=sharded")
