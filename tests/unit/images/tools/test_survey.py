"""checking: counts that are known, of pictures that are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from remask.images.decoding import decode
from remask.images.sources.named import Arrays
from remask.images.sources.opening import open_source
from remask.images.tools.survey import survey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size, colour in (("a/1.png", (20, 40), 51), ("a/2.jpg", (64, 32), 102), ("b/3.png", (8, 30), 255)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (colour, 0, colour)).save(tmp_path / name)
    (tmp_path / "b/4.png").write_bytes((tmp_path / "b/3.png").read_bytes())
    (tmp_path / "b/5.jpg").write_text("not a picture")
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(tmp_path / "b/6.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_counts(folder: Path, workers: int) -> None:
    steps: list[int] = []
    found = survey(open_source(str(folder)), workers=workers, size=(8, 8), progress=lambda i, _: steps.append(i))
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (found.pictures, found.usable, found.repeated, found.too_small) == (6, 5, 1, 2)
    assert list(found.unusable) == [f"{folder}/b/5.jpg"]
    assert "not a picture" in found.unusable[f"{folder}/b/5.jpg"]
    assert found.height == (16, 30, 40)
    assert found.width == (8, 16, 64)
    assert found.shorter == 16
    assert found.kinds == {"PNG RGB, 8 bits": 3, "JPEG RGB, 8 bits": 1, "PNG I, 16 bits": 1}
    assert found.classes == {"a": 2, "b": 4}
    assert found.decoded_bytes == 3 * (800 + 2048 + 240 + 240 + 2 * 256)  # the last one has 16 bits
    assert found.decode_rate >= found.loader_rate > 0


def test_mean_and_deviation_are_those_of_the_pixels() -> None:
    photos = open_source("photos", limit=6)
    found = survey(photos, size=(8, 8))
    images = [decode(photos.read(i)).float().flatten(1) / 255 for i in range(6)]
    mean = torch.stack([image.mean(1) for image in images]).mean(0)
    square = torch.stack([image.square().mean(1) for image in images]).mean(0)
    assert np.allclose(found.mean, mean.numpy(), atol=0.01)
    assert np.allclose(found.std, (square - mean**2).sqrt().numpy(), atol=0.01)
    constant = survey(Arrays("one", np.full((2, 9, 9, 2), 51, np.uint8), None, None), channels=2, size=(8, 8))
    assert constant.mean == [0.2, 0.2]
    assert constant.std == [0.0, 0.0]
    assert constant.kinds == {"array of 2 channels, uint8": 2}


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    found = survey(open_source(str(tmp_path)))
    assert (found.usable, found.unusable) == (0, {f"{tmp_path}/a.jpg": "the file is empty"})
    assert json.loads(json.dumps(found.as_dict()))["height"] == {"min": 0, "median": 0, "max": 0}


def test_hostile_files(shared: Path) -> None:
    found = survey(open_source(str(shared / "data/nasty")), size=(8, 8))
    assert found.usable + len(found.unusable) == found.pictures == 45
    assert all(reason and "\n" not in reason for reason in found.unusable.values())
    assert any("bomb" in where for where in found.unusable)


@pytest.mark.parametrize(("kind", "size"), [("uint8", 1), ("uint16", 2), ("float32", 4)])
def test_decoded_bytes_are_those_of_the_values(tmp_path: Path, kind: str, size: int) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", (np.arange(60).reshape(6, 10) + i).astype(kind))
    assert survey(open_source(str(tmp_path)), channels=1, patch=1).decoded_bytes == 3 * 60 * size
