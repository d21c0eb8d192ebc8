"""Wrong paths, names and values on the command line are refused before torch is imported, in a line each.

All cases run in one fresh interpreter, in which an import of torch is an error: nothing is timed.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask.recipe import dump, load_recipe

DATA = ["--data", "pics"]
PRETRAIN, TUNE = ["pretrain", *DATA], ["finetune", "untrained:vit_micro", *DATA]
CASES = {
    "pretrain: data": (["pretrain", "--data", "absent"], "there is no file, folder or named set 'absent'"),
    "pretrain: a missing shard": (["pretrain", "--data", "s-{000..002}.tar"], "there is no s-002.tar"),
    "pretrain: no such split": (["pretrain", "--data", "digits:test"], "digits has no split 'test'"),
    "pretrain: no data": (["pretrain"], "no pictures to train on: give --data DIR"),
    "pretrain: recipe": ([*PRETRAIN, "--recipe", "mae-vit-bb"], 'unknown recipe "mae-vit-bb"'),
    "pretrain: recipe file": ([*PRETRAIN, "--recipe", "./mine.toml"], "recipe file mine.toml does not exist"),
    "pretrain: key": ([*PRETRAIN, "--set", "optim.epoch=3"], "unknown key optim.epoch"),
    "pretrain: value": ([*PRETRAIN, "--set", "masking.ratio=2"], "masking.ratio"),
    "pretrain: method": ([*PRETRAIN, "--method", "maee"], 'unknown method "maee"'),
    "pretrain: target": ([*PRETRAIN, "--target", "hogg"], 'unknown target "hogg"'),
    "pretrain: target file": (
        [*PRETRAIN, "--method", "beit", "--set", "method.target.file=absent"],
        "method.target.file: absent cannot be read: No such file or directory",
    ),
    "pretrain: device": ([*PRETRAIN, "--device", "gpu"], "runtime.device: must be auto, cpu, cuda, cuda:N or mps"),
    "pretrain: image size": ([*PRETRAIN, "--image-size", "224x"], "224x"),
    "pretrain: probe": ([*PRETRAIN, "--probe", "absent"], "there is no file, folder or named set 'absent'"),
    "pretrain: exclude": (["pretrain", "--data", "digits", "--exclude", "*.png"], "--exclude is for folders"),
    "pretrain: teacher": (
        [*PRETRAIN, "--method", "moma", "--teacher", "mae:absent,heads=12"],
        "distill.teachers.source, distill.teachers.heads: absent does not exist: the weights of the encoder mae:absent",
    ),
    "pretrain: kind of teacher": (
        [*PRETRAIN, "--method", "moma", "--teacher", "resnet:x"], "'resnet:x' names no encoder",
    ),
    "pretrain: first weights": (
        [*PRETRAIN, "--set", "backbone.weights=mae:absent"],
        "backbone.weights: absent does not exist: the weights of the encoder mae:absent",
    ),
    "pretrain: taken": ([*PRETRAIN, "--out", "taken"], "taken already exists and is not empty"),
    "pretrain: below a file": ([*PRETRAIN, "--out", "file/run"], "file/run cannot be made: Not a directory"),
    "resume: run": (["resume", "absent"], "absent is no run: it does not exist"),
    "resume: finished": (["resume", "run"], "run is finished: probe it"),
    "resume: device": (["resume", "begun", "--device", "gpu"], "there is no device 'gpu'"),
    "export: run": (["export", "pics"], "pics is no run: it holds no recipe.toml"),
    "export: size": (["export", "run", "--image-size", "224x"], "--image-size must be pixels"),
    "export: checkpoint": (["export", "run", "--checkpoint", "epoch-0009"], "run holds no checkpoint 'epoch-0009'"),
    "report: run": (["report", "absent"], "absent is no run"),
    "reconstruct: run": (["reconstruct", "absent"], "absent is no run"),
    "reconstruct: a task's run": (["reconstruct", "tuned"], "tuned is a run of a downstream task"),
    "reconstruct: images": (["reconstruct", "begun", "--images", "absent"], "there is no file, folder or named set"),
    "codebook: data": (["codebook", "--data", "absent", "--out", "w.safetensors"], "there is no file, folder or named"),
    "codebook: taken": (["codebook", *DATA, "--out", "file"], "file exists already; choose another --out"),
    "codebook: recipe": (["codebook", *DATA, "--out", "w", "--recipe", "beitt"], 'unknown recipe "beitt"'),
    "finetune: start": (["finetune", "absent", *DATA], "absent is no run: give a folder"),
    "finetune: file": (["finetune", "mae:absent", *DATA], "absent does not exist: the weights of the encoder"),
    "finetune: no network": (["finetune", *DATA], "no network to start from"),
    "finetune: data": (["finetune", "untrained:vit_micro", "--data", "absent"], "there is no file, folder or named"),
    "finetune: no data": (["finetune", "untrained:vit_micro"], "no pictures to learn from: give --data DIR of class"),
    "finetune: val": ([*TUNE, "--val", "absent"], "there is no file, folder or named set 'absent'"),
    "finetune: recipe": ([*TUNE, "--recipe", "smal"], 'unknown recipe "smal"'),
    "finetune: key": ([*TUNE, "--set", "optim.epoch=3"], "unknown key optim.epoch"),
    "finetune: taken": ([*TUNE, "--out", "taken"], "taken already exists and is not empty"),
    "finetune: device": ([*TUNE, "--device", "gpu"], "runtime.device: must be"),
    "finetune: a run to test": (["finetune", "absent", "--eval-only"], "absent is no run"),
    "segment: data": (["segment", "untrained:vit_micro", "--data", "absent"], "there is no folder of images 'absent'"),
    "segment: masks": (
        ["segment", "untrained:vit_micro", *DATA, "--masks", "absent"], "there is no folder of masks 'absent'",
    ),
    "detect: no test": (["detect", "untrained:vit_micro", *DATA], "no pictures to test on: give --val DIR"),
    "detect: data": (
        ["detect", "untrained:vit_micro", "--val", "absent", "--val-annotations", "a.json"], "absent is no folder",
    ),
    "detect: annotations": (
        ["detect", "untrained:vit_micro", "--val", "pics", "--val-annotations", "a.json"],
        "cannot read the annotations a.json: No such file or directory",
    ),
    "probe: run": (["probe", "absent", *DATA], "absent is no run: give a folder"),
    "probe: file": (["probe", "dino:absent", *DATA], "absent does not exist"),
    "probe: data": (["probe", "untrained:vit_micro", "--data", "absent"], "there is no file, folder or named set"),
    "probe: val": (["probe", "untrained:vit_micro", *DATA, "--val", "absent"], "there is no file, folder or named set"),
    "probe: protocol": (["probe", "untrained:vit_micro", *DATA, "--protocol", "knn"], "there is no probe 'knn'"),
    "probe: layers": (["probe", "untrained:vit_micro", *DATA, "--layers", "a"], "--layers a: give numbers"),
    "probe: device": (["probe", "untrained:vit_micro", *DATA, "--device", "gpu"], "there is no device 'gpu'"),
    "probe: checkpoint": (["probe", "run", *DATA, "--checkpoint", "epoch-0009"], "holds no checkpoint 'epoch-0009'"),
    "probe: below a file": (
        ["probe", "untrained:vit_micro", *DATA, "--out", "file/x"], "file/x: Not a directory; choose another path",
    ),
    "embed: run": (["embed", "pics", *DATA, "--out", "x.npz"], "pictures go to --data"),
    "embed: file": (["embed", "untrained:vit_micro", *DATA, "--out", "x.csv"], "features are written to"),
    "embed: data": (["embed", "untrained:vit_micro", "--data", "absent", "--out", "x.npz"], "there is no file, folder"),
    "tsne: run": (["tsne", "absent", *DATA], "absent is no run"),
    "tsne: file": (["tsne", "untrained:vit_micro", *DATA, "--out", "x.jpg"], "the picture is a .png"),
    "tsne: data": (["tsne", "untrained:vit_micro", "--data", "absent"], "there is no file, folder or named set"),
    "attention: run": (["attention", "tuned"], "tuned is fine-tuned and is read from its export"),
    "attention: images": (["attention", "begun", "--images", "absent"], "there is no file, folder or named set"),
    "data check": (["data", "check", "absent"], "there is no file, folder or named set 'absent'"),
    "data pack": (["data", "pack", "absent", "--out", "x.remask"], "there is no file, folder or named set 'absent'"),
    "data pack: form": (["data", "pack", "pics", "--out", "x.remask", "--format", "png"], "there is no format 'png'"),
    "plan: device": (["plan", "--device", "h2000"], "no data sheet of 'h2000'"),
    "plan: data": (["plan", "--data", "absent"], "there is no file, folder or named set 'absent'"),
    "show: recipe": (["show", "mae-vit-bb"], 'unknown recipe "mae-vit-bb"'),
    "an option": (["pretrain", "--batchsize", "3"], "--batch-size"),
}  # fmt: skip

CODE = """
import contextlib, io, json, sys

class Refusing:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refusing)
from remask.cli.main import main

answers = {}
for case, arguments in json.load(sys.stdin).items():
    sys.argv, said, code = ["remask", *arguments], io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    answers[case] = code, said.getvalue()
json.dump(answers, sys.stdout)
"""
BEYOND = {"a device that torch alone can tell": [*PRETRAIN, "--device", "cuda:99"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, shards, a file, and things that look like runs: begun, finished and fine-tuned."""
    home = tmp_path_factory.mktemp("home")
    for folder in ("pics", "taken", "begun/checkpoints/last", "run/checkpoints/last", "tuned"):
        (home / folder).mkdir(parents=True)
    Image.fromarray(np.full((40, 40, 3), 60, np.uint8)).save(home / "pics" / "0.png")
    for file in ("s-000.tar", "s-001.tar", "file", "taken/thesis.txt"):
        (home / file).touch()
    for run in ("begun", "run", "tuned"):
        (home / run / "recipe.toml").write_text(dump(load_recipe("demo", environment={})))
        state = {"state": "interrupted" if run == "begun" else "finished"}
        (home / run / "status.json").write_text(json.dumps(state))
    for run in ("begun", "run"):
        (home / run / "checkpoints" / "last" / "state.json").write_text("{}")
    for result in ("export/backbone.safetensors", "pictures/reconstruction.png", "report.html"):
        (home / "run" / result).parent.mkdir(exist_ok=True)
        (home / "run" / result).touch()
    (home / "tuned" / "task.json").write_text("{}")
    return home


@pytest.fixture(scope="module")
def answers(home: Path) -> dict[str, tuple[int, str]]:
    """Exit code and line of each case."""
    before = sorted(home.rglob("*"))
    asked = json.dumps({case: arguments for case, (arguments, _) in CASES.items()} | BEYOND)
    done = subprocess.run(
        [sys.executable, "-c", CODE], input=asked, cwd=home, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sorted(home.rglob("*")) == before, "something was written"
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_refused_before_torch_is_imported(case: str, answers: dict[str, tuple[int, str]]) -> None:
    code, line = answers[case]
    assert code == 2, line
    assert line.startswith("remask: "), line
    assert line.count("\n") == 1, line
    assert CASES[case][1] in line


def test_the_test_sees_an_import_of_torch(answers: dict[str, tuple[int, str]]) -> None:
    for case in BEYOND:
        code, line = answers[case]
        assert code == 1
        assert "torch was imported" in line
