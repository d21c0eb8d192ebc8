"""A run goes on with another number of processes than before: the pictures of one process, and its losses.

Two processes begin it and end in mid-epoch, by a signal or by a kill; one and three go on, for which batches of 7 are
cut in 3, 2 and 2.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask.runs.session import train
from tests.e2e.elastic import CASES, STOP, go_on, noted, pictures, pictures_of, words
from tests.e2e.test_processes import assert_same, curve
from tests.e2e.together import recipe

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
ROOT = Path(__file__).resolve().parents[2]
BROKEN = (3, 20, 33)


def torchrun(
    processes: int, *arguments: str | Path, restarts: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tests.e2e.elastic", *map(str, arguments)], cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **more}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def copied(folder: Path, name: str, size: int) -> None:
    """The run of two processes, for others to go on with."""
    shutil.copytree(folder / name, folder / f"{name}-{size}")
    shutil.copy(folder / f"{name}.jsonl", folder / f"{name}-{size}.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undisturbed runs of one process; the same begun by two, and gone on with by one and by three."""
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "pictures").mkdir()
    random = np.random.default_rng(0)
    for i in range(41):
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((24, 20)).save(folder / "pictures" / f"{i:02d}.png")
    shutil.copytree(folder / "pictures", folder / "unusable pictures")
    for i in BROKEN:
        (folder / "unusable pictures" / f"{i:02d}.png").write_bytes(b"no picture")
    for name in ("plain", "unusable"):
        with noted(folder / f"undisturbed {name}.jsonl"):
            train(recipe(pictures(folder, name)), folder / f"undisturbed {name}", True, True)
    done = torchrun(2, folder, "begin")
    assert done.returncode == 0, done.stderr
    given = words(folder, folder / "killed")
    done = torchrun(2, folder / "killed.jsonl", *given, restarts=1, DIES_AT="8", STOPS_AT="12")
    assert "SIGKILL" in done.stderr or "-9" in done.stderr, "nothing was killed"
    names = [*CASES, "killed"]
    for name in names:
        copied(folder, name, 1)
        copied(folder, name, 3)
    done = torchrun(3, folder, "go on", *names)
    assert done.returncode == 0, done.stderr
    go_on(folder, names)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_stopped_in_mid_epoch(folder: Path, name: str) -> None:
    status = json.loads((folder / name / "status.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", STOP + 1)
    assert list(curve(folder / name)) == list(range(1, STOP + 2))


def test_two_processes_were_killed_started_anew_and_stopped(folder: Path) -> None:
    status = json.loads((folder / "killed" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("interrupted", 13)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", [*CASES, "killed"])
def test_others_go_on(folder: Path, name: str, size: int) -> None:
    """The pictures of every step, in their order, and its losses are those of one process that nobody stopped."""
    undisturbed = f"undisturbed {'unusable' if name == 'unusable' else 'plain'}"
    found = pictures_of(folder / f"{name}-{size}.jsonl")
    assert found == pictures_of(folder / f"{undisturbed}.jsonl")
    assert [len(batch) for batch in found] == [7] * 20
    assert_same(folder / undisturbed, folder / f"{name}-{size}")
    status = json.loads((folder / f"{name}-{size}" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 20)
    costs = [json.loads((folder / run / "cost.json").read_text()) for run in (undisturbed, f"{name}-{size}")]
    for key in ("images", "views", "tokens", "ete"):
        assert costs[0][key] == costs[1][key], key


@pytest.mark.parametrize("size", [1, 3])
def test_no_picture_is_lost_or_repeated(folder: Path, size: int) -> None:
    """Also in the epoch in which the run was stopped, where two processes had some and others the rest."""
    steps = pictures_of(folder / f"plain-{size}.jsonl")
    for epoch in range(4):
        seen = Counter(i for batch in steps[5 * epoch : 5 * epoch + 5] for i in batch)
        assert len(seen) == 35
        assert set(seen.values()) == {1}


@pytest.mark.parametrize("size", [1, 3])
def test_unusable_pictures_are_named_once(folder: Path, size: int) -> None:
    """Whichever process finds them, before the stop or after."""
    lines = (folder / f"unusable-{size}" / "bad_images.txt").read_text().splitlines()
    assert sorted(Path(line.partition(": ")[0]).name for line in lines) == [f"{i:02d}.png" for i in BROKEN]
    assert not {*BROKEN} & {i for batch in pictures_of(folder / f"unusable-{size}.jsonl") for i in batch}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probing:
        return probing.connect_ex(("127.0.0.1", port)) == 0


def agent(folder: Path, port: int, name: str) -> subprocess.Popen[bytes]:
    """A machine of `--nnodes 1:2`, with one process."""
    impatient = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=8"
    launch = [
        "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=elastic",
        f"--rdzv-endpoint=127.0.0.1:{port}", f"--rdzv-conf={impatient}", "--max-restarts=3", "--monitor-interval=0.2",
        "-m", "tests.e2e.elastic", str(folder / "machines.jsonl"), *words(folder, folder / "machines"),
        "--set", "optim.epochs=30", "--set", "optim.max_steps=120",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLOW": "0.2", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(folder / f"{name}.txt", "wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", *launch], cwd=ROOT, env=environment, stderr=said, stdout=subprocess.DEVNULL
        )


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def kill(process: subprocess.Popen[bytes]) -> None:
    """A machine that fails takes its processes with it."""
    for pid in [*children(process), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def until(done: Callable[[], bool], *processes: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 150
    while not done():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def ranks(file: Path) -> list[int]:
    """The ranks of the shares of the last lines, of a step or two."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line[1] for line in lines[-3:] if len(line) == 3]


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_machine_leaves_and_another_joins(folder: Path) -> None:
    """Of two machines one dies, the other goes on alone, and a new one joins it, which counts no restarts.

    The first hosts the rendezvous, without which there is none.
    """
    file, port = folder / "machines.jsonl", free_port()
    first = agent(folder, port, "first")
    until(lambda: listens(port), first)
    second = agent(folder, port, "second")
    try:
        until(lambda: len(pictures_of(file) if file.exists() else []) > 6, first, second)
        kill(second)
        until(lambda: ranks(file) == [0, 0, 0], first)
        second = agent(folder, port, "third")
        until(lambda: 1 in ranks(file), first, second)
        assert [first.wait(timeout=200), second.wait(timeout=200)] == [0, 0], (folder / "first.txt").read_text()
    finally:
        kill(first)
        kill(second)
    settings = ("optim.epochs=30", "optim.max_steps=120")
    with noted(folder / "undisturbed machines.jsonl"):
        train(recipe(folder / "pictures", *settings), folder / "undisturbed machines", True, True)
    assert pictures_of(file) == pictures_of(folder / "undisturbed machines.jsonl")
    assert list(curve(folder / "machines")) == list(range(1, 121))
    status = json.loads((folder / "machines" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 120)
