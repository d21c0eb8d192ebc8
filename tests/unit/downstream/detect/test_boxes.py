"""images/boxes.py: boxes and masks stay on what they were drawn round, and batches depend on seed, epoch and place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from remask.downstream.detect.boxes import PAD, BoxBatch, BoxLoader, LargeScaleJitter, Letterbox, around, fitting
from remask.downstream.detect.coco import CocoSource, encode_mask, open_coco
from remask.errors import UserError
from remask.images.loading.loader import TooManyBad

SIZE = (48, 80)
WHITE = (10, 20, 40, 36)


def scene() -> tuple[Tensor, dict[str, Any]]:
    """A white rectangle on black, its box and mask, and a speck of 2×2 pixels."""
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    x0, y0, x1, y1 = WHITE
    image[:, y0:y1, x0:x1] = 255
    masks = torch.zeros(2, *SIZE, dtype=torch.uint8)
    masks[0, y0:y1, x0:x1] = 1
    masks[1, 2:4, 70:72] = 1
    boxes = torch.tensor([[*WHITE], [70, 2, 72, 4]], dtype=torch.float32)
    target = {"boxes": boxes, "labels": torch.tensor([3, 1]), "masks": masks, "image_id": 5, "size": SIZE}
    return image, target


@pytest.fixture
def source(tmp_path: Path) -> CocoSource:
    """Seven pictures of several sizes, one instance each but for the last, which has none."""
    images, annotations = [], []
    for i in range(7):
        height, width = 40 + 4 * i, 64 - 4 * i
        Image.new("RGB", (width, height), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
        images.append({"id": i + 10, "file_name": f"{i}.png", "height": height, "width": width})
        mask = torch.zeros(height, width, dtype=torch.uint8)
        mask[4:30, 6:30] = 1
        box = {"id": i + 1, "image_id": i + 10, "category_id": 1, "bbox": [6, 4, 24, 26]}
        annotations.append({**box, "segmentation": encode_mask(mask)})
    data = {"images": images, "annotations": annotations[:-1], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    return open_coco(str(tmp_path), str(tmp_path / "a.json"))


def same(a: list[BoxBatch], b: list[BoxBatch]) -> bool:
    labels = [(x.labels, y.labels) for x, y in zip(a, b, strict=True)]
    alike = all(torch.equal(p["masks"], q["masks"]) and torch.equal(p["boxes"], q["boxes"])
                for left, right in labels for p, q in zip(left, right, strict=True))  # fmt: skip
    return alike and all(torch.equal(x.images, y.images) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (1.1, 1.9), (0.1, 2.0)])
def test_boxes_and_masks_follow_the_picture(scale: tuple[float, float]) -> None:
    jitter, kept = LargeScaleJitter((64, 64), scale), 0
    for seed in range(30):
        image, target = jitter(*scene(), Generator().manual_seed(seed))
        assert image.shape == (3, 64, 64)
        rows, columns = target["shown"]
        assert (image[:, rows:] == PAD).all()
        assert (image[:, :, columns:] == PAD).all()
        assert target["masks"].shape == (len(target["boxes"]), 64, 64)
        for box, mask, label in zip(target["boxes"], target["masks"], target["labels"], strict=True):
            assert (around(mask[None])[0] - box).abs().max() <= 1
            if label == 3:
                kept += 1
                white = image[0, :rows, :columns] > 127
                assert (white != mask[:rows, :columns].bool()).float().sum() <= 2 * (mask.sum(0) > 0).sum() + 2 * rows
    assert kept >= 10


def test_flipping_moves_boxes_with_pixels() -> None:
    flips = [LargeScaleJitter((64, 96), (1.0, 1.0))(*scene(), Generator().manual_seed(seed)) for seed in range(8)]
    lefts = {round(float(target["boxes"][0, 0])) for _, target in flips}
    assert lefts == {12, 48}  # 10 and 80 - 40, enlarged by 1.2
    for image, target in flips:
        x0, y0, x1, y1 = (round(v) for v in target["boxes"][0].tolist())
        assert (image[:, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] > 200).all()
    one = [LargeScaleJitter((64, 96), (1.0, 1.0), flip=False)(*scene(), Generator().manual_seed(s)) for s in range(8)]
    assert {round(float(target["boxes"][0, 0])) for _, target in one} == {12}


def test_small_things_go_and_cut_things_shrink() -> None:
    small = LargeScaleJitter((64, 64), (0.2, 0.2), flip=False)(*scene(), Generator().manual_seed(0))[1]
    assert small["labels"].tolist() == [3]  # the speck is less than a pixel
    for seed in range(40):
        image, target = LargeScaleJitter((32, 32), (3.0, 3.0), flip=False)(*scene(), Generator().manual_seed(seed))
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 32)).all()
        if 3 in target["labels"]:
            box = target["boxes"][target["labels"].tolist().index(3)]
            assert image[0, int(box[1]) : int(box[3]), int(box[0]) : int(box[2])].float().mean() > 150


def test_whole_pictures_for_evaluation() -> None:
    _, target = Letterbox((64, 64))(*scene())
    assert (target["shown"], target["size"], target["image_id"]) == ((38, 64), SIZE, 5)
    back = target["boxes"] * torch.tensor([80 / 64, 48 / 38] * 2)
    assert torch.allclose(back, scene()[1]["boxes"], atol=1e-4)
    assert fitting((100, 50), (64, 64)) == (64, 32)
    assert fitting((2000, 1), (64, 64)) == (64, 1)


def test_an_epoch_is_a_function_of_seed_epoch_and_place(source: CocoSource) -> None:
    loader = BoxLoader(source, LargeScaleJitter((64, 64), (0.5, 1.5)), 2, seed=1)
    batches = list(loader.epoch(3))
    assert len(loader) == len(batches) == 3
    assert sorted(i for batch in batches for i in batch.index.tolist()) == [0, 1, 2, 3, 4, 5]  # the empty one is out
    assert same(list(loader.epoch(3, 1)), batches[1:])
    assert same(list(BoxLoader(source, LargeScaleJitter((64, 64), (0.5, 1.5)), 2, seed=1).epoch(3)), batches)
    assert not same(list(loader.epoch(4)), batches)
    assert not same(list(BoxLoader(source, LargeScaleJitter((64, 64), (0.5, 1.5)), 2, seed=2).epoch(3)), batches)
    for batch in batches:
        assert batch.images.dtype == torch.uint8
        assert [label["image_id"] - 10 for label in batch.labels] == batch.index.tolist()


def test_workers_give_the_same(source: CocoSource) -> None:
    one = BoxLoader(source, LargeScaleJitter((64, 64)), 2, seed=1)
    two = BoxLoader(source, LargeScaleJitter((64, 64)), 2, seed=1, workers=2)
    assert same(list(one.epoch(0, 1)), list(two.epoch(0, 1)))


def test_a_small_set_fills_a_batch_and_evaluation_sees_all(source: CocoSource) -> None:
    batches = list(BoxLoader(source, LargeScaleJitter((64, 64)), 8).epoch(0))
    assert [len(batch.images) for batch in batches] == [8]
    every = list(BoxLoader(source, Letterbox((64, 64)), 4, shuffle=False).epoch(0))
    assert [batch.index.tolist() for batch in every] == [[0, 1, 2, 3], [4, 5, 6]]
    assert len(BoxLoader(source, Letterbox((64, 64)), 4, shuffle=False)) == 2


def test_mistakes(source: CocoSource) -> None:
    with pytest.raises(UserError, match="multiples of 32"):
        Letterbox((100, 96))
    with pytest.raises(UserError, match="low <= high"):
        LargeScaleJitter((64, 64), (2.0, 1.0))
    with pytest.raises(UserError, match="batch size 0"):
        BoxLoader(source, Letterbox((64, 64)), 0)
    source.annotations = [[] for _ in source.images]
    with pytest.raises(UserError, match="has an instance"):
        BoxLoader(source, Letterbox((64, 64)), 1)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["another size", "cut short", "gone", "no picture"])
def test_a_picture_that_cannot_be_used_is_named(source: CocoSource, workers: int, kind: str) -> None:
    """In evaluation it is left out, in training another takes its place; both are the same whenever they are made."""
    path, words = spoil(source, kind)
    said: list[str] = []
    loader = BoxLoader(source, Letterbox((64, 64)), 4, shuffle=False, workers=workers, report=said.append)
    assert [batch.index.tolist() for batch in loader.epoch(0)] == [[0, 1, 3], [4, 5, 6]]
    assert [batch.index.tolist() for batch in loader.epoch(1)] == [[0, 1, 3], [4, 5, 6]]
    assert (loader.unusable, list(loader.bad)) == ({2}, [path])
    assert len(said) == 1
    assert said[0].startswith(path)
    assert words in said[0]
    training = BoxLoader(source, LargeScaleJitter((64, 64), (0.5, 1.5)), 2, seed=1, workers=workers, report=said.append)
    batches = list(training.epoch(0))
    numbers = [i for batch in batches for i in batch.index.tolist()]
    assert [len(batch.images) for batch in batches] == [2, 2, 2]
    assert sorted(numbers) == [0, 1, 3, 3, 4, 5]
    assert same(list(BoxLoader(source, LargeScaleJitter((64, 64), (0.5, 1.5)), 2, seed=1).epoch(0, 1)), batches[1:])


def spoil(source: CocoSource, kind: str) -> tuple[str, str]:
    """The third picture cannot be used: its address, and a word of the reason."""
    path = Path(source.folder) / "2.png"
    if kind == "another size":
        source.images[2]["height"] = 47
        return source.where(2), "56x48 pixels, where the annotations say 56x47"
    if kind == "cut short":
        path.write_bytes(path.read_bytes()[:60])
        return source.where(2), "truncated"
    if kind == "gone":
        path.unlink()
        return source.where(2), "No such file"
    path.write_bytes(b"<html>")
    return source.where(2), "not a picture"


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("max_bad", [0.0, 0.01, 1.0])
def test_too_many_that_cannot_be_used(source: CocoSource, shuffle: bool, max_bad: float) -> None:
    """None with 0; up to three of a small set; never all."""
    broken = {0.0: 1, 0.01: 4, 1.0: 7}[max_bad]
    for i in range(broken):
        (Path(source.folder) / f"{i}.png").write_bytes(b"")
    loader = BoxLoader(source, Letterbox((64, 64)), 4, shuffle=shuffle, max_bad=max_bad)
    with pytest.raises(
        TooManyBad, match=rf"of {6 if shuffle else 7} images cannot be used.*\d\.png: the file is empty"
    ):
        list(loader.epoch(0))
    Image.new("RGB", (64, 40)).save(Path(source.folder) / "0.png")
    again = BoxLoader(source, Letterbox((64, 64)), 4, shuffle=shuffle, max_bad=max_bad)
    assert sum(len(batch.images) for batch in again.epoch(0)) == (4 if shuffle else 8 - broken)


def test_pictures_of_which_nothing_is_left_give_no_batch(source: CocoSource) -> None:
    for i in range(3):
        (Path(source.folder) / f"{i}.png").write_bytes(b"")
    batches = list(BoxLoader(source, Letterbox((64, 64)), 3, shuffle=False).epoch(0))
    assert [batch.index.tolist() for batch in batches] == [[3, 4, 5], [6]]
