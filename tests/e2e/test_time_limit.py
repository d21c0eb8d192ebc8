"""SIGUSR1, SLURM's warning of a time limit: what trains saves and ends with 75, and goes on when started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.slurm import Slurm
from tests.e2e.test_dense import drawn

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and SIGUSR1")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "launch" / "slurm.sbatch"

COMMON = [
    "runtime.log_every=1", "runtime.threads=1", "runtime.device=cpu", "runtime.tensorboard=false",
    "runtime.workers=0", "optim.precision=fp32",
]  # fmt: skip
NETWORK = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "method.decoder_width=32", "method.decoder_heads=2",
    "method.decoder_depth=1", "jd.width=32", "data.image_size=16", "optim.batch_size=16",
]  # fmt: skip
LONG, SHORT = "optim.epochs=500", "optim.epochs=10"
TASK = ["model.source=untrained:vit_micro", "data.image_size=32", "optim.batch_size=4", "optim.epochs=300"]
SAID = "remask: interrupted by SIGUSR1, for the time limit is near: "


def settings(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def pretraining(out: Path, *more: str) -> list[str | Path]:
    words = ["pretrain", "--recipe", "demo", "--limit", "64", *settings(*NETWORK, *COMMON, *more), "--quiet"]
    return [*words, "--out", out]


def start(*words: str | Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "remask", *map(str, words)],
        text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore", **variables},
    )  # fmt: skip


def curve(run: Path) -> dict[int, float]:
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    return {line["step"]: line["loss/total"] for line in lines}


def reach(run: Path, step: int, *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while max(curve(run), default=0) < step:
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def warned(process: subprocess.Popen[str]) -> str:
    """The one line of a command that ends with 75."""
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (75, 1), errors
    assert errors.startswith(SAID)
    return errors.removeprefix(SAID)


def saved(run: Path, line: str) -> int:
    """The step that a warned training saved, which its line, its state and its checkpoint agree on."""
    status = json.loads((run / "status.json").read_text())
    step = json.loads((run / "checkpoints" / "last" / "state.json").read_text())["step"]
    assert line == f"step {step} of {status['steps']} is saved; go on with: remask resume {run}\n"
    assert (status["state"], status["step"], max(curve(run))) == ("interrupted", step, step)
    return int(step)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training of 40 steps."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(*pretraining(run, SHORT))
    assert process.wait(timeout=300) == 0
    return run


def test_pretrain_and_resume(tmp_path: Path, undisturbed: Path) -> None:
    """Twice: a second warning is none but the first, and a SIGTERM after it ends nothing that is being saved."""
    run = tmp_path / "run"
    slow = "runtime.save_every_minutes=0.0001"
    process = start(*pretraining(run, SHORT, slow))
    reach(run, 6, process)
    process.send_signal(signal.SIGUSR1)
    first = saved(run, warned(process))
    assert 6 <= first < 40
    process = start("resume", run, "--quiet")
    reach(run, first + 4, process)
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
    assert first + 4 <= saved(run, warned(process)) < 40
    process = start("resume", run, "--quiet")
    assert process.wait(timeout=300) == 0
    assert curve(run) == curve(undisturbed)
    assert len(curve(run)) == 40


def task_words(name: str, folder: Path, undisturbed: Path) -> list[str | Path]:
    if name == "refine":
        refining = ["refine.neighbours=3", "refine.queue=32", "refine.blocks=1", "optim.batch_size=8", LONG, *COMMON]
        return ["refine", undisturbed, "--data", "digits:train", "--limit", "64", *settings(*refining)]
    if name == "finetune":
        data = ["--data", "digits:train", "--val", "digits:val", "--limit", "64"]
        return ["finetune", undisturbed, *data, *settings(*COMMON, LONG, "optim.batch_size=16")]
    train, val = drawn(folder / "train", 8), drawn(folder / "val", 4)
    of = {
        "segment": [f"data.source={train / 'images'}", f"data.masks={train / 'masks'}", f"data.val={val / 'images'}",
                    f"data.val_masks={val / 'masks'}"],
        "detect": [f"data.source={train / 'images'}", f"data.annotations={train / 'boxes.json'}",
                   f"data.val={val / 'images'}", f"data.val_annotations={val / 'boxes.json'}"],
    }  # fmt: skip
    return [name, *settings(*TASK, *COMMON, *of[name])]


@pytest.mark.parametrize(
    "name", ["finetune", *(pytest.param(task, marks=pytest.mark.soak) for task in ("refine", "segment", "detect"))]
)
def test_other_trainings(name: str, tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"
    process = start(*task_words(name, tmp_path, undisturbed), "--out", run, "--quiet")
    reach(run, 3, process)
    process.send_signal(signal.SIGUSR1)
    assert saved(run, warned(process)) >= 3


def test_outside_a_training() -> None:
    """In a command that trains nothing: the same code, for the same cure."""
    process = start("doctor")
    time.sleep(2)
    process.send_signal(signal.SIGUSR1)
    line = warned(process)
    assert line == "nothing that is half done is left as a result; start it again\n"


@pytest.mark.parametrize("told", [pytest.param((0, 1), marks=pytest.mark.soak), (1,)])
def test_processes_without_torchrun(told: tuple[int, ...], tmp_path: Path, undisturbed: Path) -> None:
    """All of them get the warning, as SLURM sends it, or a single one does: they agree, and go on as one process."""
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = pretraining(run, SHORT)
    processes = [start(*words, RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS="1", **place) for rank in range(2)]
    reach(run, 6, *processes)
    for rank in told:
        processes[rank].send_signal(signal.SIGUSR1)
    line = warned(processes[0])
    _, errors = processes[1].communicate(timeout=60)
    assert (processes[1].returncode, errors) == (75, "")
    assert saved(run, line) >= 6
    process = start("resume", run, "--quiet")
    assert process.wait(timeout=300) == 0
    assert list(curve(run)) == list(curve(undisturbed))
    assert list(curve(run).values()) == pytest.approx(list(curve(undisturbed).values()), abs=1e-5)


def test_loader_processes_are_not_ended_by_it(tmp_path: Path) -> None:
    """SLURM sends it to every process of a step, and so to them too; what they made is still used."""
    run = tmp_path / "run"
    workers = settings("runtime.workers=2", "data.keep=never")
    process = start(*pretraining(run, LONG), *workers)
    reach(run, 6, process)
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    reach(run, max(curve(run)) + 8, process)
    process.send_signal(signal.SIGUSR1)
    saved(run, warned(process))


def test_the_script_for_slurm_queues_itself_again_until_the_run_is_finished(tmp_path: Path) -> None:
    """Its first start begins the run, its second goes on with it; a mistake is not tried again."""
    run, recipe = tmp_path / "run", tmp_path / "small.toml"
    shown = subprocess.run(
        [sys.executable, "-c", "import sys; from remask.recipe import choose, dump; "
         "print(dump(choose('demo', {'data.limit': 64}, settings=sys.argv[1:])))", *NETWORK, *COMMON, SHORT],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    recipe.write_text(shown.stdout)
    slurm = Slurm(tmp_path / "slurm", tasks=2, job=os.getpid())
    given = {"DATA": "digits:train", "OUT": str(run), "RECIPE": str(recipe), "BATCH": "16"}
    job = slurm.start(SCRIPT, **given)
    reach(run, 4, job)
    slurm.signal(signal.SIGUSR1)
    _, errors = job.communicate(timeout=60)
    assert (job.returncode, slurm.requeued) == (75, [str(slurm.job)]), errors
    step = saved(run, slurm.errors(0).splitlines(keepends=True)[-1].removeprefix(SAID))
    job = slurm.start(SCRIPT, **given)
    _, errors = job.communicate(timeout=300)
    assert (job.returncode, len(slurm.requeued)) == (0, 1), slurm.errors(0)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert list(curve(run)) == list(range(1, 41))
    assert step < 40
    assert json.loads((run / "env.json").read_text())["processes"] == 2
    job = slurm.start(SCRIPT, **given)
    job.communicate(timeout=300)
    assert (job.returncode, len(slurm.requeued)) == (2, 1), slurm.errors(0)
    assert "is finished" in slurm.errors(0)
