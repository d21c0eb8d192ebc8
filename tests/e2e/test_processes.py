"""Two processes are one run: the losses of one process in DDP and in FSDP, the same pictures, also after a kill."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from remask.runs.session import train
from tests.e2e.together import GUIDED, SETTINGS, recipe
from tests.rounding import determined, keys

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str | Path, restarts: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, one thread each; one that crashes says where."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", *launch, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


AT_MOST = 1.17
"""How far AdamW with betas of 0.9 and 0.95 moves a number in a step, in rates: (1 - a) / √((1 - b) · (1 - a² / b))."""


def curve(run: Path) -> dict[int, tuple[float, ...]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len({line["step"] for line in lines}) == len(lines)
    terms = ("total", "masked", "visible", "uniformity")
    return {line["step"]: tuple(line[f"loss/{term}"] for term in terms) for line in lines}


def assert_same(one: Path, other: Path, tolerance: float = 1e-6) -> None:
    """The loss of each of 20 steps."""
    expected, found = curve(one), curve(other)
    assert list(found) == list(expected) == list(range(1, 21))
    for step, losses in expected.items():
        assert found[step] == pytest.approx(losses, abs=tolerance), f"step {step}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-one pictures; `one`, the run of one process; and what two processes made of them."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(41):
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((24, 20)).save(folder / "pictures" / f"{i:02d}.png")
    done = torchrun("tests.e2e.together", "equal", folder / "pictures", folder)
    assert done.returncode == 0, done.stderr
    train(recipe(folder / "pictures"), folder / "one", True, True)
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp", "changed"])
def test_two_processes_are_one(folder: Path, name: str) -> None:
    """`changed` was begun in DDP and ended in FSDP. Batches of 7 are cut unevenly."""
    assert_same(folder / "one", folder / name)
    one, two = (json.loads((folder / run / "cost.json").read_text()) for run in ("one", name))
    assert (two["images"], two["views"], two["ete"]) == (one["images"], one["views"], one["ete"])
    status = json.loads((folder / name / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 20)


def test_guided_masks_are_alike_and_their_average_in_one_piece(folder: Path) -> None:
    """Each process asks for its own pictures' guide, and numbers are drawn for all. FSDP is refused before a folder."""
    train(recipe(folder / "pictures", *GUIDED), folder / "guided_one", True, True)
    assert_same(folder / "guided_one", folder / "guided")
    assert not (folder / "refused").exists()
    for rank in (0, 1):
        line = (folder / f"refused{rank}.txt").read_text()
        assert line.startswith('masking.pattern "loss" asks the moving average for masks')
        assert "set runtime.parallel ddp" in line


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_checkpoints_are_whole_and_alike(folder: Path, name: str) -> None:
    one, two = (load_file(folder / run / "checkpoints" / "last" / "model.safetensors") for run in ("one", name))
    assert list(one) == list(two)
    for key, value in determined(one).items():
        assert (value - determined(two)[key]).abs().max() < 2e-6, key
    rates = [json.loads(line)["lr"] for line in (folder / "one" / "metrics.jsonl").read_text().splitlines()]
    farthest = 2 * AT_MOST * sum(rates)  # each of the two in its own direction
    for key, value in keys(one).items():
        assert (value - keys(two)[key]).abs().max() < farthest, key


def test_no_picture_is_lost_and_none_seen_twice(folder: Path) -> None:
    shares = [json.loads((folder / f"seen{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(numbers) for _, numbers in shares[0]] == [4] * 20
    assert [len(numbers) for _, numbers in shares[1]] == [3] * 20
    for epoch in range(4):
        seen = Counter(i for share in shares for at, numbers in share if at == epoch for i in numbers)
        assert len(seen) == 35
        assert set(seen.values()) == {1}


def test_one_process_goes_on_with_what_fsdp_left(folder: Path) -> None:
    begun = folder / "begun"
    assert list(curve(begun)) == list(range(1, 13))
    assert (begun / "checkpoints" / "epoch-0002" / "optimizer.pt").is_file()
    train(recipe(folder / "pictures"), begun, True, False)
    assert_same(folder / "one", begun)


def test_a_killed_process_is_started_anew_and_the_run_goes_on(folder: Path) -> None:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    settings += ["--set", "runtime.save_every_minutes=0.0000001"]
    given = ["--recipe", "dmjd-vit-micro-cifar", "--data", folder / "pictures", "--out", folder / "killed", *settings]
    done = torchrun("tests.e2e.together", "pretrain", *given, "--quiet", restarts=2, DIES_AT="9")
    assert done.returncode == 0, done.stderr
    assert "SIGKILL" in done.stderr or "-9" in done.stderr, "nothing was killed"
    assert_same(folder / "one", folder / "killed")
    assert curve(folder / "killed") == curve(folder / "ddp"), "not what the run is that was never killed"
    assert (folder / "killed" / "report.html").is_file()
    assert json.loads((folder / "killed" / "env.json").read_text())["processes"] == 2


def test_a_mistake_is_said_once_and_all_end_with_2(folder: Path) -> None:
    done = torchrun("remask", "pretrain", "--data", folder / "pictures", "--out", folder / "ddp")
    assert done.returncode != 0
    assert done.stderr.count("already exists and is not empty") == 1, done.stderr
    assert set(re.findall(r"exitcode *: *(-?\d+)", done.stderr)) == {"2"}, done.stderr


def test_changed_pictures_stop_all_processes_and_are_accepted_by_all(folder: Path, tmp_path: Path) -> None:
    """The main process looks, and all end with its line, once; nothing of the run is written."""
    pictures, run = shutil.copytree(folder / "pictures", tmp_path / "pictures"), tmp_path / "run"
    shutil.copytree(folder / "ddp", run)
    text = (run / "recipe.toml").read_text().replace(str(folder / "pictures"), str(pictures))
    (run / "recipe.toml").write_text(text.replace("max_steps = 20\n", ""))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    for i in range(21):
        shutil.copy(pictures / "00.png", pictures / f"a{i:02d}.png")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = torchrun("remask", "resume", run, "--quiet")
    assert done.returncode != 0
    assert done.stderr.count("data: 41 pictures became 62, first new a00.png; put it back") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    done = torchrun("remask", "resume", run, "--accept-changed-data", "--quiet")
    assert done.returncode == 0, done.stderr
    history = json.loads((run / "data.json").read_text())["history"]
    assert [(one["step"], one["changes"]) for one in history] == [
        (20, ["data: 41 pictures became 62, first new a00.png"])
    ]
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs[19:] == [4.0, *(round(4 + i / 8, 4) for i in range(1, 9))]
