"""Look at pictures, pack them, train on the packed file: through the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


def test_check_says_what_training_has_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).integers(0, 4096, (24, 24, 6)).astype(np.uint16))
    check = ("data", "check", ".", "--workers", "0", "--image-size", "16", "-q")
    _, out, _ = remask(capsys, monkeypatch, *check)
    assert "channels   4 images have 6: check --channels 6, train with --set data.channels=6\n" in out
    _, out, _ = remask(capsys, monkeypatch, *check, "--channels", "6", "--range", "0,9000")
    assert "channels   train with --set data.channels=6\n" in out
    assert "black to white is 0 to 9000 (values 0 to " in out
    said = ("--data", ".", "--set", "data.channels=6", "--range", "0,9000", "--smoke", "--out", "run", "-q")
    code, _, err = remask(capsys, monkeypatch, "pretrain", "--recipe", "demo", *said)
    assert (code, err) == (0, "")
    kept = load_recipe(tmp_path / "run" / "recipe.toml", environment={}, strict=False)
    assert (kept.data.channels, kept.data.range) == (6, (0.0, 9000.0))


def test_check_names_columns_and_labels_that_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Image.new("RGB", (20, 20), (7, ord(name), 0)).save(tmp_path / f"{name}.png")
    (tmp_path / "x.csv").write_text("image,label,width\na.png,1.0,20\nb.png,,20\n")
    _, out, _ = remask(capsys, monkeypatch, "data", "check", "x.csv", "--workers", "0", "-q")
    line = next(line for line in out.splitlines() if line.startswith("remarks"))
    assert "columns used: image, label; not used: width" in line
    assert "1 of 2 images have no label (missing, -1 or NaN)" in line
    _, out, _ = remask(capsys, monkeypatch, "data", "check", "x.csv", "--workers", "0", "-q", "--json")
    assert len(json.loads(out)["remarks"]) == 2
