"""transforms: Pillow's pixels, torchvision's sampling rule, and nothing random but the generator."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from remask.errors import UserError
from remask.images.decoding import decode
from remask.images.sources.opening import open_source
from remask.images.transforms import CentreCrop, RandomCropFlip, SimpleCropFlip, mirror, resize


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=seeded(0))


def test_resize_is_pillows_bicubic_on_real_pictures(shared: Path) -> None:
    source = open_source(str(shared / "data/imagenet1000"), limit=40)
    crop = RandomCropFlip((224, 224), flip=False)
    off, pixels, worst = 0, 0, 0
    for i in range(len(source)):
        image = decode(source.read(i))
        draws = torch.rand(23, generator=seeded(i), dtype=torch.float64).tolist()
        top, left, height, width = crop._box(*image.shape[-2:], draws)
        cut = image[:, top : top + height, left : left + width]
        right = Image.fromarray(cut.permute(1, 2, 0).contiguous().numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        away = (crop(image, seeded(i)).int() - torch.from_numpy(np.array(right)).permute(2, 0, 1).int()).abs()
        off, pixels, worst = off + int((away > 1).sum()), pixels + away.numel(), max(worst, int(away.max()))
        assert away.float().mean() < 0.01
    # torch keeps its weights in 16 bits: a few pixels in a million are off by one in both passes
    assert worst <= 2
    assert off / pixels < 2e-5


@pytest.mark.parametrize("size", [(281, 223), (300, 260), (500, 375), (375, 500), (180, 200), (231, 224), (224, 250)])
def test_the_pass_that_pillow_takes_first_is_taken_first(size: tuple[int, int]) -> None:
    image = (noise(*size) > 127).to(torch.uint8) * 255  # overshoot is clamped between the passes
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    right = torch.from_numpy(np.array(picture.resize((224, 224), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    assert (resize(image, (224, 224)).int() - right.int()).abs().max() <= 2


def test_resize_in_one_pass_is_torchvisions() -> None:
    for channels in (1, 3, 6):
        image = noise(50, 70, channels)
        right = v2.functional.resize(image, [32, 40], InterpolationMode.BICUBIC, antialias=True)
        assert torch.equal(resize(image, (32, 40)), right)


def test_the_generator_decides_everything() -> None:
    crop, image = RandomCropFlip((32, 32)), noise(60, 80)
    before = torch.get_rng_state()
    first = crop(image, seeded(5))
    assert torch.equal(first, crop(image, seeded(5)))
    assert not torch.equal(first, crop(image, seeded(6)))
    assert torch.equal(before, torch.get_rng_state())
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8


def boxes(crop: RandomCropFlip, rows: int, columns: int, n: int = 3000) -> torch.Tensor:
    generator = seeded(1)
    draw = lambda: torch.rand(23, generator=generator, dtype=torch.float64).tolist()  # noqa: E731
    return torch.tensor([crop._box(rows, columns, draw()) for _ in range(n)], dtype=torch.float64)


def test_crops_follow_the_rule_of_random_resized_crop() -> None:
    top, left, height, width = boxes(RandomCropFlip((32, 32), scale=(0.2, 0.5)), 300, 400).unbind(1)
    area, ratio = height * width / (300 * 400), width / height
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    assert 0.19 < area.min() < 0.21
    assert 0.49 < area.max() < 0.51
    assert abs(area.mean() - 0.35) < 0.01  # uniform in area
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert abs(ratio.log().mean()) < 0.01  # uniform in the logarithm of the ratio
    assert top.max() + height[top.argmax()] > 295  # the last rows are reached


def test_crops_have_torchvisions_distribution() -> None:
    ours = boxes(RandomCropFlip((32, 32)), 100, 150)
    torch.manual_seed(0)
    image = torch.zeros(1, 100, 150)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    for column in range(4):
        a, b = ours[:, column].sort().values, theirs[:, column].double().sort().values
        assert (a - b).abs().mean() < 2.0, "pixels between the quantiles"


def test_a_strip_falls_back_to_its_centre() -> None:
    box = boxes(RandomCropFlip((32, 32), scale=(0.9, 1.0)), 20, 2000, 20)
    assert (box[:, 2] == 20).all()
    assert (box[:, 3] == round(20 * 4 / 3)).all()
    assert (box[:, 1] == (2000 - round(20 * 4 / 3)) // 2).all()
    assert RandomCropFlip((32, 32))(noise(1, 900), seeded(0)).shape == (3, 32, 32)
    assert RandomCropFlip((32, 32))(noise(900, 1), seeded(0)).shape == (3, 32, 32)


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (33, 32), (300, 399), (32, 32), (64, 400)])
def test_a_crop_of_the_whole_area_is_the_same_in_every_draw(shape: tuple[int, int]) -> None:
    for ratio in ((3 / 4, 4 / 3), (1.0, 1.0)):
        found = boxes(RandomCropFlip((32, 32), (1.0, 1.0), ratio), *shape, 300)
        assert (found == found[0]).all()
        top, left, height, width = found[0].tolist()
        assert (top, left) == ((shape[0] - height) // 2, (shape[1] - width) // 2)
        assert height == shape[0] or width == shape[1]


def test_the_ratio_is_in_units_of_the_outputs_own() -> None:
    _, _, height, width = boxes(RandomCropFlip((96, 160)), 900, 900).unbind(1)
    stretch = (width / 160) / (height / 96)
    assert stretch.min() > 0.74
    assert stretch.max() < 1.35


def test_flips_half_of_the_time() -> None:
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[..., :4] = 255
    crop = RandomCropFlip((8, 8), scale=(1.0, 1.0), ratio=(1.0, 1.0))
    flipped = sum(bool(crop(image, seeded(i))[0, 0, 0] == 0) for i in range(400))
    assert 160 < flipped < 240
    never = RandomCropFlip((8, 8), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    assert all(torch.equal(never(image, seeded(i)), image) for i in range(40))


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (230, 231), (100, 90), (256, 256), (260, 900)])
def test_centre_crop_is_torchvisions(size: tuple[int, int]) -> None:
    image = noise(*size)
    theirs = v2.Compose([v2.Resize(256, InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    assert torch.equal(CentreCrop((224, 224))(image), theirs(image))


def test_centre_crop_leaves_a_picture_of_its_size_alone() -> None:
    image = noise(32, 32)
    assert torch.equal(CentreCrop((32, 32))(image, seeded(0)), image)
    assert CentreCrop((96, 160))(noise(200, 210)).shape == (3, 96, 160)
    assert CentreCrop((32, 32))(noise(8, 8)).shape == (3, 32, 32)
    whole = CentreCrop((10, 20), ratio=1.0)(noise(20, 40))
    assert torch.equal(whole, resize(noise(20, 40), (10, 20)))


def test_centre_crop_of_a_very_long_strip_stays_small() -> None:
    strip = torch.zeros(3, 16, 400_000, dtype=torch.uint8)
    strip[:, :, 199_000:201_000] = 200
    assert (CentreCrop((224, 224))(strip) == 200).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomCropFlip((0, 32)),
        lambda: RandomCropFlip((32, 32), scale=(0.0, 1.0)),
        lambda: RandomCropFlip((32, 32), scale=(0.5, 0.2)),
        lambda: RandomCropFlip((32, 32), ratio=(0.0, 1.0)),
        lambda: CentreCrop((32, 32), ratio=0.0),
        lambda: CentreCrop((32, 0)),
    ],
)
def test_mistakes(make: object) -> None:
    with pytest.raises(UserError, match="need"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_mirror_is_a_flip_of_any_type(dtype: torch.dtype) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (2, 3, 4, 5)).astype(np.uint16)
    image = torch.from_numpy(values).to(dtype)
    assert mirror(image).dtype == dtype
    assert np.array_equal(mirror(image).numpy(), image.numpy()[..., ::-1])
    assert np.array_equal(mirror(image[0, :, :, 1:4]).numpy(), image.numpy()[0, :, :, 1:4][..., ::-1])


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("image", [(60, 80), (90, 50), (32, 32), (20, 500)])
def test_a_simple_crop_is_resized_padded_and_cut(image: tuple[int, int], size: tuple[int, int]) -> None:
    """torchvision's steps at the drawn place; every column of the long side can be reached."""
    picture, crop = noise(*image), SimpleCropFlip(size, padding=4)
    for seed in range(8):
        down, right, along, flipped = torch.rand(4, generator=seeded(seed), dtype=torch.float64).tolist()
        rows, columns = image
        if columns > 4 * max(size) / min(size) * rows:  # a strip: a piece of it, at a random place
            wide = int(np.ceil(rows * 4 * max(size) / min(size)))
            left = int((columns - wide) * along)
            piece = picture[:, :, left : left + wide]
        else:
            piece = picture
        rows, columns = piece.shape[-2:]
        scale = max(size[0] / rows, size[1] / columns)
        tall, wide = max(int(rows * scale + 1e-9), size[0]), max(int(columns * scale + 1e-9), size[1])
        padded = v2.functional.pad(resize(piece, (tall, wide)), 4, padding_mode="reflect")
        top, left = int(down * (tall + 8 - size[0] + 1)), int(right * (wide + 8 - size[1] + 1))
        expected = padded[:, top : top + size[0], left : left + size[1]]
        assert torch.equal(crop(picture, seeded(seed)), expected.flip(-1) if flipped < 0.5 else expected)


def test_simple_crops_of_deep_pictures_and_without_padding() -> None:
    deep = noise(40, 40).to(torch.uint16) * 200
    found = SimpleCropFlip((40, 40), padding=3, flip=False)(deep, seeded(0))
    eight = SimpleCropFlip((40, 40), padding=3, flip=False)(noise(40, 40), seeded(0))
    assert found.dtype == torch.uint16
    assert torch.equal(found.int(), eight.int() * 200)
    assert torch.equal(SimpleCropFlip((40, 40), padding=0, flip=False)(noise(40, 40), seeded(0)), noise(40, 40))
    with pytest.raises(UserError, match="padding of 8 px"):
        SimpleCropFlip((8, 16), padding=8)
