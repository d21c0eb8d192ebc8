"""Sources as people have them, through the command line: what is taken, what is left out and said, what is refused."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.cli import main as cli
from remask.commands import ModelOptions, ProbeOptions
from remask.errors import UserError
from remask.recipe import load_recipe

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 60, 220)]


def remask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["remask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def picture(number: int, seed: int, side: int = 16) -> Image.Image:
    noise = np.random.default_rng(1000 * number + seed).normal(0, 12, (side, side, 3))
    return Image.fromarray((np.array(COLOURS[number]) + noise).clip(0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def put(root: Path, number: int, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, seed).save(root / name)
    return root


@pytest.mark.parametrize("sign", ["-", ".", ".v1.0-"])
def test_two_pictures_of_a_scene_keep_their_classes(tmp_path: Path, sign: str) -> None:
    for split, scenes in (("train", range(16)), ("test", range(40, 48))):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for k in scenes:
                classes = np.random.default_rng(k).integers(0, 3, 2)
                for side, i in zip(("left", "right"), classes.tolist(), strict=True):
                    for end, data in (("png", png(picture(i, 10 * k + len(side), 8))), ("cls", str(i).encode())):
                        info = tarfile.TarInfo(f"scene{k:03d}{sign}{side}.{end}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
    data, val = str(tmp_path / "train.tar"), str(tmp_path / "test.tar")
    result = commands.probe(
        "untrained:vit_micro",
        data,
        val,
        ProbeOptions(k=3),
        ModelOptions(image_size=(32, 32)),
        out=tmp_path / "out",
        quiet=True,
    )
    assert result["knn"]["top1"] == result["linear"]["top1"] == 100


def test_versions_and_hard_links(tmp_path: Path, monkeypatch, capsys) -> None:
    put(tmp_path / "v", 0, *(f"photo{k}{end}.png" for k in range(5) for end in ("", ".edited")))
    put(tmp_path / "d", 1, *(f"a{k}.png" for k in range(4)))
    for k in range(4):
        os.link(tmp_path / "d" / f"a{k}.png", tmp_path / "d" / f"b{k}.png")
    for folder, count in (("v", 10), ("d", 8)):
        with tarfile.open(tmp_path / f"{folder}.tar", "w") as tar:
            tar.add(tmp_path / folder, ".")
        code, out, _ = remask(capsys, monkeypatch, "data", "check", f"{tmp_path}/{folder}.tar", "-q", "--workers", "0")
        assert code == 0
        assert out.startswith(f"{tmp_path}/{folder}.tar: {count} pictures, all usable\n")


def test_splits_are_asked_for(tmp_path: Path, monkeypatch, capsys) -> None:
    for split in ("training", "testing"):
        for number, name in enumerate(("cat", "dog")):
            put(tmp_path / split / name, number, *(f"{k}.png" for k in range(3)))
    code, out, _ = remask(capsys, monkeypatch, "data", "check", str(tmp_path), "-q", "--workers", "0")
    assert code == 0
    assert "classes    no labels: the splits testing 6, training 6 are taken together; for one of them name" in out
    for command in (("probe", "untrained:vit_micro"), ("finetune", "untrained:vit_micro")):
        code, _, err = remask(capsys, monkeypatch, *command, "--data", str(tmp_path), "--out", str(tmp_path / "run"))
        assert (code, err.count("\n")) == (2, 1)
        assert err.endswith(f"give --data {tmp_path}/training --val {tmp_path}/testing\n")
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_it_takes_and_leaves_out(tmp_path: Path, monkeypatch, capsys) -> None:
    data = put(
        tmp_path / "data", 0, *(f"{split}/{k}.png" for split in ("train", "val") for k in range(8)), "lost/x.png"
    )
    (data / "train/notes.md").write_text("x")
    run = str(tmp_path / "run")
    given = ("--recipe", "demo", "--smoke", "--data", str(data), "--exclude", str(data / "lost"), "--out", run)
    code, _, err = remask(capsys, monkeypatch, "pretrain", *given)
    assert code == 0, err
    assert f"{data}: left out 1 excluded by lost, 1 .md file\n" in err
    assert f"{data}: all of its splits are taken (train 8, val 8)\n" in err
    assert load_recipe(f"{run}/recipe.toml", environment={}).data.exclude == ["lost"]
    out = str(tmp_path / "f.npz")
    code, _, err = remask(capsys, monkeypatch, "embed", run, "--data", str(data), "--out", out, "--exclude", "val")
    assert code == 0, err
    assert f"{data}: left out 1 excluded by val, 1 .md file\n" in err
    assert len(np.load(out)["index"] if "index" in np.load(out) else np.load(out)["features"]) == 9


def test_labelled_commands_say_it_too(tmp_path: Path, monkeypatch, capsys) -> None:
    for number, name in enumerate(("cat", "dog")):
        put(tmp_path / "data" / name, number, *(f"{k}.png" for k in range(10)))
        (tmp_path / "data" / name / "x.json").write_text("{}")
    data, size = str(tmp_path / "data"), ("--image-size", "16")
    for command in (("probe", "--k", "3"), ("finetune", "--epochs", "1", "--batch-size", "8")):
        given = (*command[:1], "untrained:vit_micro", *command[1:], *size, "--data", data, "--exclude", "9.png")
        code, out, err = remask(capsys, monkeypatch, *given, "--out", str(tmp_path / command[0]))
        assert code == 0, err
        assert f"{data}: left out 2 excluded by 9.png, 2 .json files\n" in err
        assert (out + err).count("left out") == 1


def test_another_user_is_told_how_to_go_on(request: pytest.FixtureRequest) -> None:
    """As one without rights sees a disk whose root holds lost+found, of root, mode 700."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    tmp_path = Path(tempfile.mkdtemp())  # pytest closes the folder above tmp_path to others
    request.addfinalizer(lambda: shutil.rmtree(tmp_path))
    tmp_path.chmod(0o755)
    put(tmp_path / "d", 0, "photos/0.png", "lost+found/1.png")
    (tmp_path / "d/lost+found").chmod(0o700)
    code = (
        "import os, sys, remask.images, remask.images.decoding\n"
        "from remask.images.sources.opening import open_source\n"
        "os.seteuid(65534)\n"
        "print(len(open_source(sys.argv[1], exclude=sys.argv[2:])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "d")]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.stderr.endswith(
        "cannot list " + str(tmp_path / "d/lost+found") + ": Permission denied; to go on without it, "
        "give --exclude lost+found\n"
    )
    done = subprocess.run([*command, "lost+found"], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_check_fits_ten_lines(shared: Path, monkeypatch, capsys) -> None:
    code, out, _ = remask(capsys, monkeypatch, "data", "check", str(shared / "data/nasty"), "-q", "--workers", "0")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) <= 10
    assert lines[0].endswith("45 pictures, 9 of them unusable; left out: 1 .json file, 1 .tar file")
    assert "4 below a patch of 16 px are skipped" in out
    assert "of which the first counts" in out


def test_excluding_a_named_set_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--exclude is for folders, lists and tars"):
        commands.pretrain("demo", {"data.exclude": ["x"]}, smoke=True, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_json_of_check(tmp_path: Path, monkeypatch, capsys) -> None:
    put(tmp_path, 0, "a.png", "b.gif")
    (tmp_path / "c.md").write_text("x")
    code, out, _ = remask(
        capsys, monkeypatch, "data", "check", str(tmp_path), "-q", "--json", "--exclude", "*.gif", "--workers", "0"
    )
    assert code == 0
    assert json.loads(out)["left_out"] == {".md files": 1, "excluded by *.gif": 1}
