"""SECURITY.md's promises: no code from data, no network unless named, nothing written outside."""

import ast
import json
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from remask.cli import main as cli
from tests.architecture.source import modules

SMALL = ("--recipe", "demo", "--smoke", "--quiet", "--set", "runtime.device=cpu", "--set", "runtime.workers=0")


class Hostile:
    """Writes a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """(Exit code, stderr) of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["remask", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, made under a umask of 027; `modes.json` beside it says what permissions its files had then."""
    run = tmp_path_factory.mktemp("finished") / "run"
    before = os.umask(0o027)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["remask", "pretrain", *SMALL, "--out", str(run)])
            with pytest.raises(SystemExit) as end:
                cli.main()
    finally:
        os.umask(before)
    assert not end.value.code
    found = {str(path.relative_to(run)): (path.is_dir(), path.stat().st_mode & 0o777) for path in run.rglob("*")}
    (run.parent / "modes.json").write_text(json.dumps(found))
    return run


def test_nothing_that_runs_code_is_called() -> None:
    """No eval, exec, pickle of a file, shell or unpacking; torch and numpy read data alone."""
    found, loads = list[str](), 0
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            name, keys = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
            where = f"{module.where}:{node.lineno} {name}"
            own = name == "pickle.loads" and ast.unparse(node.args[0]).startswith("pickle.dumps(")
            if name in ("eval", "exec", "pickle.load", "os.system", "os.popen", "yaml.load", "marshal.loads"):
                found.append(where)
            if (name == "pickle.loads" and not own) or name.endswith((".extractall", ".unpack_archive")):
                found.append(where)
            if keys.get("shell", "False") != "False":
                found.append(where)
            if name in ("torch.load", "np.load"):
                loads += 1
                key, wanted = ("weights_only", "True") if name == "torch.load" else ("allow_pickle", "False")
                if keys.get(key) != wanted:
                    found.append(where)
    assert loads >= 6
    assert not found


def test_no_message_advises_to_run_what_a_file_holds() -> None:
    assert not [module.where for module in modules() if "weights_only=False" in module.text]


@pytest.mark.parametrize("kind", ["mae", "dino", "beit", "mocov3", "convmae", "simmim"])
def test_a_hostile_pickle_as_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, content in enumerate(({"model": Hostile(tmp_path / "ran")}, Hostile(tmp_path / "ran"))):
        file = tmp_path / f"{number}.pth"
        torch.save(content, file)
        words = ("embed", f"{kind}:{file}", "--data", "digits:val", "--out", tmp_path / "f.npz", "--quiet")
        code, line = command(monkeypatch, capsys, *words)
        assert code == 2, line
        assert line.count("\n") == 1
        assert "weights_only" not in line
        file.write_bytes(pickle.dumps(content))
        assert command(monkeypatch, capsys, *words)[0] == 2
    assert not (tmp_path / "ran").exists()


def test_hostile_files_planted_in_a_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the place of each file that a command reads."""
    import shutil

    run, ran = shutil.copytree(finished, tmp_path / "run"), tmp_path / "ran"
    (run / "status.json").write_text('{"state": "interrupted", "step": 1}')
    probe = ("probe", run, "--data", "digits:train", "--val", "digits:val", "--shots", "1", "--quiet")
    planted = [run / "checkpoints" / "last" / name for name in ("optimizer.pt", "model.safetensors", "state.json")]
    planted += [run / "env.json", run / "data.json", run / "eval" / ".linprobe.part", run / "eval" / ".knn.part"]
    for file in planted:
        kept = file.read_bytes() if file.is_file() else None
        file.parent.mkdir(exist_ok=True)
        torch.save({"state": Hostile(ran)}, file)
        for words in (("resume", run, "--quiet"), probe, ("report", run), ("export", run, "--out", tmp_path / "e")):
            _, line = command(monkeypatch, capsys, *words)
            assert "weights_only=False" not in line
            assert not ran.exists(), (file.name, words)
        file.write_bytes(kept) if kept is not None else file.unlink()


def test_no_connection_is_opened(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for words in (
        ("pretrain", *SMALL, "--out", tmp_path / "run"),
        ("report", finished),
        ("export", finished, "--out", tmp_path / "export"),
        ("probe", finished, "--data", "digits:train", "--val", "digits:val", "--shots", "1", "--quiet"),
        ("data", "check", "digits", "--limit", "20", "--workers", "0", "--quiet"),
    ):
        code, line = command(monkeypatch, capsys, *words)
        assert code == 0, line


def test_permissions_are_those_of_the_umask(finished: Path) -> None:
    modes = json.loads((finished.parent / "modes.json").read_text())
    assert len(modes) >= 15
    assert not {name: oct(mode) for name, (folder, mode) in modes.items() if mode != (0o750 if folder else 0o640)}


def test_planted_links_lead_nowhere(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links under the names that temporary files once had, and in the place of what is written."""
    import shutil

    run, victim = shutil.copytree(finished, tmp_path / "run"), tmp_path / "victim"
    victim.write_text("as it was")
    names = ("report.html", "status.json", "cost.json", "eval/knn.json", "eval/linprobe.json")
    (run / "eval").mkdir(exist_ok=True)
    for name in names:
        place = run / name
        for planted in (place, place.with_name(f".{place.name}.part"), place.with_name(f".{place.stem}.part")):
            planted.unlink(missing_ok=True)
            planted.symlink_to(victim)
    (run / "eval" / ".linprobe.new").symlink_to(victim)
    for words in (
        ("report", run),
        ("probe", run, "--data", "digits:train", "--val", "digits:val", "--shots", "1", "--quiet"),
        ("embed", run, "--data", "digits:val", "--out", tmp_path / "f.npz", "--quiet"),
    ):
        command(monkeypatch, capsys, *words)
    assert victim.read_text() == "as it was"
