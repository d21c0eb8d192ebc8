"""Faults of the machine end with one line, exit 2 and what to do, and a run goes on afterwards."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remask.cli import main as cli

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and mounts")

SETTINGS = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "method.decoder_width=32", "method.decoder_heads=2",
    "method.decoder_depth=1", "jd.width=32", "optim.batch_size=16", "optim.epochs=2", "optim.precision=fp32",
    "runtime.log_every=1", "runtime.threads=1", "runtime.device=cpu", "data.image_size=16",
    "runtime.save_every_minutes=0.0005", "runtime.tensorboard=false",
]  # fmt: skip
SET = [word for setting in SETTINGS for word in ("--set", setting)]
WORKERS = ["--set", "runtime.workers=2", "--set", "data.keep=never"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "remask.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def pretrain(out: Path, *more: str, limit: int = 320) -> subprocess.Popen[str]:
    return start("pretrain", "--recipe", "demo", "--limit", str(limit), "--out", out, *SET, *more, "--quiet")


def curve(run: Path) -> list[tuple[int, float]]:
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []
    return [(line["step"], line["loss/total"]) for line in lines]


def reach(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not curve(run) or curve(run)[-1][0] < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Its loader workers: forked, so that they bear its name."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"remask" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def ended(process: subprocess.Popen[str], code: int = 2, timeout: float = 60) -> str:
    """The one line of a command that ends with a code."""
    _, errors = process.communicate(timeout=timeout)
    assert process.returncode == code, errors
    assert errors.count("\n") == 1, errors
    assert errors.startswith("remask: ")
    assert "do report it" not in errors
    return errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = pretrain(run, *WORKERS)
    assert process.wait(timeout=300) == 0
    return curve(run)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.soak)])
def test_a_killed_worker(number: signal.Signals, tmp_path: Path, undisturbed: list[tuple[int, float]]) -> None:
    run = tmp_path / "run"
    process = pretrain(run, *WORKERS)
    reach(run, 5, process)
    os.kill(workers(process)[0], number)
    line = ended(process)
    assert f"was ended by {number.name}: " in line
    assert f"; go on with: remask resume {run}" in line
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
    resumed = start("resume", run, "--quiet")
    assert resumed.wait(timeout=300) == 0
    assert curve(run) == undisturbed


def test_a_stopped_worker_ends_the_run_in_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = pretrain(run, *WORKERS, "--set", "runtime.patience=2")
    reach(run, 5, process)
    for pid in workers(process):
        os.kill(pid, signal.SIGSTOP)
    line = ended(process)
    assert "has given nothing for 2 s: it is stopped, or its disk does not answer" in line
    assert f"; go on with: remask resume {run}" in line
    assert json.loads((run / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_signal_while_a_stuck_worker_is_waited_for(
    number: signal.Signals, tmp_path: Path, undisturbed: list[tuple[int, float]]
) -> None:
    """Answered at once, with the step saved; the run goes on bit by bit."""
    run = tmp_path / "run"
    process = pretrain(run, *WORKERS)
    reach(run, 5, process)
    for pid in workers(process):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3)  # what was made ahead is used up
    began, step = time.monotonic(), curve(run)[-1][0]
    process.send_signal(number)
    assert process.stderr
    line = process.stderr.readline()
    assert time.monotonic() - began < 2
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert f"interrupted: step {step} of 40 is saved; go on with: remask resume {run}" in line
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    resumed = start("resume", run, "--quiet")
    assert resumed.wait(timeout=300) == 0
    assert curve(run) == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_run_is_prepared(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """torch is being imported, pictures are opened, networks made."""
    for delay in (1.5, 4):
        run = tmp_path / f"run{delay}"
        process = pretrain(run, limit=64000)
        time.sleep(delay)
        if curve(run):
            break
        began = time.monotonic()
        process.send_signal(number)
        line = ended(process, code)
        assert time.monotonic() - began < 5
        assert "interrupted: " in line


def test_a_step_that_hears_nothing() -> None:
    """As a wait for another process in compiled code: a line answers the first signal, the second ends at once."""
    code = (
        "import ctypes\n"
        "from remask.training import stopping\n"
        "libc = ctypes.CDLL(None)\n"
        "with stopping.answered(), stopping.StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    libc.pthread_mutex_lock(lock := ctypes.create_string_buffer(64))\n"
        "    libc.pthread_mutex_lock(lock)\n"  # for ever, and no signal ends it
    )
    process = subprocess.Popen([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == (
        "remask: stopping after this step, and saving it; Ctrl-C again ends at once, with what was saved before\n"
    )
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert time.monotonic() - began < 5
    assert errors.startswith("remask: interrupted: ")


def torchrun(out: Path, *more: str) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "remask"]
    given = ["pretrain", "--recipe", "demo", "--limit", "320", "--out", str(out), *SET, *more, "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        launch + given,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def rank(number: int, process: subprocess.Popen[str]) -> int:
    """The process of a rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(int(pid) for pid in children if f"\0RANK={number}\0" in Path(f"/proc/{pid}/environ").read_text())


@pytest.mark.parametrize("number", [pytest.param(signal.SIGKILL, marks=pytest.mark.soak), signal.SIGSTOP])
def test_a_rank_that_dies_or_stops_is_named_by_the_other(number: signal.Signals, tmp_path: Path) -> None:
    """In one line, without gloo's; the run goes on afterwards."""
    run = tmp_path / "run"
    process = torchrun(run, "--set", "runtime.patience=5")
    try:
        reach(run, 5, process)
        victim = rank(1, process)
        os.kill(victim, number)
        status: dict[str, object] = {"state": "running"}
        deadline = time.monotonic() + 60
        while status["state"] == "running" and time.monotonic() < deadline:
            time.sleep(0.1)
            status = json.loads((run / "status.json").read_text())
        time.sleep(5)
        os.kill(victim, signal.SIGKILL) if number == signal.SIGSTOP else None  # torchrun would wait for 30 s
        _, errors = process.communicate(timeout=100)
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in errors.splitlines() if line.startswith("remask: ")]
    assert status["state"] == "failed"
    assert len(lines) == 1, errors
    assert f"rank 1 of 2 processes died or stopped after step {status['step']}: " in lines[0]
    assert f"; go on with: remask resume {run}" in lines[0]
    assert "GLHF" not in errors
    assert "do report it" not in errors
    resumed = start("resume", run, "--quiet")
    assert resumed.wait(timeout=300) == 0
    assert [step for step, _ in curve(run)] == list(range(1, 41))


# ---------------------------------------------------------------------------------------------------- paths and disks


def line_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> str:
    """The one line of a command that is refused, in this process."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["remask", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    errors = capsys.readouterr().err
    assert end.value.code == 2, errors
    assert errors.startswith("remask: ")
    assert errors.count("\n") == 1, errors
    assert "do report it" not in errors
    return errors


RUN = ("pretrain", "--recipe", "demo", "--smoke", "--quiet", *SET)


def test_users_who_do_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "child.toml").write_text('extends = "~nosuchuser/parent.toml"\n')
    for words in (
        [*RUN, "--data", "~nosuchuser/pictures"],
        ["pretrain", "--recipe", "~nosuchuser/a.toml", "--data", "digits"],
        ["pretrain", "--recipe", "child.toml", "--data", "digits"],
        [*RUN, "--set", "backbone.weights=mae:~nosuchuser/a.pth"],
        ["finetune", "~nosuchuser/run", "--data", "digits"],
        ["embed", "mae:~nosuchuser/a.pth", "--data", "digits", "--out", "out"],
        ["probe", "~nosuchuser/run", "--data", "digits:train", "--val", "digits:val"],
        ["resume", "~nosuchuser/run"],
        ["report", "~nosuchuser/run"],
        ["show", "~nosuchuser/a.toml"],
        ["data", "check", "~nosuchuser/pictures"],
    ):
        assert "~nosuchuser" in line_of(capsys, monkeypatch, *words), words


def test_paths_that_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below a file, in a circle, to nothing, too long: for --out, --data, --recipe and RUN."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for path in (tmp_path / "file" / "x", tmp_path / "loop" / "x", tmp_path / "loop", tmp_path / ("n" * 300)):
        words = (
            (*RUN, "--out", path),
            (*RUN, "--data", path),
            ("pretrain", "--data", "digits", "--recipe", path.with_name(f"{path.name}.toml")),
            ("probe", path, "--data", "digits:train", "--val", "digits:val"),
            ("report", path),
            ("data", "pack", "digits", "--out", f"{path}.remask", "--quiet"),
        )
        for command in words:
            if not (command[0] == "data" and path == tmp_path / "loop"):  # loop.remask is an ordinary new file
                line_of(capsys, monkeypatch, *command)
    line_of(capsys, monkeypatch, *RUN, "--data", tmp_path / "dangling")
    line_of(capsys, monkeypatch, "report", tmp_path / "dangling")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At every fill of it, whichever library meets it."""
    (disk / "ballast").write_bytes(bytes(2**20))
    for free in (0, 8, 200, 500, 900):
        (disk / "ballast").unlink()
        size = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "ballast").write_bytes(bytes(max(0, size - free * 1024)))
        line = line_of(capsys, monkeypatch, *RUN, "--out", disk / "run")
        assert "the disk is full" in line
        assert "free some space" in line
        subprocess.run(["rm", "-rf", str(disk / "run")], check=True)


def test_a_read_only_disk(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start, and for what is made of a run."""
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    monkeypatch.setattr(sys, "argv", ["remask", *RUN, "--out", str(disk / "run")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for words in (
        (*RUN, "--out", disk / "new"),
        ("report", disk / "run"),
        ("export", disk / "run"),
        ("reconstruct", disk / "run", "--quiet"),
        ("probe", disk / "run", "--data", "digits:train", "--val", "digits:val", "--shots", "1", "--quiet"),
        ("data", "pack", "digits", "--limit", "20", "--out", disk / "a.remask", "--quiet"),
    ):
        assert "read-only" in line_of(capsys, monkeypatch, *words).lower(), words


def test_a_run_folder_that_is_removed_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from remask.training.trainer import Trainer

    step = Trainer.step

    def removed(self: Trainer, batch: object) -> object:
        if self.global_step == 1:
            shutil.rmtree(self.run.path)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", removed)
    line = line_of(capsys, monkeypatch, *RUN, "--out", tmp_path / "run")
    assert "it does not exist, or was removed meanwhile" in line


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ESTALE])
def test_errors_of_a_save(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the system says them; the run that had a checkpoint is told how it goes on."""
    from remask.training import saving

    write, count = saving.write, iter(range(99))

    def failing(*given: object) -> None:
        if next(count) == 1:
            raise OSError(number, os.strerror(number), str(tmp_path / "run" / "checkpoints"))
        write(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write", failing)
    line = line_of(capsys, monkeypatch, *RUN, "--out", tmp_path / "run")
    assert f"go on with: remask resume {tmp_path / 'run'}" in line
    assert "; " in line.partition("checkpoints: ")[2]
