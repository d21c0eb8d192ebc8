"""images/sources/datasets.py: other libraries' datasets give the pixels that their files give."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData, ImageFolder

import remask
from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from remask.images.loading.loader import Loader
from remask.images.sources.datasets import pixels_of
from remask.images.transforms import RandomCropFlip


class Items:
    """A dataset of whatever it is given."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(noise.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_an_image_folder_is_the_folder(folder: Path) -> None:
    theirs, ours = remask.from_dataset(ImageFolder(str(folder))), remask.open_source(str(folder))
    assert (theirs.labels, theirs.classes, len(theirs)) == (ours.labels, ours.classes, 6)
    assert all(torch.equal(decode(theirs.read(i)), decode(ours.read(i))) for i in range(6))
    assert theirs.where(2) == "ImageFolder[2]"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(folder: Path, workers: int) -> None:
    crop = RandomCropFlip((16, 16))
    sources = remask.from_dataset(ImageFolder(str(folder))), remask.open_source(str(folder))
    theirs, ours = (next(Loader(source, crop, 4, workers=workers).epoch(0)) for source in sources)
    assert torch.equal(theirs.images, ours.images)
    assert torch.equal(theirs.labels, ours.labels)


def test_hugging_face_columns_and_names() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pixels = np.full((8, 8, 3), 7, np.uint8)
    made = datasets.Dataset.from_dict({"img": [Image.fromarray(pixels)] * 2, "label": [1, 0]}, features=features)
    source = remask.from_dataset(made, name="pets")
    assert (source.labels, source.classes, source.where(1)) == ([1, 0], ["cat", "dog"], "pets[1]")
    assert (source.read(0) == pixels).all()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.full((4, 6, 3), 9, np.uint8)),
        np.full((4, 6, 3), 9, np.uint8),
        torch.full((3, 4, 6), 9, dtype=torch.uint8),
        torch.full((3, 4, 6), 9 / 255),
    ],
    ids=["pillow", "array", "tensor", "float"],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 0), lambda x: {"image": x}], ids=["bare", "tuple", "dict"])
def test_images_of_every_form(image: Any, wrap: Any) -> None:
    source = remask.from_dataset(Items(wrap(image)))
    assert source.labels is None
    read = decode(source.read(0), levels=None)
    assert read.shape == (3, 4, 6)
    assert (read == 9).all()
    assert pickle.loads(pickle.dumps(source)).where(0) == "Items[0]"


def test_deep_and_turned_images() -> None:
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 1000
    assert (pixels_of(Image.fromarray(deep)) == deep).all()
    turned = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    turned.getexif()[0x0112] = 6
    assert pixels_of(turned).shape == (6, 4, 3)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (torch.randn(3, 4, 4), "normalised"),
        (torch.zeros(2, 3, 4, 4), "no image"),
        ("cat.jpg", "a str is no image"),
        (np.zeros((4, 4), bool), "type bool"),
        ({"picture": 1}, "no image under image or img"),
    ],
)
def test_what_is_no_image_is_a_bad_image(image: Any, why: str) -> None:
    with pytest.raises(BadImage, match=why):
        remask.from_dataset(Items(image)).read(0)


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match="generator is no map-style dataset"):
        remask.from_dataset(i for i in range(3))
    with pytest.raises(UserError, match="2 labels are not one for each of 1 items"):
        remask.from_dataset(Items(np.zeros((4, 4))), labels=[0, 1])
    with pytest.raises(UserError, match="class numbers from 0 on"):
        remask.from_dataset(Items(np.zeros((4, 4))), labels=[-1])


def test_a_dataset_without_names_has_its_numbers_as_classes() -> None:
    source = remask.from_dataset(FakeData(4, (3, 8, 8)), labels=[0, 2, 1, 0])
    assert source.classes == ["0", "1", "2"]
