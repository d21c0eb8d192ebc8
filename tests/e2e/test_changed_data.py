"""A run that is resumed on other data names what changed, before anything is written; accepted, it goes on smoothly."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from remask import commands
from remask.build import codebook
from remask.errors import UserError
from remask.files.manifest import write_manifest
from remask.training.run_folder import RunFolder
from tests.e2e.test_dense import drawn

SMALL = [
    "data.image_size=16", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "method.decoder_width=32",
    "method.decoder_heads=2", "method.decoder_depth=1", "optim.batch_size=8", "optim.epochs=4", "optim.precision=fp32",
    "optim.warmup_epochs=2", "runtime.threads=1", "runtime.log_every=1", "runtime.tensorboard=false",
    "runtime.device=cpu",
]  # fmt: skip
TASK = ["runtime.threads=1", "optim.precision=fp32", "runtime.tensorboard=false", "runtime.log_every=1"]


def picture(number: int, seed: int, side: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).normal(60 * number, 12, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pictures(root: Path, classes: tuple[str, ...] = ("ant", "bee", "cow"), each: int = 8) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for seed in range(each):
            picture(number, seed).save(root / name / f"{seed}.png")
    return root


def stopped(run: Path) -> Path:
    """The run as if it had been stopped where --max-steps ended it."""
    text = (run / "recipe.toml").read_text()
    assert "max_steps" in text
    (run / "recipe.toml").write_text(re.sub(r"max_steps = \d+\n", "", text))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    return run


def begun(data: Path, out: Path, *settings: str, verify: bool = False, steps: int = 4, recipe: str = "") -> Path:
    """A pre-training of three steps an epoch, stopped."""
    chosen = recipe or "mae-vit-micro-cifar"
    given = [*SMALL, f"data.source={data}", f"optim.max_steps={steps}", *settings]
    return stopped(commands.pretrain(chosen, settings=given, out=out, quiet=True, verify_data=verify))


def everything(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def refused(run: Path, said: str, **flags: bool) -> None:
    """One line that names what changed, and no file of the run is another."""
    before = everything(run)
    with pytest.raises(UserError) as error:
        commands.resume(run, quiet=True, **flags)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert everything(run) == before


def accepted(run: Path, *said: str) -> list[dict[str, float]]:
    """It goes on to the end, keeps what changed, and its page says so; returns the metrics."""
    at = json.loads((run / "checkpoints/last/state.json").read_text())
    commands.resume(run, quiet=True, accept_changed_data=True)
    history = json.loads((run / "data.json").read_text())["history"]
    assert [(one["step"], one["epoch"]) for one in history] == [(at["step"], at["epoch"])]
    page = (run / "report.html").read_text()
    for words in said:
        assert any(words in change for change in history[0]["changes"]), history
        assert words in page
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    return RunFolder(run).metrics()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twenty-four pictures, and a run on them that was stopped after four steps."""
    root = tmp_path_factory.mktemp("changed")
    data = pictures(root / "data")
    return data, begun(data, root / "run", verify=True)


@pytest.fixture
def copied(run: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The pictures and the run, to be changed. The folder is another one: moving it is no change."""
    data, made = shutil.copytree(run[0], tmp_path / "data"), shutil.copytree(run[1], tmp_path / "run")
    text = (made / "recipe.toml").read_text()
    (made / "recipe.toml").write_text(text.replace(str(run[0]), str(data)))
    return data, made


def test_a_run_keeps_what_it_is_trained_on(run: tuple[Path, Path]) -> None:
    about = json.loads((run[1] / "data.json").read_text())
    assert about["history"] == []
    assert (about["sources"]["data"]["count"], about["sources"]["data"]["source"]) == (24, str(run[0]))
    state = json.loads((run[1] / "checkpoints/last/state.json").read_text())
    assert state["data"] == {"data": about["sources"]["data"]["digest"]}


def test_on_the_same_data_in_another_place_it_goes_on(copied: tuple[Path, Path]) -> None:
    commands.resume(copied[1], quiet=True, verify_data=True)
    assert [line["step"] for line in RunFolder(copied[1]).metrics()] == list(range(1, 13))
    assert json.loads((copied[1] / "data.json").read_text())["history"] == []
    assert "was another" not in (copied[1] / "report.html").read_text()


@pytest.mark.parametrize("each", [3, 8, 30])
def test_more_pictures(copied: tuple[Path, Path], each: int) -> None:
    data, run = copied
    for seed in range(each):
        picture(1, 100 + seed).save(data / "bee" / f"a{seed:03d}.png")
    refused(run, f"data: 24 pictures became {24 + each}, first new bee/a000.png; put it back, or go on with remask")
    steps, at = (24 + each) // 8, 4 / 3
    lines = accepted(run, f"24 pictures became {24 + each}")
    epochs, rates = [line["epoch"] for line in lines], [line["lr"] for line in lines]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert epochs == sorted(set(epochs))
    assert at < epochs[4] <= at + 2 / steps + 1e-4, "it goes on from where it was, by a step of the new epochs"
    assert epochs[-1] == 4
    peak = max(rates)
    assert abs(rates[4] - rates[3]) <= peak / 2 * (1 / 3 + 1 / steps), "the warm-up of two epochs takes no leap"


def test_fewer_pictures(copied: tuple[Path, Path]) -> None:
    data, run = copied
    shutil.rmtree(data / "ant")
    refused(run, "data: 24 pictures became 16, first gone ant/0.png")
    epochs = [line["epoch"] for line in accepted(run, "first gone ant/0.png")]
    assert epochs == sorted(set(epochs))


def test_pictures_of_another_size(copied: tuple[Path, Path]) -> None:
    data, run = copied
    for seed in (2, 5):
        picture(2, seed, 24).save(data / "cow" / f"{seed}.png")
    refused(run, "data: 2 sizes differ, first cow/2.png")


def test_an_edit_of_the_same_size_takes_verifying(copied: tuple[Path, Path]) -> None:
    data, run = copied
    file = data / "cow" / "3.png"
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    refused(run, "data: 1 content differs, first cow/3.png", verify_data=True)
    commands.resume(run, quiet=True)


def of_before(run: Path) -> Path:
    """The run as an earlier version left it."""
    for name in ("data.json", "data.npz"):
        (run / name).unlink()
    (run / "checkpoints/last/manifest.json").unlink()
    at = run / "checkpoints/last/state.json"
    state = json.loads(at.read_text())
    at.write_text(json.dumps({key: state[key] for key in ("step", "epoch", "ledger", "window")}))
    return run


def test_a_run_of_before_goes_on_and_is_known_then(
    copied: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = of_before(copied[1])
    commands.resume(run)
    assert "no fingerprint of its data to compare with" in capsys.readouterr().err
    assert json.loads((run / "data.json").read_text())["sources"]["data"]["count"] == 24


def test_a_run_of_before_tells_by_the_steps_of_its_epochs(copied: tuple[Path, Path]) -> None:
    data, run = copied[0], of_before(copied[1])
    for seed in range(24):
        picture(1, 100 + seed).save(data / "bee" / f"a{seed:03d}.png")
    refused(run, "data: an epoch had 3 steps and has 6 now")
    epochs = [line["epoch"] for line in accepted(run, "an epoch had 3 steps and has 6 now")]
    assert epochs == sorted(set(epochs))


def test_probe_on_the_way(tmp_path: Path) -> None:
    data, probe = pictures(tmp_path / "data"), pictures(tmp_path / "probe", each=6)
    run = begun(data, tmp_path / "run", f"probe.source={probe}", "probe.k=3")
    (probe / "cow").rename(probe / "dog")
    refused(run, "probe: class cow is gone, class dog is new, 6 gone, first cow/0.png, 6 new, first dog/0.png")
    accepted(run, "probe: class cow is gone")


def test_a_list_in_another_order(tmp_path: Path) -> None:
    pictures(tmp_path / "data")
    names = [f"data/{name}/{seed}.png" for name in ("ant", "bee", "cow") for seed in range(8)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    run = begun(tmp_path / "list.txt", tmp_path / "run")
    names[3], names[9] = names[9], names[3]
    (tmp_path / "list.txt").write_text("\n".join(names))
    refused(run, "data: the order differs, first data/bee/1.png where data/ant/3.png was")


def test_a_codebook(tmp_path: Path) -> None:
    """That of the run itself, and one that was given: other words of the same number and size."""
    data = pictures(tmp_path / "data")
    kind = "beit-vit-b"
    words = ["backbone.patch_size=4", "method.target.vocabulary=16", "method.target.over=pixels"]
    small = [setting for setting in SMALL if not setting.startswith("method.decoder")]
    given = [*small, *words, f"data.source={data}", "optim.max_steps=2", "masking.pattern=random"]
    run = stopped(commands.pretrain(kind, settings=given, out=tmp_path / "own", quiet=True))
    file = run / codebook.FILE
    assert "codebook" in json.loads((run / "checkpoints/last/state.json").read_text())["data"]
    stored = load_file(file)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    size = file.stat().st_size
    save_file({key: value.flip(0).contiguous() for key, value in stored.items()}, file, about)
    assert file.stat().st_size == size
    refused(run, "codebook: the content is another")


def test_a_teacher(tmp_path: Path) -> None:
    """Another network's weights of the same size, under the same name."""
    data = pictures(tmp_path / "data")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / f"{seed}.safetensors")
    shutil.copy(tmp_path / "0.safetensors", tmp_path / "w.safetensors")
    target = ["method.target.kind=features", "method.target.teacher=timm:resnet10t"]
    weights = f"method.target.weights={tmp_path / 'w.safetensors'}"
    run = begun(data, tmp_path / "run", *target, weights, steps=1)
    shutil.copy(tmp_path / "1.safetensors", tmp_path / "w.safetensors")
    refused(run, "teacher: the content is another")


def finetuned(data: Path, out: Path, **changed: object) -> Path:
    keys = {"data.source": str(data), "data.image_size": 16, "optim.epochs": 3, "optim.batch_size": 8,
            "optim.max_steps": 4}  # fmt: skip
    start = str(changed.pop("start", "untrained:vit_micro"))
    made = commands.finetune(start, None, keys | changed, settings=TASK, out=out, quiet=True)
    return stopped(made)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tuned")
    data = pictures(root / "data")
    pictures(root / "val", each=3)
    return root, finetuned(data, root / "run", **{"data.val": str(root / "val")})


@pytest.fixture
def task(tuned: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    for name in ("data", "val", "run"):
        shutil.copytree(tuned[0] / name, tmp_path / name)
    text = (tmp_path / "run/recipe.toml").read_text()
    (tmp_path / "run/recipe.toml").write_text(text.replace(str(tuned[0]), str(tmp_path)))
    return tmp_path / "data", tmp_path / "val", tmp_path / "run"


def test_finetune_with_a_renamed_class(task: tuple[Path, Path, Path]) -> None:
    """A head keeps its classes: accepting would give their numbers to others."""
    data, val, run = task
    for folder in (data, val):
        (folder / "ant").rename(folder / "zebra")
    for flag in (False, True):
        refused(run, "ant", accept_changed_data=flag)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data, val: (data / "bee/3.png").unlink(), "data: 24 pictures became 23, first gone bee/3.png"),
        (lambda data, val: picture(1, 3, 30).save(val / "bee/2.png"), "val: 1 size differs, first bee/2.png"),
        (
            lambda data, val: (data / "bee/3.png").rename(data / "cow/9.png"),
            "data: 1 gone, first bee/3.png, 1 new, first cow/9.png",
        ),
    ],
    ids=["fewer", "test pictures", "another class"],
)
def test_finetune(task: tuple[Path, Path, Path], change: Callable[[Path, Path], object], said: str) -> None:
    data, val, run = task
    change(data, val)
    refused(run, said)
    accepted(run, said)


def test_labels_in_a_list(tmp_path: Path) -> None:
    pictures(tmp_path / "data")
    lines = [f"data/{name}/{s}.png {number}" for number, name in enumerate(("ant", "bee", "cow")) for s in range(8)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    run = finetuned(tmp_path / "list.txt", tmp_path / "run")
    lines[5], lines[20] = lines[5][:-1] + "2", lines[20][:-1] + "0"
    (tmp_path / "list.txt").write_text("\n".join(lines))
    refused(run, "data: 2 labels differ, first data/ant/5.png")


def test_eval_only_says_that_test_pictures_changed(
    task: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, val, run = task
    picture(1, 77).save(val / "bee/new.png")
    result = commands.evaluate(run)
    said = "val: 9 pictures became 10, first new bee/new.png: tested as it is now"
    assert said in capsys.readouterr().err
    assert result["protocol"]["changed"] == [said]
    assert result["images"] == 10
    (val / "bee/new.png").unlink()
    assert "changed" not in commands.evaluate(run, quiet=True)["protocol"]
    other = pictures(val.parent / "other", each=2)
    assert "changed" not in commands.evaluate(run, {"data.val": str(other)}, quiet=True)["protocol"], "it was asked for"


def test_masks(tmp_path: Path) -> None:
    train, val = drawn(tmp_path / "train", 12), drawn(tmp_path / "val", 4)
    given = {"data.source": train / "images", "data.masks": train / "masks", "data.val": val / "images",
             "data.val_masks": val / "masks"}  # fmt: skip
    keys = {"model.head": "linear", "data.image_size": 32, "optim.batch_size": 4, "optim.epochs": 2,
            "optim.max_steps": 2, **{key: str(path) for key, path in given.items()}}  # fmt: skip
    run = stopped(commands.segment("untrained:vit_micro", None, keys, settings=TASK, out=tmp_path / "run", quiet=True))
    assert set(json.loads((run / "data.json").read_text())["sources"]) == {"data", "masks", "val", "val masks"}
    (train / "masks/3.png").rename(tmp_path / "3.png")
    refused(run, "3.png")
    random = np.random.default_rng(0).integers(0, 2, (40, 48), dtype=np.uint8)
    Image.fromarray(random).save(train / "masks/3.png")
    refused(run, "masks: 1 size differs, first 3.png")
    (tmp_path / "3.png").rename(train / "masks/3.png")
    Image.fromarray(random).save(val / "masks/1.png")
    refused(run, "val masks: 1 size differs, first 1.png")
    accepted(run, "val masks: 1 size differs, first 1.png")


def test_boxes(tmp_path: Path) -> None:
    train, val = drawn(tmp_path / "train", 6), drawn(tmp_path / "val", 3)
    paths = {"data.source": train / "images", "data.annotations": train / "boxes.json", "data.val": val / "images",
             "data.val_annotations": val / "boxes.json"}  # fmt: skip
    keys = {"data.image_size": 32, "optim.batch_size": 2, "optim.epochs": 2, "optim.max_steps": 2, "model.width": 16,
            **{key: str(path) for key, path in paths.items()}}  # fmt: skip
    run = stopped(commands.detect("untrained:vit_micro", None, keys, settings=TASK, out=tmp_path / "run", quiet=True))
    text = (train / "boxes.json").read_text()
    content = json.loads(text)
    content["annotations"][2]["bbox"][2] += 1
    (train / "boxes.json").write_text(json.dumps(content))
    refused(run, "annotations: the content is another")
    (train / "boxes.json").write_text(text)
    (val / "boxes.json").write_text((val / "boxes.json").read_text() + "\n")
    refused(run, "val annotations: the content is another")


def test_first_weights_are_said_and_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fine-tuning holds all that it started from: an export that was written anew stops nothing."""
    data = pictures(tmp_path / "data")
    started = begun(data, tmp_path / "started", steps=1)
    run = finetuned(data, tmp_path / "run", start=f"run:{started}")
    weights = started / "export/backbone.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    write_manifest(weights.parent)
    commands.resume(run)
    assert "first weights: the content is another; the run goes on" in capsys.readouterr().err
