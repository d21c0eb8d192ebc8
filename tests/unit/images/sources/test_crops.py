"""crops: photographs that the installed packages bring, cut into splits that share no pixel, the same every time."""

import pickle

import numpy as np
import pytest

from remask.errors import UserError
from remask.images.sources import crops, named
from remask.images.sources.named import Crops
from remask.images.sources.opening import open_source


@pytest.fixture(scope="module")
def val() -> Crops:
    source = open_source("crops:val", labelled=True)
    assert isinstance(source, Crops)
    return source


def test_splits_counts_and_names(val: Crops) -> None:
    assert {name: len(open_source(f"crops:{name}")) for name in ("train", "test")} == {"train": 6400, "test": 1280}
    assert len(val) == 1280
    assert val.labels is not None
    assert np.bincount(val.labels).tolist() == [80] * 16
    assert val.classes == list(crops.PHOTOGRAPHS) == sorted(crops.PHOTOGRAPHS)
    assert all(val.read(i).shape == (32, 32) and val.read(i).dtype == np.uint8 for i in range(32))
    assert val.where(3) == "crops:val: picture 3"


def test_the_same_crops_every_time(val: Crops) -> None:
    again = open_source("crops:val")
    assert all(np.array_equal(val.read(i), again.read(i)) for i in range(len(val)))
    drawn, labels = crops.crops("val")  # without what a process keeps
    assert np.array_equal(drawn, np.stack([val.read(i) for i in range(len(val))]))
    assert labels == val.labels
    few = open_source("crops:val", limit=20)
    assert [few.read(i).tobytes() for i in range(20)] == [val.read(i).tobytes() for i in range(20)]
    assert few.labels == (val.labels or [])[:20]
    default, train = open_source("crops", limit=16), open_source("crops:train", limit=16)
    assert all(np.array_equal(default.read(i), train.read(i)) for i in range(16))
    assert np.array_equal(pickle.loads(pickle.dumps(val)).read(5), val.read(5))


@pytest.mark.parametrize("name", crops.PHOTOGRAPHS)
def test_no_pixel_is_in_two_splits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are told apart by their brightness; a bound of a split lies at least 11 of them from the next one."""
    height, width = crops.photograph(name).shape[:2]
    strips = {split: (round(part.begin * width), round(part.end * width)) for split, part in crops.SPLITS.items()}
    (left, end), (begin, middle), (start, right) = (strips[split] for split in ("train", "val", "test"))
    assert (left, right) == (0, width)
    assert min(begin - end, start - middle) >= 11
    assert min(height, middle - begin, right - start) >= crops.SIDES[1]
    columns = np.linspace(0, 255, width).astype(np.uint8)[None].repeat(height, 0)
    monkeypatch.setattr(crops, "photograph", lambda name, channels=3: columns[..., None])
    monkeypatch.setattr(crops, "JITTER", 0.0)
    monkeypatch.setattr(crops, "PHOTOGRAPHS", {name: crops.PHOTOGRAPHS[name]})
    for split, (first, last) in strips.items():
        pictures, _ = crops.crops(split, 60)
        assert int(pictures.min()) >= int(columns[0, first]) - 2  # resizing overshoots by a level or two
        assert int(pictures.max()) <= int(columns[0, last - 1]) + 2


def test_crops_are_turned_mirrored_and_of_other_brightness(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ramp comes out in all of its eight ways to lie, and never twice as bright."""
    ramp = np.linspace(40, 90, 400)[None] + np.linspace(0, 120, 300)[:, None]
    monkeypatch.setattr(crops, "photograph", lambda name, channels=3: ramp.astype(np.uint8)[..., None])
    monkeypatch.setattr(crops, "PHOTOGRAPHS", {"ramp": ""})
    pictures, labels = crops.crops("train", 200)
    corners = {tuple(np.argsort(p[[0, 0, -1, -1], [0, -1, 0, -1]], kind="stable").tolist()) for p in pictures}
    assert len(corners) == 8
    assert set(labels) == {0}
    assert np.ptp([p.mean() for p in pictures]) > 60


def test_a_photograph_to_look_at(val: Crops) -> None:
    whole, shown = crops.photograph("cat"), val.portrait(list(crops.PHOTOGRAPHS).index("cat"))
    assert shown.shape == whole.shape
    assert np.array_equal(shown[:, :200], whole[:, :200])
    assert np.array_equal(shown[:, -100:], whole[:, -100:])
    assert shown[:, 240:340].mean() < 0.4 * whole[:, 240:340].mean()


def test_a_package_without_its_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(crops.PHOTOGRAPHS, "cat", "skimage/data/absent.png")
    named._drawn_crops.cache_clear()
    with pytest.raises(UserError, match=r"installed skimage does not bring data/absent\.png"):
        open_source("crops:val", limit=4)
    with pytest.raises(UserError, match="crops has no split 'dev': it can be named as crops, crops:train, crops:val"):
        open_source("crops:dev")
