"""finetune/augment.py: timm's RandAugment and boxes under the picture's seed, noise where a box is erased."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm.data.auto_augment as official
import torch
from PIL import Image
from skimage.data import astronaut
from timm.data.random_erasing import RandomErasing
from torch import Generator, Tensor

from remask.downstream.finetune.augment import (
    POLICY,
    STRONGEST,
    ColorJitter,
    Erasing,
    EvalCrop,
    RandAugment,
    TrainAugment,
    drawn_seed,
    timm_draws,
)
from remask.errors import UserError
from remask.images.levels import Levels
from remask.images.loading.loader import Loader
from remask.images.sources.opening import open_source
from remask.images.transforms import CentreCrop, RandomCropFlip

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILL = (124, 116, 104)


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def photo(side: int = 64) -> Tensor:
    picture = Image.fromarray(astronaut()).resize((side + 16, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).clone()


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy().squeeze())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1)


@pytest.mark.parametrize("policy", [POLICY, "rand-m5-n3-p0.7-inc1", "rand-m9-mstd2-n4-inc1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_timms_under_the_same_seed(policy: str, channels: int) -> None:
    """Bit for bit, warped by bicubic interpolation as MAE has it set up, also in gray."""
    image, fill = photo()[:channels], FILL[:channels]
    hparams = {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC, "magnitude_max": 9.99}
    theirs, ours, changed = official.rand_augment_transform(policy, hparams), RandAugment(policy, fill), 0
    for seed in range(40):
        random.seed(drawn_seed(seeded(seed)))
        np.random.seed(drawn_seed(seeded(seed)))
        expected = as_tensor(theirs(as_pillow(image)))
        assert torch.equal(ours(image, seeded(seed)), expected)
        changed += not torch.equal(expected, image)
    assert changed > 20


def test_the_strongest_posterize_keeps_a_bit() -> None:
    """timm keeps none at a magnitude of 10, which Pillow 13 refuses."""
    policy = RandAugment("rand-m10-n2-p1-inc1", FILL)
    assert all(op.magnitude_max == STRONGEST for op in policy.transform.ops)
    posterize = next(op for op in policy.transform.ops if op.name == "PosterizeIncreasing")
    assert torch.equal(as_tensor(posterize(as_pillow(photo()))), photo() // 128 * 128)


def test_policies() -> None:
    texts = (
        "rand-m9-mstd0.5", "augmix-m3", "rand-m9-x2-inc1", "rand-m-inc1", "rand-m11-inc1", "rand-n0-inc1",
        "rand-m9-p1.5-inc1", "rand-m7.5-inc1", "rand-m9-inc0", "rand-m9-inc1-t3a", "rand",
    )  # fmt: skip
    for text in texts:
        with pytest.raises(UserError, match="randaugment"):
            RandAugment(text, FILL)


def test_the_generators_of_the_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn from those that all threads share, and timm has its own again afterwards."""
    for name in ("random", "gauss", "uniform", "randint", "seed", "setstate"):
        monkeypatch.setattr(random, name, None)
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].tolist()
    augment = TrainAugment((32, 32), MEAN, STD, randaugment="rand-m9-mstd0.5-p1-inc1", erasing=1.0)
    assert not torch.equal(augment(photo(), seeded(0)), augment.crop(photo(), seeded(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpys
    with pytest.raises(ZeroDivisionError), timm_draws(0):
        raise ZeroDivisionError
    assert official.random is random


def test_threads_do_not_disturb_each_other() -> None:
    image, augment = photo(), TrainAugment((32, 32), MEAN, STD, erasing=0.5)
    alone = [augment(image, seeded(seed)) for seed in range(60)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: augment(image, seeded(seed)), range(60)))
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))


def test_a_deeper_picture_among_ones_of_8_bits() -> None:
    image, policy = photo(), RandAugment(POLICY, FILL)
    deep = (image.int() * 257).to(torch.uint16)
    assert all(torch.equal(policy(deep, seeded(i)), policy(image, seeded(i))) for i in range(20))


def test_erased_boxes() -> None:
    image = torch.full((3, 60, 80), 77, dtype=torch.uint8)
    erasing, theirs, areas, noise = Erasing(0.25, MEAN, STD), RandomErasing(0.25, device="cpu"), [], []
    for seed in range(1000):
        changed = erasing(image, seeded(seed))
        random.seed(drawn_seed(seeded(seed)))
        box = theirs(torch.ones(1, 60, 80))[0] == 0
        assert (changed[:, ~box] == 77).all()
        if box.any():
            areas.append(float(box.float().mean()))
            noise.append(changed[:, box].float() / 255)
    assert (image == 77).all()
    assert len(areas) / 1000 == pytest.approx(0.25, abs=0.04)
    assert 0.015 < min(areas) < 0.05
    assert 0.25 < max(areas) < 0.35
    values = torch.cat(noise, dim=1)
    assert torch.allclose(values.mean(1), torch.tensor(MEAN), atol=0.01)
    assert torch.allclose(values.std(1), torch.tensor(STD), atol=0.02)  # clipped: a little narrower


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float32])
def test_erasing_deeper_pictures(dtype: torch.dtype) -> None:
    levels = Levels(0.0, 4095.0)
    image = torch.full((2, 60, 80), 4000.0).to(dtype)
    changed = Erasing(1.0, (0.5, 0.25), (0.1, 0.1), levels)(image, seeded(1))
    erased = (changed.float() != 4000).all(0)
    assert changed.dtype == dtype
    assert (changed.float()[:, ~erased] == 4000).all()
    expected = 4095 * torch.tensor([0.5, 0.25])
    assert torch.allclose(changed.float()[:, erased].mean(1), expected, atol=60)


def test_jitter_keeps_to_its_range() -> None:
    image, generator = torch.full((3, 8, 8), 100, dtype=torch.uint8), seeded(0)
    found = [float(ColorJitter(0.4)(image, generator).float().mean()) for _ in range(200)]  # of a flat picture only
    assert 60 - 1 <= min(found) < 66  # the brightness changes
    assert 134 < max(found) <= 140 + 1
    assert torch.equal(ColorJitter(0.0)(photo(), generator), photo())


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
    assert kinds == [ColorJitter, Erasing]


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
    by_workers = Loader(open_source("digits", limit=8), TrainAugment((16, 16), MEAN, STD), 4, seed=3, workers=2)
    assert torch.equal(first, torch.cat([batch.images for batch in by_workers.epoch(2)]))


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
