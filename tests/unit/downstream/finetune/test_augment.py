"""images/augment.py: timm's operations and chances, noise where a box is erased, nothing random but the generator."""

import pickle

import numpy as np
import pytest
import timm.data.auto_augment as official
import torch
from PIL import Image
from skimage.data import astronaut
from torch import Generator, Tensor

from remask.downstream.finetune.augment import (
    OPERATIONS,
    POLICY,
    Erasing,
    EvalCrop,
    PictureJitter,
    RandAugment,
    TrainAugment,
    rand_augment,
)
from remask.errors import UserError
from remask.images.loading.loader import Loader
from remask.images.sources.opening import open_source
from remask.images.transforms import CentreCrop, RandomCropFlip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124.0, 116.0, 104.0)
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
THEIRS = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel", "AutoContrast": "AutoContrast"}
INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def photo(side: int = 64) -> Tensor:
    picture = Image.fromarray(astronaut()).resize((side + 16, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).clone()


def timms(name: str, image: Tensor, strength: float, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """timm's operation of that name, its coin for the sign fixed, on a Pillow picture."""
    name = THEIRS.get(name, name + "Increasing" if name in INCREASING else name)
    monkeypatch.setattr(official.random, "random", lambda: 0.9 if strength < 0 else 0.1)
    hparams = {"img_mean": tuple(int(f) for f in FILL), "interpolation": Image.Resampling.BILINEAR}
    operation = official.AugmentOp(name, 1.0, 10 * abs(strength), hparams)
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(operation(picture))).permute(2, 0, 1)


def test_the_operations_are_timms() -> None:
    ours = {THEIRS.get(name, name + "Increasing" if name in INCREASING else name) for name in OPERATIONS}
    assert ours == set(official._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("strength", [-0.9, -0.31, 0.0, 0.47, 0.99])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_does_what_timms_does(name: str, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo()
    ours, theirs = OPERATIONS[name](image, strength, FILL), timms(name, image, strength, monkeypatch)
    away = (ours.int() - theirs.int()).abs().float()
    if name in GEOMETRIC:  # borders of what is uncovered are blended with the fill, in Pillow they are not
        assert away.median() <= 1
        assert (away > 8).float().mean() < 0.06
    else:
        assert away.max() <= 2  # Pillow rounds its greys
    if strength not in (0.0, -0.0) and name not in ("AutoContrast", "SolarizeAdd"):
        assert not torch.equal(ours, image)


def test_no_bits_are_black() -> None:
    """At the strongest, where timm meets an error of newer Pillows, and met black pictures of older ones."""
    assert not OPERATIONS["Posterize"](photo(), 1.0, FILL).any()


def test_policies() -> None:
    assert rand_augment(POLICY, FILL) == RandAugment(FILL, 9.0, 0.5, 2, 0.5)
    assert rand_augment("rand-m5-n3-p0.7-inc1", FILL) == RandAugment(FILL, 5.0, 0.0, 3, 0.7)
    assert rand_augment("off", FILL) is None
    for text in ("rand-m9-mstd0.5", "augmix-m3", "rand-m9-x2-inc1", "rand-m-inc1", "rand-m11-inc1", "rand-n0-inc1"):
        with pytest.raises(UserError, match="randaugment"):
            rand_augment(text, FILL)


def test_how_often_and_how_strongly(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[float]] = {name: [] for name in OPERATIONS}
    for name in OPERATIONS:

        def note(image: Tensor, strength: float, fill: tuple[float, ...], name: str = name) -> Tensor:
            seen[name].append(strength)
            return image

        monkeypatch.setitem(OPERATIONS, name, note)
    policy, generator, image = RandAugment(FILL), seeded(0), photo(8)
    for _ in range(3000):
        policy(image, generator)
    strengths = torch.tensor([strength for found in seen.values() for strength in found])
    assert len(strengths) / 3000 == pytest.approx(1.0, abs=0.06)  # 2 operations, each with chance one half
    assert all(len(found) / len(strengths) == pytest.approx(1 / 15, abs=0.02) for found in seen.values())
    assert float((strengths > 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(strengths.abs().mean()) == pytest.approx(0.9, abs=0.01)
    assert float(strengths.abs().std()) == pytest.approx(0.05, abs=0.01)
    assert strengths.abs().max() <= 1


def test_erased_boxes() -> None:
    image = torch.full((3, 60, 80), 77, dtype=torch.uint8)
    erasing, generator, areas, noise = Erasing(0.25, MEAN, STD), seeded(0), [], []
    for _ in range(1000):
        changed = erasing(image, generator)
        rows, columns = ((changed != 77).any(0).any(dim).nonzero().flatten() for dim in (1, 0))
        if len(rows):
            box = changed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            areas.append(box[0].numel() / image[0].numel())
            noise.append(box.flatten(1).float() / 255)
    assert (image == 77).all()
    assert len(areas) / 1000 == pytest.approx(0.25, abs=0.04)
    assert 0.015 < min(areas) < 0.05
    assert 0.25 < max(areas) < 0.35
    values = torch.cat(noise, dim=1)
    assert torch.allclose(values.mean(1), torch.tensor(MEAN), atol=0.01)
    assert torch.allclose(values.std(1), torch.tensor(STD), atol=0.02)  # clipped: a little narrower


def test_jitter_keeps_to_its_range() -> None:
    image, generator = torch.full((3, 8, 8), 100, dtype=torch.uint8), seeded(0)
    found = [float(PictureJitter(0.4)(image, generator).float().mean()) for _ in range(200)]  # of a flat picture only
    assert 60 - 1 <= min(found) < 66  # the brightness changes
    assert 134 < max(found) <= 140 + 1
    assert torch.equal(PictureJitter(0.0)(photo(), generator), photo())


def test_the_whole_is_a_function_of_the_generator() -> None:
    augment, image, state = TrainAugment((32, 48), MEAN, STD, erasing=0.5), photo(), torch.get_rng_state()
    found = [augment(image, seeded(seed)) for seed in range(20)]
    assert all(one.shape == (3, 32, 48) and one.dtype == torch.uint8 for one in found)
    again = [pickle.loads(pickle.dumps(augment))(image, seeded(seed)) for seed in range(20)]
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert torch.equal(image, photo())
    assert torch.equal(torch.get_rng_state(), state)


def test_without_augmentation_it_is_the_crop() -> None:
    plain = TrainAugment((32, 32), MEAN, STD, scale=(0.3, 1.0), randaugment=None, erasing=0.0)
    crop = RandomCropFlip((32, 32), (0.3, 1.0))
    assert all(torch.equal(plain(photo(), seeded(i)), crop(photo(), seeded(i))) for i in range(5))
    assert plain.steps == TrainAugment((32, 32), MEAN, STD, randaugment="off", erasing=0.0).steps == []


def test_randaugment_replaces_jitter() -> None:
    kinds = [type(step) for step in TrainAugment((32, 32), MEAN, STD, jitter=0.4).steps]
    assert kinds == [RandAugment, Erasing]
    kinds = [type(step) for step in TrainAugment((32, 32), MEAN, STD, jitter=0.4, randaugment="off").steps]
    assert kinds == [PictureJitter, Erasing]


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(channels: int) -> None:
    image = photo()[:1].expand(channels, -1, -1).contiguous()
    policy = POLICY if channels == 1 else None
    augment = TrainAugment((32, 32), (0.5,) * channels, (0.25,) * channels, randaugment=policy, erasing=1.0)
    assert all(augment(image, seeded(i)).shape == (channels, 32, 32) for i in range(15))


def test_in_a_loader() -> None:
    loader = Loader(open_source("digits", limit=8), TrainAugment((16, 16), MEAN, STD), 4, seed=3)
    first, second = (torch.cat([batch.images for batch in loader.epoch(2)]) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (8, 3, 16, 16)
    later = torch.cat([batch.images for batch in loader.epoch(2, start=1)])
    assert torch.equal(first[4:], later)


@pytest.mark.parametrize(("size", "given", "ratio"), [(224, None, 0.875), (256, None, 1.0), (64, 0.5, 0.5)])
def test_evaluation_crop(size: int, given: float | None, ratio: float) -> None:
    image = photo(300)
    expected = CentreCrop((size, size), ratio)(image)
    assert torch.equal(EvalCrop((size, size), given)(image), expected)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"erasing": 1.5}, "erasing 1.5"),
        ({"jitter": -1.0}, "jitter -1"),
        ({"randaugment": "rand-m9"}, "randaugment"),
        ({"scale": (0.0, 1.0)}, "crop scale"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "2 channels"),
    ],
    ids=str,
)
def test_mistakes(keys: dict, line: str) -> None:
    with pytest.raises(UserError, match=line):
        TrainAugment(**{"size": (32, 32), "mean": MEAN, "std": STD, **keys})
