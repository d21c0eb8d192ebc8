"""stacks: many images in one numpy file, with labels of any kind, and which of several arrays is meant."""

import json
from pathlib import Path

import numpy as np
import pytest

from remask.commands.paths import absolute
from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from remask.images.levels import FULL
from remask.images.sources.fingerprint import inventory
from remask.images.sources.left_out import notes
from remask.images.sources.opening import has_paths, open_source

GRAY = np.random.default_rng(0).integers(0, 256, (6, 12, 10)).astype(np.uint8)
Y = np.arange(6) % 3


def test_gray_images_with_labels_need_no_axis_of_channels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=GRAY, labels=Y[:, None])
    source = open_source(str(tmp_path / "x.npz"), labelled=True, limit=5)
    assert (source.labels, source.left_out) == ([0, 1, 2, 0, 1], {})
    data = source.read(4)
    assert isinstance(data, np.ndarray)
    assert (decode(data, 1, levels=FULL)[0].numpy() == GRAY[4]).all()


@pytest.mark.parametrize(
    ("arrays", "first"),
    [
        ({"x_test": GRAY[:2], "y_test": Y[:2], "x_train": GRAY, "y_train": Y}, "x_train"),  # mnist.npz of Keras
        ({"train_images": GRAY, "train_labels": Y, "val_images": GRAY[:2], "val_labels": Y[:2]}, "train_images"),
        ({"X_train": GRAY[..., None], "y_train": Y, "X_test": GRAY[:2, ..., None], "y_test": Y[:2]}, "X_train"),
    ],
)  # fmt: skip
def test_one_of_several_arrays_is_named(tmp_path: Path, arrays: dict[str, np.ndarray], first: str) -> None:
    file = tmp_path / "mnist.npz"
    np.savez(file, **arrays)
    with pytest.raises(UserError, match="holds several sets of pictures") as caught:
        open_source(str(file))
    assert f"name one, as in {file}:{first}" in str(caught.value)
    source = open_source(f"{file}:{first}", labelled=True)
    assert (source.labels, source.classes) == (Y.tolist(), ["0", "1", "2"])
    assert source.where(1) == f"mnist.npz: {first} 1"
    with pytest.raises(UserError, match="is no array of several images in it; those of images are"):
        open_source(f"{file}:{next(key for key in arrays if arrays[key].ndim < 3)}")
    assert not has_paths(f"{file}:{first}")
    found = inventory(source)
    assert (found.names, found.facts) == (["mnist.npz"], {"array": first})
    assert found.sizes.tolist() == [file.stat().st_size]


def test_an_array_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "m.npz", x_train=GRAY, y_train=Y)
    monkeypatch.chdir(tmp_path)
    assert absolute("m.npz:x_train") == f"{tmp_path}/m.npz:x_train"
    assert absolute("gone.npz:x_train") == "gone.npz:x_train"


def test_labels_of_other_types(tmp_path: Path) -> None:
    for name, labels, classes in (
        ("text", np.array(["dog", "ant"] * 3), ["ant", "dog"]),
        ("bytes", np.array([b"dog", b"ant"] * 3), ["ant", "dog"]),
        ("floats", np.array([2.0, 0.0] * 3), ["0", "2"]),
    ):
        np.savez(tmp_path / f"{name}.npz", images=GRAY, labels=labels)
        assert open_source(str(tmp_path / f"{name}.npz"), labelled=True).classes == classes


@pytest.mark.parametrize("labels", [[0, 1, -1, 0, 1, 0], [0, 1, np.nan, 0, 1, 0]])
def test_labels_that_are_withheld(tmp_path: Path, labels: list[float]) -> None:
    np.savez(tmp_path / "x.npz", images=GRAY, labels=np.array(labels))
    source = open_source(str(tmp_path / "x.npz"))
    assert (source.labels, source.left_out) == (None, {"class labels, which not every picture has": 5})
    assert "1 of 6 images have no label" in notes(source)[-1]


def test_what_is_no_set_of_images_says_what_to_save(tmp_path: Path) -> None:
    np.savez(tmp_path / "hot.npz", images=GRAY, labels=np.eye(6))
    with pytest.raises(UserError, match=r"images of shape \(6, 12, 10\), labels of shape \(6, 6\)\): save images with"):
        open_source(str(tmp_path / "hot.npz"))
    many = np.zeros((20, 28, 28), np.uint8)
    with pytest.raises(BadImage, match=r"20 channels where 3 are wanted, in an array .*images=array\[\.\.\., None\]"):
        decode(bytes_of(tmp_path, many), 3, levels=FULL)
    assert decode(bytes_of(tmp_path, many), 20, levels=FULL).shape == (20, 28, 28)
    assert json.dumps(open_source(str(tmp_path / "x.npy")).left_out) == "{}"


def bytes_of(folder: Path, array: np.ndarray) -> bytes:
    np.save(folder / "x.npy", array)
    return (folder / "x.npy").read_bytes()
