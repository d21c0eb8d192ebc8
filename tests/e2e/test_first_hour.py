"""Mistakes of somebody's first hour: each is one line that names what to type, and exit code 2."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.cli import main as cli
from remask.recipe import choose, dump, load_recipe

RUN = ["pretrain", "--recipe", "demo"]
CASES = {
    "a method as a recipe": (["pretrain", "--recipe", "mae", "--data", "photos"], "mae-vit-b", "--method mae"),
    "a network as a recipe": (["show", "vit"], "mae-vit-b"),
    "a task's recipe in plan": (["plan", "--recipe", "small"], "remask finetune RUN --recipe small"),
    "a task's recipe in show": (["show", "convit-l"], "remask finetune RUN --recipe convit-l"),
    "a task's recipe by its folder": ([*RUN[:2], "finetune/vit-b"], "remask finetune RUN --recipe vit-b"),
    "pre-training's recipe in a task": (["finetune", "run", "--recipe", "mae-vit-b"], "remask pretrain --recipe mae"),
    "a recipe without .toml": ([*RUN[:2], "mine"], "./mine.toml"),
    "a run as a recipe": (["show", "run"], "run/recipe.toml"),
    "a task's file": ([*RUN[:2], "./task.toml"], "remask finetune"),
    "an option cut short": ([*RUN, "--epoch", "3"], "--epochs"),
    "one dash": (["pretrain", "-recipe", "demo"], "--recipe"),
    "a rate": ([*RUN, "--lr", "0.1"], "--set optim.lr=0.1"),
    "a rate with =": ([*RUN, "--weight-decay=0.1"], "--set optim.weight_decay=0.1"),
    "a key of nobody": ([*RUN, "--set", "data.color=1"], "[data] has source, image_size"),
    "a list without brackets": ([*RUN, "--set", "data.mean=0.5,0.5,0.5"], "write [0.5,0.5,0.5]"),
    "a setting without =": ([*RUN, "--set", "optim.epochs", "3"], "--set optim.epochs=3"),
    "a pattern that the shell expanded": ([*RUN, "--data", "pics/0.png", "pics/1.png"], "--data pics"),
    "a recipe without its option": (["pretrain", "demo"], "--recipe demo"),
    "nothing to probe": (["probe"], "remask probe --help"),
    "no output": (["data", "pack", "pics"], "remask data pack --help"),
    "an export for a run": (["resume", "run/export"], "give its run, run"),
    "a file for a run": (["report", "mine.toml"], "it is a file"),
    "pictures for a run": (["embed", "pics", "--data", "pics", "--out", "x.npz"], "pictures go to --data"),
    "a run nearby": (["resume", "rum"], "did you mean run?"),
    "a folder of runs": (["resume", "runs"], "runs/first"),
    "a fine-tuned run to reconstruct": (["reconstruct", "tuned"], "remask export tuned"),
    "a fine-tuned run to embed": (["embed", "tuned", "--data", "pics", "--out", "x.npz"], "remask export tuned"),
    "a fine-tuned run to look at": (["attention", "tuned"], "remask export tuned"),
    "half a size": ([*RUN, "--image-size", "224x"], "224x"),
    "no size": ([*RUN, "--image-size", "0"], "not 0"),
    "an empty variable": (["show", "demo"], "REMASK_SEED is empty"),
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, recipes and things that look like runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    for i in range(2):
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(tmp_path / "pics" / f"{i}.png")
    for run in ("run", "runs/first", "tuned"):
        (tmp_path / run / "export").mkdir(parents=True)
        (tmp_path / run / "recipe.toml").write_text(dump(load_recipe("demo", environment={})))
    (tmp_path / "run" / "export" / "backbone.safetensors").write_bytes(b"")
    (tmp_path / "tuned" / "task.json").write_text("{}")
    (tmp_path / "mine.toml").write_text('extends = "demo"\n')
    (tmp_path / "task.toml").write_text('task = "finetune"\n')
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_one_line_that_names_what_to_type(
    case: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, *telling = CASES[case]
    if case == "an empty variable":
        monkeypatch.setenv("REMASK_SEED", "")
    before = sorted(home.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["remask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1), said
    assert not [words for words in telling if words not in said], said
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["help"], ["version"], ["help", "probe"]])
def test_words_of_other_programs(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["remask", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out


def test_quiet_prints_the_folder_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["remask", *RUN, "--smoke", "-q", "--out", "a run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == "a run\n"
    assert (home / "a run" / "report.html").is_file()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody can write needs /proc")
def test_an_unwritable_folder(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["remask", *RUN, "--smoke", "-q", "--out", "/proc/z"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert said.startswith("remask: /proc/z cannot be made: ")
    assert said.endswith("choose another --out\n")
    shutil.rmtree(home / "pics")


def test_smoke_keeps_what_was_asked_for() -> None:
    asked = {"data.image_size": "48x32", "optim.epochs": 3, "optim.batch_size": 4, "data.limit": 20, "seed": 5}
    small = choose("demo", asked, settings=["method.decoder_width=48", "probe.source=digits"], smoke=True)
    assert (small.data.image_size, small.optim.epochs, small.optim.batch_size) == ((48, 32), 3, 4)
    assert (small.data.limit, small.seed, small.optim.max_steps) == (20, 5, None)
    assert small.method.decoder_width == 48
    assert small.probe is not None
    assert small.probe.source == "digits"
    taught = choose("dmae-vit-micro-cifar", teachers=["untrained:vit_tiny,layer=3"], smoke=True)
    assert taught.distill is not None
    assert [(teacher.source, teacher.layer) for teacher in taught.distill.teachers] == [("untrained:vit_tiny", 3)]
    grown = choose("fastmim-vit-micro", settings=["progress.sizes=[32,64]", "data.image_size=64"], smoke=True)
    assert grown.progress is not None
    assert grown.progress.sizes == [(32, 32), (64, 64)]
    assert choose("demo", {"optim.max_steps": 2}, smoke=True).optim.max_steps == 2


def test_quiet_prints_the_result_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network = ["untrained:vit_micro", "--image-size", "32", "--data", "digits", "--limit", "60", "-q"]
    for arguments, first in (
        (["embed", *network, "--out", "f.npz"], "60 × 128 features → f.npz"),
        (["finetune", *network, "--epochs", "1", "--out", "run", "--set", "augment.mixup=0", "--set",
          "augment.cutmix=0"], "top1 "),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["remask", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert (ended.value.code, printed.err) == (0, "")
        assert printed.out.startswith(first)
        assert printed.out.count("\n") == 1


def test_quiet_says_nothing_of_pixels_and_bad_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 16 bits, with one that cannot be used: the result alone, for every verb that looks."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        file = tmp_path / "deep" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(number).integers(0, 4096, (32, 32))
        Image.fromarray(array.astype(np.uint16)).save(file)
    (tmp_path / "deep" / "a" / "bad.png").write_bytes(b"x")
    commands.pretrain(
        "demo", {"data.source": "deep", "data.max_bad": 0.5}, smoke=True, out=tmp_path / "run", quiet=True
    )
    for arguments, lines in (
        (["reconstruct", "run"], ["run/pictures/reconstruction.png"]),
        (["reconstruct", "run", "--images", "deep/a"], ["run/pictures/reconstruction.png"]),
        (["attention", "run", "--images", "deep/a"], ["run/pictures/attention.png"]),
        (["embed", "run", "--data", "deep", "--out", "f.npz"],
         ["12 × 32 features → f.npz, without 1 of 13 pictures, which cannot be used"]),
        (["embed", "untrained:vit_micro", "--data", "deep", "--out", "f.npz", "--image-size", "32"],
         ["12 × 128 features → f.npz, without 1 of 13 pictures, which cannot be used"]),
        (["tsne", "run", "--data", "deep", "--out", "t.png"], ["t.png"]),
        (["codebook", "--data", "deep", "--out", "w.st", "--recipe", "beit-vit-micro-cifar", "--vocabulary", "4"],
         ["w.st"]),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["remask", *arguments, "-q"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert (ended.value.code, printed.err, printed.out.splitlines()) == (0, "", lines)
