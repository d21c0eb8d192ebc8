"""Classes are what they are called: whatever their order, their numbers and the kind of source, in every command."""

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.cli import main as cli
from remask.downstream.detect.task import opened
from remask.downstream.segment.task import pairs
from remask.errors import UserError
from remask.recipe.downstream import BoxesData, MasksData
from remask.training.trainer import Trainer

NAMES = ("ant", "bee", "cow", "dog")
COLOURS = [(220, 30, 30), (30, 200, 40), (40, 60, 220), (220, 210, 30), (200, 40, 210), (30, 210, 210),
           (120, 60, 20), (250, 250, 250), (250, 130, 160), (0, 100, 60), (255, 120, 0), (90, 160, 90)]  # fmt: skip
"""A class is a colour, so that any features tell classes apart and every accuracy below 100 is a matter of names."""
LOOK = commands.ModelOptions(image_size=(16, 16))
SETTINGS = ["runtime.threads=1", "optim.precision=fp32", "runtime.workers=0", "runtime.save_every_minutes=0.00001"]
LEARN: dict[str, Any] = {"data.image_size": 16, "optim.epochs": 10, "optim.batch_size": 8, "optim.lr": 2e-3}


def png(number: int, seed: int) -> bytes:
    noise = np.random.default_rng(1000 * number + seed).normal(0, 10, (16, 16, 3))
    pixels = (np.array(COLOURS[number], np.float32) + noise).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def folders(root: Path, names: dict[str, int], seeds: range) -> str:
    """Class folders: the name of each, and the colour that it stands for."""
    for name, number in names.items():
        (root / name).mkdir(parents=True)
        for seed in seeds:
            (root / name / f"{seed}.png").write_bytes(png(number, seed))
    return str(root)


def table(path: Path, labels: Sequence[Any], numbers: Sequence[int], names: Sequence[str] | None, first: int) -> str:
    """A parquet file of pictures; `numbers` say the colour of each."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [png(number, first + i) for i, number in enumerate(numbers)]
    made = pa.table({"image": pa.array(rows, pa.binary()), "label": pa.array(labels)})
    if names:
        features = {"label": {"_type": "ClassLabel", "names": list(names)}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return str(path)


def listed(root: Path, names: dict[str, int], seed: int = 50) -> str:
    """A list with the number of each picture's class."""
    root.mkdir(parents=True)
    for name, number in names.items():
        (root / f"p{name}.png").write_bytes(png(number, seed))
    (root / "list.txt").write_text("".join(f"p{name}.png {name}\n" for name in names))
    return str(root / "list.txt")


def tarred(path: Path, names: dict[str, int], seeds: range) -> str:
    """A tar whose .cls members hold the numbers that the names are."""
    import tarfile

    with tarfile.open(path, "w") as tar:
        for name, number in names.items():
            for seed in seeds:
                for end, data in (("png", png(number, seed)), ("cls", name.encode())):
                    info = tarfile.TarInfo(f"{name}x{seed}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(path)


def of(*names: str) -> dict[str, int]:
    return {name: NAMES.index(name) for name in names}


NUMBERS = {str(number): number for number in range(12)}
IDS = {"1234567890": 0, "31": 1, "9876543210": 2}


def without_one(root: Path) -> tuple[str, str]:
    return folders(root / "t", of(*NAMES), range(6)), folders(root / "v", of("bee", "cow", "dog"), range(90, 92))


def one_alone(root: Path) -> tuple[str, str]:
    return folders(root / "t", of(*NAMES), range(6)), folders(root / "v", of("cow"), range(90, 93))


def another_order(root: Path) -> tuple[str, str]:
    order, colours = ("dog", "ant", "cow", "bee"), [3, 0, 2, 1, 3, 0, 2, 1]
    return (
        folders(root / "t", of(*NAMES), range(6)),
        table(root / "v.parquet", [order.index(NAMES[n]) for n in colours], colours, order, 90),
    )


def text_labels(root: Path) -> tuple[str, str]:
    return (
        folders(root / "t", of(*NAMES), range(6)),
        table(root / "v.parquet", ["dog", "bee", "dog"], [3, 1, 3], None, 90),
    )


def two_orders_in_one_source(root: Path) -> tuple[str, str]:
    table(root / "t/0.parquet", [0, 1, 2, 3] * 4, [0, 1, 2, 3] * 4, NAMES, 0)
    table(root / "t/1.parquet", [0, 1, 2, 3] * 4, [3, 0, 2, 1] * 4, ("dog", "ant", "cow", "bee"), 20)
    return str(root / "t"), folders(root / "v", of(*NAMES), range(90, 92))


def numbers_of_folders_and_of_a_list(root: Path) -> tuple[str, str]:
    return folders(root / "t", NUMBERS, range(3)), listed(root / "v", NUMBERS)


def numbers_with_zeros(root: Path) -> tuple[str, str]:
    return folders(root / "t", {f"{int(n):03}": c for n, c in NUMBERS.items()}, range(3)), listed(root / "v", NUMBERS)


def numbers_of_a_column(root: Path) -> tuple[str, str]:
    return folders(root / "t", NUMBERS, range(3)), table(root / "v.parquet", [10, 2, 0], [10, 2, 0], None, 90)


def ids_of_a_list_and_of_a_tar(root: Path) -> tuple[str, str]:
    return tarred(root / "t.tar", IDS, range(6)), listed(root / "v", {n: IDS[n] for n in ("31", "1234567890")})


def ids_of_a_column_and_of_folders(root: Path) -> tuple[str, str]:
    values = [int(name) for name in IDS] * 6
    return (
        table(root / "t.parquet", values, [IDS[str(value)] for value in values], None, 0),
        folders(root / "v", {"009876543210": 2, "1234567890": 0}, range(90, 92)),
    )


PAIRS = [
    without_one,
    one_alone,
    another_order,
    text_labels,
    two_orders_in_one_source,
    numbers_of_folders_and_of_a_list,
    numbers_with_zeros,
    numbers_of_a_column,
    ids_of_a_list_and_of_a_tar,
    ids_of_a_column_and_of_folders,
]


@pytest.mark.parametrize("sources", PAIRS, ids=lambda sources: sources.__name__)
def test_probe(sources: Any, tmp_path: Path) -> None:
    data, val = sources(tmp_path)
    found = commands.probe(
        "untrained:vit_micro", data, val, commands.ProbeOptions(k=1), LOOK, out=tmp_path / "o", quiet=True
    )
    for part in ("knn", "linear"):
        assert found[part]["pixels"] == 100, f"{part}: colours tell classes apart without a network"


@pytest.mark.parametrize("protocol", ["mae", "attentive"])
def test_the_other_probes(protocol: Any, tmp_path: Path) -> None:
    """The same test pictures say the same, with their classes in any order or in that of the training pictures."""
    data, numbers = folders(tmp_path / "t", of(*NAMES), range(6)), [1, 1, 2, 2, 3, 3]
    asked = commands.ProbeOptions(protocol=protocol, epochs=8)
    found = []
    for order in (NAMES, ("dog", "cow", "bee")):
        val = table(tmp_path / f"{order[0]}.parquet", [order.index(NAMES[n]) for n in numbers], numbers, order, 90)
        out = tmp_path / order[0]
        found.append(commands.probe("untrained:vit_micro", data, val, asked, LOOK, out=out, quiet=True))
    assert found[0]["top1"] == found[1]["top1"]
    assert found[0]["untrained"] == found[1]["untrained"]
    assert found[1]["protocol"]["classes"] == 4


def learned(out: Path, data: str, val: str, **more: Any) -> Path:
    given = LEARN | {"data.source": data, "data.val": val} | more
    return commands.finetune("untrained:vit_micro", None, given, settings=SETTINGS, out=out, quiet=True)


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "eval/finetune.json").read_text())
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned four classes, tested on three of them."""
    root = tmp_path_factory.mktemp("names")
    return learned(root / "run", *without_one(root))


def test_fine_tuning_is_tested_on_fewer_classes(run: Path) -> None:
    found = result(run)
    assert found["top1"] >= 80, "by their numbers it is 0"
    assert [row["class"] for row in found["per_class"]] == ["bee", "cow", "dog"]
    assert found["protocol"]["untested"] == ["ant"]
    assert found["classes"] == 4


def test_a_finished_run_is_tested_by_name(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    order, colours = ("yak", "dog", "ant"), [3, 0, 3]
    other = table(tmp_path / "v.parquet", [1, 2, 1], colours, order, 70)  # nothing is a yak
    for val in (other, folders(tmp_path / "one", of("dog"), range(90, 93))):
        assert commands.evaluate(tmp_path / "run", {"data.val": val}, quiet=True)["top1"] >= 60
    before = (tmp_path / "run/eval/finetune.json").read_text()
    for names, words in (
        ({"ant": 0, "zebra": 1}, "class 'zebra' of .* is not among those of the run"),
        ({"Ant": 0, "bee": 1}, "class 'Ant' of .* which has 'ant': name the class alike in both"),
        ({"0": 0, "1": 1}, "classes '0', '1' of .* numbers cannot be matched with names"),
    ):
        val = folders(tmp_path / "".join(names), names, range(1))
        with pytest.raises(UserError, match=words) as caught:
            commands.evaluate(tmp_path / "run", {"data.val": val}, quiet=True)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "run/eval/finetune.json").read_text() == before


def test_fine_tuning_on_numbers(tmp_path: Path) -> None:
    run = learned(tmp_path / "run", *numbers_of_folders_and_of_a_list(tmp_path), **{"optim.epochs": 25})
    assert result(run)["top1"] >= 60, "by their order it is a sixth"
    exported = commands.export(run) if hasattr(commands, "export") else None
    names = json.loads((run / "task.json").read_text())["classes"]
    assert sorted(names, key=int) == [str(number) for number in range(12)]
    if exported:
        assert json.loads((exported / "model.json").read_text())["classes"] == names


def test_an_unknown_class_ends_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folders(tmp_path / "t", of("ant", "bee"), range(6))
    val = folders(tmp_path / "v", of("ant", "cow"), range(2))
    for command in ("probe", "finetune"):
        out = ["--data", data, "--val", val, "--image-size", "16", "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["remask", command, "untrained:vit_micro", *out])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert "class 'cow' of" in line
        assert line.count("\n") == 1
        assert not (tmp_path / "out").exists()


def cut(run: Path, data: str, val: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed in its second epoch."""
    after = Trainer._after_step

    def killed(self: Trainer, *arguments: object) -> None:
        after(self, *arguments)  # type: ignore[arg-type]
        if self.global_step == 4:
            raise MemoryError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after_step", killed)
        with pytest.raises(MemoryError):
            learned(run, data, val)


def test_a_resumed_run_keeps_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, val = without_one(tmp_path)
    cut(tmp_path / "run", data, val, monkeypatch)
    (tmp_path / "t/ant").rename(tmp_path / "t/emu")
    with pytest.raises(UserError, match=r"class 'emu' of .* is not among those of the run"):
        commands.resume(tmp_path / "run", quiet=True)
    (tmp_path / "t/emu").rename(tmp_path / "ant")
    with pytest.raises(UserError, match="has no class 'ant' any more, which the run has begun to learn"):
        commands.resume(tmp_path / "run", quiet=True)
    (tmp_path / "ant").rename(tmp_path / "t/ant")
    commands.resume(tmp_path / "run", quiet=True)
    assert result(tmp_path / "run")["top1"] >= 60


def test_a_run_of_an_older_version_goes_on_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list of numbers 1..3 made four classes, of which 0 had no picture."""
    names = {"1": 0, "2": 1, "3": 2}
    data, val = folders(tmp_path / "t", names, range(6)), listed(tmp_path / "v", names)
    old = ["0", "1", "2", "3"]
    monkeypatch.setattr("remask.downstream.finetune.task.open_source", older(monkeypatch, old))
    cut(tmp_path / "run", data, val, monkeypatch)
    monkeypatch.undo()
    (tmp_path / "run/task.json").write_text(json.dumps({"classes": old}))
    commands.resume(tmp_path / "run", quiet=True)
    assert result(tmp_path / "run")["top1"] >= 60
    assert result(tmp_path / "run")["classes"] == 4


def older(monkeypatch: pytest.MonkeyPatch, classes: list[str]) -> Any:
    """`open_source` with labels as numbers of more classes than there are."""
    from remask.images.sources.opening import open_source
    from remask.images.sources.subset import by_classes

    return lambda *arguments, **more: by_classes(open_source(*arguments, **more), classes, "the old run")


def masks(root: Path, said: Any, order: Sequence[int], count: int = 6) -> Path:
    """Pictures of three stripes; `order` is the number in the mask of each."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        stripe = np.roll(np.repeat(np.arange(3), 11)[:32], 5 * i)
        noise = np.random.default_rng(i).integers(0, 9, (32, 32, 3))
        Image.fromarray((np.array(COLOURS)[stripe][None] - noise).clip(0).astype(np.uint8)).save(
            root / f"images/{i}.png"
        )
        numbers = np.array(order, np.uint8)[stripe]
        Image.fromarray(np.repeat(numbers[None], 32, 0)).save(root / f"masks/{i}.png")
    if said is not None:
        (root / "masks/classes.json").write_text(json.dumps(said))
    return root


def of_masks(train: Path, val: Path) -> dict[str, str]:
    paths = {"source": train / "images", "masks": train / "masks", "val": val / "images", "val_masks": val / "masks"}
    return {key: str(path) for key, path in paths.items()}


def test_masks_are_matched_by_name(tmp_path: Path) -> None:
    train = masks(tmp_path / "t", ["red", "green", "blue"], [0, 1, 2])
    other = masks(tmp_path / "v", {"classes": ["blue", "none", "red", "green"], "ignore_index": 1}, [2, 3, 0])
    source, val = pairs(MasksData(**of_masks(train, other)), 0, None)  # type: ignore[arg-type]
    assert val.classes == source.classes == ["red", "green", "blue"]
    assert all((val.read(i)[1] == source.read(i)[1]).all() for i in range(6))
    fewer = masks(tmp_path / "f", ["green", "red"], [1, 0, 255])
    _, val = pairs(MasksData(**of_masks(train, fewer)), 0, None)  # type: ignore[arg-type]
    truth = source.read(0)[1]
    assert (val.read(0)[1] == np.where(truth == 2, 255, truth)).all()
    strange = masks(tmp_path / "s", ["red", "green", "pink"], [0, 1, 2])
    with pytest.raises(UserError, match=r"class 'pink' of .* is not among those of .* \('red', 'green', 'blue'\)"):
        pairs(MasksData(**of_masks(train, strange)), 0, None)  # type: ignore[arg-type]


def test_segmentation_by_name(tmp_path: Path) -> None:
    train = masks(tmp_path / "t", ["red", "green", "blue"], [0, 1, 2])
    other = masks(tmp_path / "v", ["blue", "red", "green"], [1, 2, 0])
    given = {f"data.{key}": value for key, value in of_masks(train, other).items()} | {
        "data.image_size": 32, "model.head": "linear", "optim.epochs": 12, "optim.batch_size": 3, "optim.lr": 3e-3,
    }  # fmt: skip
    run = commands.segment("untrained:vit_micro", None, given, settings=SETTINGS, out=tmp_path / "run", quiet=True)
    found = json.loads((run / "eval/segment.json").read_text())
    assert found["mIoU"] > 60, "by numbers it would be near 0"
    again = commands.evaluate(
        run, {"data.val": str(train / "images"), "data.val_masks": str(train / "masks")}, quiet=True
    )
    assert again["mIoU"] == pytest.approx(found["mIoU"])
    (other / "masks/classes.json").write_text(json.dumps(["blue", "crimson", "green"]))
    with pytest.raises(UserError, match=r"class 'crimson' of .* is not among those of the run"):
        commands.evaluate(run, quiet=True)


def test_test_masks_without_a_declaration_are_read_by_the_training_palette(tmp_path: Path) -> None:
    palette = [list(colour) for colour in COLOURS[:3]]
    train = masks(tmp_path / "t", {"classes": ["red", "green", "blue"], "palette": palette}, [0, 1, 2])
    plain = masks(tmp_path / "v", None, [0, 1, 2])
    for i in range(6):
        numbers = np.array(Image.open(plain / f"masks/{i}.png"))
        shuffled = Image.fromarray(np.array([2, 0, 1], np.uint8)[numbers]).convert("P")
        shuffled.putpalette([part for n in (1, 2, 0) for part in palette[n]])
        shuffled.save(plain / f"masks/{i}.png")
    data = MasksData(**of_masks(train, plain))  # type: ignore[arg-type]
    source, val = pairs(data, 0, None)
    facts = json.loads(json.dumps({"classes": source.classes, "none": None, "masks": source.said._asdict()}))
    again, _ = pairs(data, 0, facts)
    for i in range(6):
        assert (val.read(i)[1] == source.read(i)[1]).all()
        assert (again.read(i)[1] == source.read(i)[1]).all()
    _, older = pairs(data, 0, None, {"classes": source.classes, "none": None})  # a run that began before goes on so
    assert (older.read(0)[1] == np.array([2, 0, 1])[source.read(0)[1]]).all()


def boxes(root: Path, categories: dict[int, str], of_pictures: Sequence[int]) -> dict[str, str]:
    """A picture for each category id, with one box of it."""
    (root / "images").mkdir(parents=True)
    for i in range(len(of_pictures)):
        Image.new("RGB", (32, 32)).save(root / f"images/{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(len(of_pictures))],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": number, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
            for i, number in enumerate(of_pictures)
        ],
    }
    (root / "boxes.json").write_text(json.dumps(content))
    return {"source": str(root / "images"), "annotations": str(root / "boxes.json")}


def data_of(train: dict[str, str], val: dict[str, str]) -> BoxesData:
    return BoxesData(**train, val=val["source"], val_annotations=val["annotations"])  # type: ignore[arg-type]


def test_categories_are_matched_by_name(tmp_path: Path) -> None:
    train = boxes(tmp_path / "t", {1: "cat", 2: "dog", 5: "emu"}, [1, 2, 5])
    other = boxes(tmp_path / "v", {0: "dog", 7: "cat", 9: "yak"}, [0, 7, 7])
    source, val = opened(data_of(train, other), None, None)
    assert val.classes == source.classes == ["cat", "dog", "emu"]
    assert [int(val.target(i)["labels"][0]) for i in range(3)] == [2, 1, 1]
    assert val.categories[:2] == [7, 0]
    assert val.categories[2] not in (0, 7, 9), "the file has no emu, and no id of it is taken for one"
    truth = val.truth()
    assert {c["id"]: c["name"] for c in truth["categories"]}.items() >= {0: "dog", 7: "cat"}.items()
    tested, _ = opened(data_of(train, other), None, {"classes": ["emu", "dog", "cat"], "masks": False})
    assert [int(tested.target(i)["labels"][0]) for i in range(3)] == [2, 3, 3]
    going_on, _ = opened(data_of(train, other), None, None, {"classes": ["emu", "dog", "cat"], "masks": False})
    assert [int(going_on.target(i)["labels"][0]) for i in range(3)] == [3, 2, 1]
    with pytest.raises(UserError, match="has no class 'gnu' any more"):
        opened(data_of(train, other), None, None, {"classes": ["cat", "dog", "emu", "gnu"], "masks": False})
    strange = boxes(tmp_path / "s", {1: "cat", 2: "pug"}, [1, 2])
    with pytest.raises(UserError, match=r"class 'pug' of .* is not among those of .* \('cat', 'dog', 'emu'\)"):
        opened(data_of(train, strange), None, None)


def test_average_precision_of_matched_categories(tmp_path: Path) -> None:
    """Perfect detections by the training's labels are perfect, whatever the ids of the test file."""
    pytest.importorskip("faster_coco_eval")
    from remask.downstream.detect.average_precision import average_precision, coco_results

    train = boxes(tmp_path / "t", {1: "cat", 2: "dog", 5: "emu"}, [1, 2, 5])
    _, val = opened(data_of(train, boxes(tmp_path / "v", {4: "dog", 7: "cat"}, [4, 7, 7])), None, None)
    results = []
    for i in range(len(val)):
        target = val.target(i)
        found = {"boxes": target["boxes"], "labels": target["labels"], "scores": target["boxes"][:, 0] * 0 + 0.9}
        results += coco_results(found, target["image_id"], val.categories)
    assert average_precision(val.truth(), results, ("bbox",))["bbox"]["AP"] == pytest.approx(1)
