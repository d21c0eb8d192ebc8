"""named: built-in sets, and downloads that fail without a trace."""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from remask.errors import UserError
from remask.images.decoding import decode
from remask.images.sources.opening import open_source


def test_digits_and_their_split() -> None:
    digits = open_source("digits", labelled=True)
    assert len(digits) == 1797
    picture = digits.read(0)
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (8, 8)
    assert max(digits.read(i).max() for i in range(20)) == 255
    assert decode(picture).shape == (3, 8, 8)
    train, val = open_source("digits:train"), open_source("digits:val")
    assert len(train) + len(val) == 1797
    assert train.labels is not None
    assert val.labels is not None
    share = np.bincount(val.labels) / np.bincount(digits.labels or [])
    assert (abs(share - 0.2) < 0.01).all(), "stratified"
    both = {train.read(i).tobytes() for i in range(len(train))} & {val.read(i).tobytes() for i in range(len(val))}
    assert len(both) < 5  # a few of the 1,797 are alike
    assert open_source("digits:val", limit=7).labels == val.labels[:7]


def test_photos_are_real_and_repeat() -> None:
    photos = open_source("photos")
    n = len({photos.where(i) for i in range(len(photos))})
    assert n >= 15
    assert len(photos) == 64 * n
    assert photos.labels is None
    first, again, other = photos.read(0), photos.read(n), photos.read(1)
    assert isinstance(first, np.ndarray)
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert photos.where(0) == "photos: astronaut.png"
    assert all(photos.read(i).dtype == np.uint8 and min(photos.read(i).shape[:2]) >= 100 for i in range(n))
    assert len(open_source("photos", limit=10)) == 10
    assert np.array_equal(pickle.loads(pickle.dumps(photos)).read(0), first)


@pytest.mark.parametrize("spec", ["digits:test", "photos:val", "cifar10:foo", "imagenette:foo"])
def test_unknown_split(spec: str) -> None:
    name = spec.split(":")[0]
    with pytest.raises(UserError, match=f"{name} has no split .* it can be named as {name}"):
        open_source(spec)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REMASK_CACHE", str(tmp_path / "deep/cache"))
    return tmp_path / "deep/cache"


class FakeCifar:
    """torchvision's data set as far as it is used."""

    classes = ("airplane", "automobile")
    downloads = 0

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        if download:
            FakeCifar.downloads += 1
            Path(root, "batches").write_text("data")
        assert Path(root, "batches").read_text() == "data"
        self.data = np.full((5, 32, 32, 3), 200 if train else 100, np.uint8)
        self.targets = [0, 1, 1, 0, 1]


def test_cifar10_is_downloaded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    train, test = open_source("cifar10", limit=3), open_source("cifar10:val", labelled=True)
    assert (len(train), len(test)) == (3, 5)
    assert (train.read(0).max(), test.read(0).max()) == (200, 100)
    assert train.labels == [0, 1, 1]
    assert FakeCifar.downloads == 1
    assert [path.name for path in cache.iterdir()] == ["cifar10"]


def test_imagenette_is_a_folder_of_classes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: str, size: str, download: bool) -> None:
        for name in ("train/n01/a.JPEG", "train/n02/b.JPEG", "val/n01/c.JPEG", "val/n02/d.JPEG"):
            path = Path(root, "imagenette2-320", name)
            path.parent.mkdir(parents=True)
            path.write_bytes(name.encode())

    monkeypatch.setattr("torchvision.datasets.Imagenette", fetch)
    source = open_source("imagenette", labelled=True)
    assert source.labels == [0, 1]
    assert source.read(1) == b"train/n02/b.JPEG"
    assert source.name == "imagenette"
    assert open_source("imagenette:val").read(0) == b"val/n01/c.JPEG"


@pytest.mark.parametrize("spec", ["cifar10", "imagenette"])
def test_a_failed_download_leaves_nothing(spec: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: str, **options: object) -> None:
        Path(root, "half.tar.gz").write_bytes(b"half")
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    monkeypatch.setattr("torchvision.datasets.Imagenette", fail)
    with pytest.raises(UserError, match=f"{spec} could not be downloaded .*Name or service not known.*check network"):
        open_source(spec)
    assert not cache.parent.exists()
    cache.mkdir(parents=True)
    (cache / "other").touch()
    with pytest.raises(UserError):
        open_source(spec)
    assert [path.name for path in cache.iterdir()] == ["other"]


class Rows(list):  # type: ignore[type-arg]
    """The part of datasets.Dataset that is used."""

    def __init__(self, rows: list[dict[str, object]], features: dict[str, object]) -> None:
        super().__init__(rows)
        self.features = features

    def cast_column(self, column: str, kind: object) -> "Rows":
        return self

    def select(self, numbers: range) -> "Rows":
        return Rows([list.__getitem__(self, i) for i in numbers], self.features)

    def select_columns(self, columns: list[str]) -> "Rows":
        return self

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)  # type: ignore[index]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Rows]:
    class Image:
        def __init__(self, decode: bool = True) -> None: ...

    class ClassLabel:
        names = ("cat", "dog")

    rows = [{"img": {"bytes": bytes([65 + i]), "path": None}, "label": i % 2} for i in range(4)]
    known = {"user/set": Rows(rows, {"img": Image(), "label": ClassLabel()}), "user/text": Rows([], {"text": "string"})}

    def load_dataset(name: str, split: str) -> Rows:
        if split != "train":
            raise ValueError(f'Unknown split "{split}".')
        return known[name]

    module = types.SimpleNamespace(Image=Image, ClassLabel=ClassLabel, load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)  # type: ignore[arg-type]
    return known


def test_hub(hub: dict[str, Rows]) -> None:
    source = open_source("hf:user/set", limit=3, labelled=True)
    assert [source.read(i) for i in range(len(source))] == [b"A", b"B", b"C"]
    assert source.labels == [0, 1, 0]
    assert source.classes == ["cat", "dog"]
    assert source.where(2) == "hf:user/set: row 2"


def test_hub_mistakes(hub: dict[str, Rows], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match='hf:user/set:foo could not be loaded: Unknown split "foo"'):
        open_source("hf:user/set:foo")
    with pytest.raises(UserError, match="no column of images among text"):
        open_source("hf:user/text")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'remask\[data\]'"):
        open_source("hf:user/set")
