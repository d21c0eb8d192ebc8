"""Mistakes of a user: one line that says what, where and what to do, exit code 2, nothing created or overwritten."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask.cli import main as cli

RUN = ["pretrain", "--recipe", "demo"]
LISTS = {
    "spelled.txt": "a.png 01\nb.png 1\n",
    "withheld.csv": "path,label\na.png,0\nb.png,\n",
    "first.txt": "0 x/a.png\n1 x/b.png\n",
}
CASES = {
    "unknown command": (["pretrian"], "pretrain"),
    "unknown option": ([*RUN, "--batchsize", "3"], "--batch-size"),
    "unknown recipe": (["pretrain", "--recipe", "mae-vit-bb", "--data", "photos"], "mae-vit-b"),
    "unknown key": ([*RUN, "--set", "optim.epoch=3"], "optim.epochs"),
    "missing source": ([*RUN, "--data", "nowhere/at/all"], "nowhere/at/all"),
    "empty source": ([*RUN, "--data", "empty"], "empty"),
    "no source": (["pretrain"], "--data"),
    "ratio outside (0, 1)": ([*RUN, "--set", "masking.ratio=1.0"], "masking.ratio"),
    "prediction below ratio": ([*RUN, "--set", "dm.prediction=0.5"], "dm.prediction"),
    "more views than tokens": ([*RUN, "--set", "dm.views=80"], "80 views"),
    "nothing left to see": ([*RUN, "--set", "masking.ratio=0.999"], "0.999"),
    "a device that is not there": ([*RUN, "--device", "cuda:7"], "cuda:7"),
    "no such device": ([*RUN, "--device", "tpu"], "tpu"),
    "unknown backbone": ([*RUN, "--model", "vit_bse_patch16_224"], "vit_base_patch16_224"),
    "no plain transformer": ([*RUN, "--model", "resnet18"], "resnet18"),
    "a size no patch divides": ([*RUN, "--image-size", "33"], "33"),
    "unknown method": ([*RUN, "--method", "mae+xy"], "mae+dmjd"),
    "unknown target": ([*RUN, "--target", "hogg"], "hog"),
    "cell does not divide patch": ([*RUN, "--set", "jd.target.cell=3"], "3"),
    "an existing run": ([*RUN, "--out", "taken"], "taken"),
    "limit": ([*RUN, "--limit", "0"], "limit"),
    "probe without labels": ([*RUN, "--probe", "photos"], "labels"),
    "resume nothing": (["resume", "nowhere"], "nowhere"),
    "report nothing": (["report", "nowhere"], "nowhere"),
    "a flag before the verb": (["-q", "pretrain", "--data", "x"], "remask pretrain -q --data x"),
    "its value too": (["--epochs", "3", "pretrain"], "remask pretrain --epochs 3"),
    "before two words": (["-q", "data", "check", "x y"], "remask data check -q 'x y'"),
    "between two words": (["data", "-q", "check", "x"], "remask data check -q x"),
    "a value that is a verb": (["--out", "report", "pretrain"], "remask pretrain --out report"),
    "a flag of no verb": (["--nonsense", "pretrain"], "No such option: --nonsense"),
    "a range": ([*RUN, "--range", "9,3"], "two numbers low < high"),
    "a range to check": (["data", "check", "photos", "--range", "dark"], "--range must be auto, full, byte or two"),
    "two spellings": ([*RUN, "--probe", "spelled.txt"], "'01' and '1', which are one number"),
    "withheld labels": ([*RUN, "--probe", "withheld.csv"], "1 of 2 images have no label"),
    "class first": ([*RUN, "--data", "first.txt"], "the second column names the files"),
    "probe nothing": (["probe", "nowhere", "--data", "digits"], "nowhere"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_2_and_nothing_created(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments, telling = CASES[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("years of work")
    there = sorted([*LISTS, "empty", "taken", "thesis.txt"])
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["remask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed
    assert printed.err.startswith("remask: ")
    assert printed.err.count("\n") == 1, printed.err
    assert telling in printed.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == there


def stopped(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on the error stream of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_too_many_bad_pictures_stop_the_run_and_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.jpg").write_bytes(b"not a picture")
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"good{i}.png")
    monkeypatch.setattr(sys, "argv", ["remask", *RUN, "--data", str(folder), "--out", str(tmp_path / "run")])
    for _ in range(2):  # nothing was trained, so the same command may be tried again
        line = stopped(capsys)
        assert line.startswith("remask: ")
        assert "of 14 images cannot be used" in line
    listed = (tmp_path / "run" / "bad_images.txt").read_text()
    assert ".jpg" in listed
    assert ".png" not in listed


@pytest.mark.parametrize("content", [b"not a picture", b"", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_source_without_a_usable_picture_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Before anything is created, by the name of the first and its fault."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["remask", *RUN, "--data", str(folder), "--out", str(tmp_path / "run")])
    line = stopped(capsys)
    assert line.startswith(f"remask: none of 12 pictures of {folder} can be used; ")
    assert "00.png: " in line
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    import errno

    from remask.training import checkpoint

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(sys, "argv", ["remask", *RUN, "--smoke", "--quiet", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "disk is full" in capsys.readouterr().err
