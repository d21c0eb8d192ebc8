"""What a run promises around its checkpoints: no circle before the first, no false end, one writer, and verify."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from remask import commands
from remask.errors import UserError
from remask.recipe import choose
from remask.training import trainer
from remask.training.run_folder import RunFolder

SMALL = [
    "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "method.decoder_width=32", "method.decoder_heads=2",
    "method.decoder_depth=1", "data.limit=64", "optim.batch_size=16", "optim.epochs=2", "runtime.log_every=1",
    "runtime.threads=1", "runtime.tensorboard=false", "runtime.keep_every_epochs=1", "optim.warmup_epochs=0",
]  # fmt: skip


def pretrain(out: Path) -> Path:
    recipe = choose("mae-vit-micro-cifar", {"data.source": "digits:train"}, settings=SMALL)
    return commands.pretrain(recipe, out=out, quiet=True)


def curve(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss/total"]) for line in RunFolder(run).metrics()]


def state_of(run: Path) -> str:
    return str(json.loads((run / "status.json").read_text())["state"])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


class Killed(BaseException):
    """Stands for kill -9."""


def test_all_files_of_a_run_obey_the_umask(finished: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in finished.rglob("*") if path.is_file()}
    assert len(modes) > 20
    assert not {path: oct(mode) for path, mode in modes.items() if mode != 0o666 & ~umask}
    assert not [path for path in finished.rglob("*") if path.suffix in (".part", ".old")]


def test_a_run_killed_before_its_first_checkpoint_begins_at_step_0(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise Killed

    run = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Saver, "save", kill)
        patch.setattr(trainer.Trainer, "_end", lambda *_: None)
        with pytest.raises(Killed):
            pretrain(run)
    assert state_of(run) == "running"
    with pytest.raises(UserError, match="continue it with: remask resume"):
        pretrain(run)
    with pytest.raises(UserError, match="it ended before its first: remask resume"):
        commands.export(run)
    commands.resume(run, quiet=True)
    assert curve(run) == curve(finished)
    last = "checkpoints/last/model.safetensors"
    assert (run / last).read_bytes() == (finished / last).read_bytes()
    assert state_of(run) == "finished"


def test_a_folder_that_was_half_made_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "begin", kill)
        with pytest.raises(Killed):
            pretrain(tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.toml").exists()
    assert state_of(pretrain(tmp_path / "run")) == "finished"


@pytest.mark.parametrize("stage", ["export", "reconstruct", "report"])
def test_finished_is_said_when_all_is_there(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object, **__: object) -> None:
        raise Killed

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(f"remask.commands.pretraining.{stage}", kill)
        with pytest.raises(Killed):
            pretrain(run)
    assert state_of(run) == "trained"
    before = (run / "checkpoints/last/manifest.json").stat().st_mtime_ns
    page = commands.report(run).read_text()
    if stage != "report":
        assert "training done, " in page
        assert "Go on with" in page
    (run / "report.html").unlink()
    commands.resume(run, quiet=True)
    assert state_of(run) == "finished"
    assert ">finished ·" in (run / "report.html").read_text()
    assert (run / "checkpoints/last/manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="is finished: probe it"):
        commands.resume(run, quiet=True)


def test_pictures_that_are_gone_at_the_end_cost_the_figure_alone(run: Path) -> None:
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"digits:train"', '"/absent"'))
    (run / "pictures/reconstruction.png").unlink()
    (run / "report.html").unlink()
    with pytest.raises(UserError, match="export and report are written, but its figure cannot be drawn"):
        commands.resume(run, quiet=True)
    assert (run / "report.html").is_file()
    recipe.write_text(recipe.read_text().replace('"/absent"', '"digits:train"'))
    commands.resume(run, quiet=True)
    assert (run / "pictures/reconstruction.png").is_file()


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
def test_a_damaged_last_is_said_and_the_kept_one_leads_to_the_same_end(
    run: Path, finished: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "checkpoints/last" / file)
    shutil.rmtree(run / "checkpoints/epoch-0002")
    (run / "status.json").write_text(json.dumps({"state": "interrupted"}))
    with pytest.raises(UserError, match="are damaged or missing, first checkpoints/last"):
        commands.verify(run)
    commands.resume(run, quiet=True)
    assert f"{file} is damaged" in capsys.readouterr().err
    assert curve(run) == curve(finished)
    last = "checkpoints/last/model.safetensors"
    assert (run / last).read_bytes() == (finished / last).read_bytes()
    assert "epoch-0001 (step 4) is used instead" in (run / "report.html").read_text()
    assert {state.state for state in commands.verify(run)} == {"intact"}


def test_a_checkpoint_that_is_named(run: Path, finished: Path) -> None:
    flip(run / "checkpoints/epoch-0002/model.safetensors")
    for act in (commands.resume, commands.export):
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            act(run, checkpoint="epoch-0002")
    commands.resume(run, checkpoint="epoch-0001", quiet=True)
    assert curve(run) == curve(finished)
    assert state_of(run) == "finished"


def test_damaged_files_are_named_by_verify_and_an_export_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.verify(run, say=print)
    assert "intact    checkpoints/last  (step 8)" in capsys.readouterr().out
    assert {state.state for state in commands.verify(run / "export")} == {"intact"}
    flip(run / "export/backbone.safetensors")
    for name in ("cost.json", "pictures/reconstruction.png"):
        (run / name).write_bytes(b"junk")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write("junk\n")
    with pytest.raises(UserError, match=r"4 of .* are damaged"):
        commands.verify(run, say=print)
    said = capsys.readouterr().out
    for name in ("export", "cost.json", "metrics.jsonl", "pictures/reconstruction.png"):
        assert f"damaged   {name}" in said
    with pytest.raises(UserError, match=r"backbone\.safetensors is damaged.*export the run again"):
        commands.probe(f"run:{run / 'export'}", "digits:val", quiet=True)
    done = subprocess.run(
        [sys.executable, "-m", "remask", "verify", run / "export"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["status.json", "cost.json", "metrics.jsonl", "bad_images.txt", "data.npz"])
@pytest.mark.parametrize("content", [b"", b"[1]\n", b"\xff\x00junk\n", b'{"step": "x"}\n', b"[" * 20_000 + b"\n"])
def test_damaged_small_files_are_survived(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    if name != "status.json":
        (run / "status.json").write_text(json.dumps({"state": "interrupted"}))
    commands.resume(run, quiet=True)
    commands.report(run)
    assert state_of(run) == "finished"


@pytest.mark.parametrize("name", ["env.json", "data.json", "checkpoints/last/state.json"])
def test_damaged_small_files_that_are_needed_end_in_one_line(run: Path, name: str) -> None:
    shutil.rmtree(run / "checkpoints/epoch-0001")
    shutil.rmtree(run / "checkpoints/epoch-0002")
    (run / "status.json").write_text(json.dumps({"state": "interrupted"}))
    for content in (b"", b"[1]", b"\xff", b'{"sources": 1, "format": "x"}', b"[" * 20_000):
        (run / name).write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            commands.resume(run, quiet=True)


HOLDS = """
import sys, time
from pathlib import Path
from remask.files.locking import lock_run
lock_run(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(100)
"""


def test_a_second_writer_is_refused_and_readers_go_on(run: Path) -> None:
    (run / "status.json").write_text(json.dumps({"state": "interrupted"}))
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, run], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=f"is being written by process {holder.pid} on "):
            commands.resume(run, quiet=True)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        commands.report(run)
        commands.verify(run)
    finally:
        holder.kill()
        holder.wait()
    commands.resume(run, quiet=True)
    assert state_of(run) == "finished"
