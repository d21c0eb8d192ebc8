"""Look at pictures, pack them, train on the packed file: through the command line."""

import json
import sys
from pathlib import Path

import pytest
import torch

from remask import commands
from remask.cli import main as cli
from remask.errors import UserError
from remask.recipe import load_recipe


def remask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["remask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_check_pack_and_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    code, out, _ = remask(capsys, monkeypatch, "data", "check", "digits", "--workers", "0", "--patch", "4")
    assert code == 0
    assert "1,797 pictures, all usable" in out
    assert "--set data.mean=[0.3053,0.3053,0.3053]" in out
    code, out, err = remask(capsys, monkeypatch, "data", "check", "digits:val", "--json", "-q", "--workers", "0")
    assert (code, err) == (0, "")
    assert json.loads(out)["classes"]["0"] == 35
    pack = ("data", "pack", "digits", "--out", "d.remask", "--format", "raw", "--channels", "1", "--workers", "0")
    code, out, _ = remask(capsys, monkeypatch, *pack)
    assert code == 0
    assert out.startswith("1,797 pictures, raw, ")
    code, _, err = remask(capsys, monkeypatch, *pack)
    assert (code, err.count("\n")) == (2, 1)
    assert "exists already" in err
    losses = [
        metrics(commands.pretrain("demo", {"data.source": source, **keys}, smoke=True, out=tmp_path / out, quiet=True))
        for source, keys, out in (
            ("digits", {"data.crops": 2, "data.keep": "never"}, "a"),
            ("d.remask", {"data.crops": 2, "data.keep": "device"}, "b"),
        )
    ]
    assert losses[0] == losses[1], "where pictures lie changes nothing"


def metrics(run: Path) -> list[float]:
    return [json.loads(line)["loss/total"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_without_cuda_the_cpu_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    commands.pretrain("demo", {"data.decode": "cuda", "runtime.device": "cpu"}, smoke=True, out=tmp_path / "a")
    assert 'data.decode "cuda": cpu is no CUDA device, so JPEGs are decoded on the CPU' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["data.crops=3"], "data.crops 3 does not divide optim.batch_size"),
        (["data.keep=disk"], "data.keep"),
        (["data.decode=cuda", "data.keep=device"], "keeps no pictures"),
        (["data.reduced=true", "data.keep=ram"], "keeps no pictures"),
    ],
)
def test_keys_that_do_not_fit(settings: list[str], line: str):
    with pytest.raises(UserError, match=line):
        load_recipe("demo", settings, environment={})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["data", "check", "nowhere"], "nowhere"),
        (["data", "pack", "digits", "--out", "x.jpg"], ".remask"),
        (["data", "pack", "digits", "--out", "x.remask", "--size", "abc"], "--size"),
        (["data", "pack", "digits", "--out", "x.remask", "--format", "png"], "jpeg or raw"),
        (["data", "pak"], "pack"),
    ],
)
def test_mistakes(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    code, _, err = remask(capsys, monkeypatch, *arguments)
    assert (code, err.count("\n")) == (2, 1), err
    assert line in err
    assert list(tmp_path.iterdir()) == []
