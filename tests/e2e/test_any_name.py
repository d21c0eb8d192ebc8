"""Files, classes and runs of any name: they pass through every command, and come out as they went in."""

import csv
import json
import os
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.errors import UserError
from remask.files.escaping import literal, printable
from remask.images.sources.left_out import notes
from remask.images.sources.opening import open_source
from remask.recipe import load_recipe

NAMES = [
    "$x^2$", "$\\frac{$", "_hidden", "a\\b^{c}", "quote'\"`", "[red]", "[bold]", "line\nbreak", "עברית\u202ex",
    "🐜👩\u200d🔬",
    "<b>&amp;<b>", "pipe|cell", "é" * 127, os.fsdecode(b"caf\xe9"), "caf\\xe9", "a,b;c", "%s {0}", ":smile:",
    " blank ", "-dash", "\x1b[31mred",
]  # fmt: skip
"""Markup of matplotlib, rich, HTML, Markdown, CSV and shells; bytes that are no UTF-8, and what they are escaped to."""
SETTINGS = ["runtime.threads=1", "optim.precision=fp32", "runtime.workers=0", "optim.max_steps=2"]
SMALL: dict[str, Any] = {
    "data.image_size": 16,
    "optim.epochs": 1,
    "optim.batch_size": 8,
    "model.source": "untrained:vit_micro",
}
RUN = "a$b_ [red] 'x' \n🐜"


def picture(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each name, and in it three pictures, of which one is called like the class as far as it may."""
    root = tmp_path_factory.mktemp("names") / RUN
    for number, name in enumerate(NAMES):
        (root / "classes" / name).mkdir(parents=True)
        for i, file in enumerate((os.fsdecode(os.fsencode(name)[:250]), "x" * 251, "b")):
            picture(3 * number + i).save(root / "classes" / name / f"{file}.png")
    return root


def text_of(path: Path) -> str:
    return path.read_bytes().decode()  # strictly


def test_classes_keep_their_names(root: Path) -> None:
    source = open_source(str(root / "classes"))
    assert sorted(map(literal, source.classes or [])) == sorted(NAMES)
    where = [literal(source.where(i)) for i in range(len(source))]
    assert all(Path(path).is_file() for path in where)
    assert len(set(where)) == 3 * len(NAMES)


@pytest.fixture(scope="module")
def tuned(root: Path) -> Path:
    data = str(root / "classes")
    given = SMALL | {"data.source": data, "data.val": data}
    return commands.finetune(None, None, given, settings=SETTINGS, out=root / "runs" / RUN, quiet=True)


def test_a_classifier_of_any_names(
    root: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(text_of(tuned / "eval" / "finetune.json"))
    assert {literal(row["class"]) for row in found["per_class"]} == set(NAMES)
    page = text_of(commands.report(tuned))
    assert "<b>&amp;<b>" not in page
    assert "&lt;b&gt;&amp;amp;&lt;b&gt;" in page
    assert all(printable(name).split("'")[0].split("<")[0] in page for name in NAMES)
    exported = commands.export(tuned)
    assert {literal(name) for name in json.loads(text_of(exported / "model.json"))["classes"]} == set(NAMES)
    monkeypatch.setattr("sys.argv", ["load_example.py"])
    runpy.run_path(str(exported / "load_example.py"))
    assert capfd.readouterr().out.count(" %  ") == 5
    assert commands.evaluate(tuned, quiet=True)["top1"] == found["top1"]


def test_looking_at_pictures_of_any_name(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, model = str(root / "classes"), "untrained:vit_micro"
    look = commands.ModelOptions(image_size=(16, 16))
    asked = commands.TsneOptions(names=["$net_{1}$ [red] \n"], perplexity=5, k=2, classes=30)
    out = commands.tsne([model], data, root / "look" / "map $.png", asked, look, quiet=True)
    rows = list(csv.DictReader(text_of(out.with_suffix(".csv")).splitlines()))
    assert {literal(row["class"]) for row in rows} == set(NAMES)
    assert all(Path(literal(row["path"])).is_file() for row in rows)
    json.loads(text_of(out.with_suffix(".json")))
    stored = np.load(commands.embed(model, data, root / "look" / "[red].npz", look, quiet=True))
    assert {literal(name) for name in stored["class"]} == set(NAMES)
    json.loads(str(stored["remask"]))
    commands.attention(model, data, look, out=root / "look" / "_attention.png", quiet=True)
    packed = root / "look" / "$packed|.remask"
    commands.data_pack(data, packed, commands.parse_form("raw", "0", 90, 3), workers=0, quiet=True)
    again, first = open_source(str(packed)), open_source(data)
    assert again.classes == first.classes
    assert [again.where(i).endswith(first.where(i)) for i in range(len(first))] == [True] * len(first)
    capfd.readouterr()
    commands.data_check(data, workers=0, as_json=True, size="16", quiet=True)
    assert {literal(name) for name in json.loads(capfd.readouterr().out)["classes"]} == set(NAMES)
    commands.data_check(data, workers=0, size="16", quiet=True)


def test_a_pre_training_of_any_name(root: Path) -> None:
    run, data = root / "runs" / f"{RUN} pre", str(root / "classes")
    changed = {
        "data.source": data, "data.image_size": 16, "backbone.name": "vit_micro", "probe.source": data,
        "optim.batch_size": 16, "optim.epochs": 2, "optim.max_steps": 3, "runtime.threads": 1, "runtime.workers": 0,
    }  # fmt: skip
    commands.pretrain(load_recipe("demo", changed, environment={}), out=run, quiet=True)
    kept = load_recipe(run / "recipe.toml", environment={}, strict=False)
    assert kept.data.source == data
    asked = commands.ProbeOptions(k=2)
    commands.probe(str(run), data, data, asked, quiet=True)
    page = text_of(commands.report(run))
    assert printable(RUN).split("'")[0] in page
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [3]


def test_features_of_any_names_in_parquet(root: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    look, file = commands.Look(image_size=(16, 16)), root / "look $" / "[features] \n.parquet"
    commands.embed("untrained:vit_micro", str(root / "classes"), file, look, quiet=True)
    rows = parquet.ParquetFile(file).read().to_pydict()
    assert {literal(name) for name in rows["class"]} == set(NAMES)
    assert all(Path(literal(path)).is_file() for path in rows["path"])


def test_tables_and_arrays_of_any_names(root: Path) -> None:
    """Classes as names of numbers and as texts in parquet, and as texts in numpy's archives, of files of any name."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    images = [(root / "classes" / name / "b.png").read_bytes() for name in NAMES]
    texts = [name.encode("utf-8", "replace").decode() for name in NAMES]  # those of Arrow are UTF-8
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": texts}}
    table = pa.table({"image": images, "label": list(range(len(NAMES))), "$not [used]\n": texts})
    numbers = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(numbers, root / "$numbers [x].parquet")
    parquet.write_table(table.set_column(1, "label", pa.array(texts)), root / "_texts \n.parquet")
    pixels = np.zeros((len(NAMES), 8, 8, 3), np.uint8)
    np.savez(root / "{arrays} $x.npz", images=pixels, labels=np.array(NAMES))
    for file, expected in (
        ("$numbers [x].parquet", texts), ("_texts \n.parquet", texts),
        ("{arrays} $x.npz", NAMES), ("{arrays} $x.npz:images", NAMES),
    ):  # fmt: skip
        source = open_source(str(root / file), labelled=True)
        names = [(source.classes or [])[label] for label in source.labels or []]
        assert [literal(name) for name in names] == expected
        assert all(source.where(i).isprintable() for i in range(len(source)))
        assert all(line.isprintable() for line in notes(source))


@pytest.fixture(scope="module")
def dense(root: Path) -> Path:
    """Pictures of any name with a stripe for each class, the masks, and the same as boxes in COCO's JSON."""
    folder, side = root / "dense", 4 * len(NAMES)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    mask = np.repeat(np.arange(len(NAMES), dtype=np.uint8), 4)[:, None].repeat(side, 1)
    images, annotations = list[Any](), list[Any]()
    for number, name in enumerate(NAMES):
        file = os.fsdecode(os.fsencode(name)[:250]) + ".png"
        picture(number, side).save(folder / "images" / file)
        Image.fromarray(mask).save(folder / "masks" / file)
        images.append({"id": number, "file_name": file, "height": side, "width": side})
        box = {"bbox": [4, 4 * number, side - 8, 4], "area": 4 * (side - 8), "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": number, "category_id": number + 1, **box})
    (folder / "masks" / "classes.json").write_text(json.dumps({"classes": NAMES}))
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "boxes $.json").write_text(json.dumps(content))
    return folder


def test_segmentation_of_any_names(root: Path, dense: Path) -> None:
    images, masks = str(dense / "images"), str(dense / "masks")
    pairs = {"data.source": images, "data.masks": masks, "data.val": images, "data.val_masks": masks}
    given = SMALL | pairs | {"data.image_size": 32, "model.width": 16}
    run = commands.segment(None, None, given, settings=SETTINGS, out=root / "runs" / "_segment [x]", quiet=True)
    found = json.loads(text_of(run / "eval" / "segment.json"))
    assert {literal(name) for name in found["IoU"]} == set(NAMES)
    text_of(commands.report(run))
    commands.export(run)
    assert commands.evaluate(run, quiet=True)["mIoU"] == found["mIoU"]


def test_detection_of_any_names(root: Path, dense: Path) -> None:
    images, boxes = str(dense / "images"), str(dense / "boxes $.json")
    sets = {"data.source": images, "data.annotations": boxes, "data.val": images, "data.val_annotations": boxes}
    given = SMALL | sets | {"data.image_size": 64, "model.width": 16, "test.detections": 10}
    run = commands.detect(None, None, given, settings=SETTINGS, out=root / "runs" / "$detect$ \\x", quiet=True)
    found = json.loads(text_of(run / "eval" / "detect.json"))
    assert {literal(name) for name in found["categories"].values()} == set(NAMES)
    page = text_of(commands.report(run))
    assert "&lt;b&gt;&amp;amp;&lt;b&gt;" in page
    commands.export(run)


def test_members_and_lists_of_any_name(root: Path) -> None:
    """In a tar; and in a list, where a name has no line break and no comma."""
    files = [root / "classes" / name / "b.png" for name in NAMES]
    tar = root / "$ [x].tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as shard:
        for file in files:
            shard.add(file, str(file.relative_to(root)))
    source = open_source(str(tar))
    found = {literal(source.where(i)).removeprefix(f"{tar.name}: ") for i in range(len(source))}
    assert found == {str(file.relative_to(root)) for file in files}
    kept = [file for file in files if not {"\n", ",", "\x1b"} & set(file.parent.name)]
    lines = "".join(f"{file.relative_to(root)}\n" for file in kept)
    (root / "list.txt").write_bytes(os.fsencode(lines))
    listed = open_source(str(root / "list.txt"))
    assert {Path(literal(listed.where(i))).parent.name for i in range(len(listed))} == {f.parent.name for f in kept}


def test_data_of_a_name_that_is_no_utf8_on_a_screen_of_ascii(tmp_path: Path) -> None:
    data = os.fsdecode(b"caf\xe9 $x \\n")
    for name in ("_a$", "b[red]\n"):
        (tmp_path / data / name).mkdir(parents=True)
        for i in range(8):
            picture(i).save(tmp_path / data / name / f"{i}.png")
    command = [sys.executable, "-m", "remask", "pretrain", "--recipe", "demo", "--data", data, "--out", RUN]
    command += [
        "--image-size",
        "16",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--model",
        "vit_micro",
        "--max-steps",
        "2",
    ]
    command += ["--set", "runtime.workers=0", "--set", "runtime.threads=1"]
    screen = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    run = subprocess.run(command, cwd=tmp_path, env=screen, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert rb"probe $'a$b_ [red] \'x\' \n\U0001f41c' --data" in run.stdout
    kept = load_recipe(tmp_path / RUN / "recipe.toml", environment={}, strict=False)
    assert kept.data.source == str(tmp_path / data)
    assert printable(data) in text_of(commands.report(tmp_path / RUN))
    odd = tmp_path / os.fsdecode(b"r\xff")
    with pytest.raises(UserError, match=r"r\\xff holds bytes that are no UTF-8: choose another --out"):
        commands.pretrain(kept, out=odd, quiet=True)
    assert not odd.exists()
    with pytest.raises(UserError, match="choose another --out"):
        commands.export(tmp_path / RUN, odd)


def test_files_of_the_longest_name(root: Path) -> None:
    look = commands.ModelOptions(image_size=(16, 16))
    out = root / ("e" * 251 + ".npz")
    assert commands.embed("untrained:vit_micro", str(root / "classes"), out, look, limit=3, quiet=True).is_file()
    packed = root / ("p" * 248 + ".remask")
    commands.data_pack(str(root / "classes"), packed, commands.parse_form("raw", "0", 90, 3), limit=3, quiet=True)
    assert len(open_source(str(packed))) == 3
    with pytest.raises(UserError, match="choose a shorter one"):
        commands.tsne(
            ["untrained:vit_micro"], str(root / "classes"), root / ("t" * 251 + ".png"), look=look, quiet=True
        )
