"""splits: one list of words, for folders, shards, tables, lists and masks."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask.downstream.segment.mask_source import open_masks
from remask.errors import UserError
from remask.images.sources.left_out import notes
from remask.images.sources.opening import open_source
from remask.images.sources.splits import are_splits, chosen, split_of


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("train", "train"), ("Training", "training"), ("trainval", "trainval"), ("train2017", "train"),
        ("train_set", "train"), ("TrainSet", "train"), ("training-images", "training"), ("my val.v2", "val"),
        ("Validation", "validation"), ("VALID", "valid"), ("dev", "dev"), ("evaluation", "evaluation"),
        ("testing_data", "testing"), ("test-00000-of-00004.parquet", "test"), ("x_eval.tar", "eval"),
        ("trainer", None), ("testament", None), ("invalid", None), ("device", None), ("latest", None), ("evals", None),
    ],
)  # fmt: skip
def test_words(name: str, word: str | None) -> None:
    assert split_of(name) == word


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "test"], True),
        (["training", "testing"], True),
        (["train", "eval"], True),
        (["Train", "Val", "extra"], True),
        (["train2014", "train2017"], True),
        (["coco_train", "coco_val"], True),
        (["airplane", "train", "truck"], False),
        (["cat", "test"], False),
        (["bullet_train", "crash_test", "dog"], False),
        (["valid", "invalid"], False),
    ],
)
def test_folders_that_are_splits(names: list[str], splits: bool) -> None:
    assert are_splits(names) == splits


def test_which_to_learn_from() -> None:
    assert chosen(["test", "train", "validation"]) == ("train", "validation")
    assert chosen(["testing", "training"]) == ("training", "testing")
    assert chosen(["a/eval", "a/trainval"]) == ("a/trainval", "a/eval")


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training", "testing"),
        ("train", "eval"),
        ("Train2017", "Valid2017"),
        ("trainval", "dev_set"),
        ("train", "test"),
    ],
)
@pytest.mark.parametrize("above", ["", "set/v1/"])
def test_folders_are_taken_together_or_refused(tmp_path: Path, above: str, train: str, val: str) -> None:
    put(tmp_path, *(f"{above}{split}/{name}/1.jpg" for split in (train, val) for name in ("cat", "dog")))
    source = open_source(str(tmp_path))
    assert (len(source), source.labels, source.classes) == (4, None, None)
    assert notes(source) == [
        f"{tmp_path}: all of its splits are taken ({', '.join(f'{above}{name} 2' for name in sorted((train, val)))})"
    ]
    with pytest.raises(UserError) as error:
        open_source(str(tmp_path), labelled=True)
    line = str(error.value)
    assert line.endswith(f"give --data {tmp_path}/{above}{train} --val {tmp_path}/{above}{val}")
    assert "\n" not in line
    assert open_source(f"{tmp_path}/{above}{train}", labelled=True).classes == ["cat", "dog"]


@pytest.mark.parametrize("kind", [".tar", ".parquet"])
@pytest.mark.parametrize(
    "names", [("training-0", "testing-0"), ("x_train", "x_Eval"), ("train/0", "dev/0"), ("trainval", "test")]
)
def test_shards_of_several_splits_are_refused(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    for name in names:
        path = tmp_path / f"{name}{kind}"
        path.parent.mkdir(exist_ok=True)
        if kind == ".tar":
            with tarfile.open(path, "w") as tar:
                info = tarfile.TarInfo("a.jpg")
                info.size = 1
                tar.addfile(info, io.BytesIO(b"A"))
        else:
            pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            pq.write_table(pa.table({"image": [b"A"]}), path)
    with pytest.raises(
        UserError, match=r"holds several splits \(.*\): name one by a file or a pattern, such as "
    ) as line:
        open_source(str(tmp_path))
    assert len(open_source(str(line.value).rpartition("such as ")[2])) == 1


def test_shards_of_one_split_by_several_words(tmp_path: Path) -> None:
    for name in ("val-0", "validation-1", "part-2"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"A"))
    assert len(open_source(str(tmp_path))) == 3


def test_splits_within_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("data/train/a.jpg", "data/train/a.cls", "data/test/b.jpg", "data/test/b.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    assert notes(open_source(str(tmp_path / "x.tar"))) == [
        f"{tmp_path}/x.tar: all of its splits are taken (data/test 1, data/train 1)"
    ]
    with pytest.raises(UserError, match="holds the splits data/test, data/train"):
        open_source(str(tmp_path / "x.tar"), labelled=True)
    only = open_source(str(tmp_path / "x.tar"), labelled=True, exclude=["test"])
    assert [only.where(i) for i in range(len(only))] == ["x.tar: data/train/a.jpg"]


def test_splits_in_a_column_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("path,label,split\na.jpg,cat,train\nb.jpg,dog,Train\nc.jpg,cat,test\n")
    source = open_source(str(tmp_path / "all.csv"))
    assert notes(source) == [f"{tmp_path}/all.csv: all of its splits are taken (Train 1, test 1, train 1)"]
    with pytest.raises(UserError, match="splits Train, test, train: make a file of each, for --data and --val"):
        open_source(str(tmp_path / "all.csv"), labelled=True)
    (tmp_path / "one.csv").write_text("path,label,split\na.jpg,cat,train\nb.jpg,dog,train\n")
    assert open_source(str(tmp_path / "one.csv"), labelled=True).classes == ["cat", "dog"]


@pytest.mark.parametrize(("train", "val"), [("training", "testing"), ("train", "eval"), ("Train2017", "Val2017")])
def test_pictures_with_masks(tmp_path: Path, train: str, val: str) -> None:
    for split in (train, val):
        for folder in ("images", "masks"):
            (tmp_path / folder / split).mkdir(parents=True)
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / split / "0.png")
    with pytest.raises(UserError, match=f"holds the splits .*: name one, as in .*/images/{train}$"):
        open_masks(str(tmp_path / "images"), str(tmp_path / "masks"), classes=2)
    assert len(open_masks(str(tmp_path / "images" / train), classes=2)) == 1
