"""paired: picture and mask stay on each other, and batches are a function of (seed, epoch, position)."""

import colorsys
import io
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator, Tensor

from remask.downstream.segment.pairs import IGNORE, PairBatch, PairLoader, ScaleCropFlip, covering, full_pairs, nearest
from remask.downstream.segment.photometric import COLOURS, distorted
from remask.errors import UserError
from remask.images.decoding import BadImage
from remask.images.loading.loader import TooManyBad

PLAIN = ScaleCropFlip((24, 32), photometric=False)


def scene(rows: int, columns: int, seed: int = 0, block: int = 16) -> np.ndarray:
    """A mask of blocks of classes 0 to 4."""
    cells = np.random.default_rng(seed).integers(0, 5, (-(-rows // block), -(-columns // block)))
    return np.kron(cells, np.ones((block, block)))[:rows, :columns].astype(np.uint8)


def of_mask(mask: np.ndarray) -> np.ndarray:
    """A picture that shows its mask: class times 50 in every channel."""
    return np.repeat(mask[..., None] * 50, 3, axis=2).astype(np.uint8)


@dataclass
class Fake:
    """Pictures that show their masks; some broken, some with a mask of another size."""

    n: int
    broken: frozenset[int] = frozenset()
    misfit: frozenset[int] = frozenset()
    tall: frozenset[int] = frozenset()
    classes: list[str] = field(default_factory=lambda: list("abcde"))
    palette: list[tuple[int, int, int]] = field(default_factory=list)
    ignore: int = IGNORE
    name: str = "fake"

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> tuple[bytes, np.ndarray]:
        if i in self.broken:
            raise BadImage("its mask is broken")
        mask = scene(64 if i in self.tall else 40, 48, i)
        stream = io.BytesIO()
        Image.fromarray(of_mask(mask)).save(stream, "PNG", compress_level=0)
        return stream.getvalue(), mask[1:] if i in self.misfit else mask

    def where(self, i: int) -> str:
        return f"fake {i}"


def same(a: list[PairBatch], b: list[PairBatch]) -> bool:
    pairs = [parts for one, other in zip(a, b, strict=False) for parts in zip(one, other, strict=True)]
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in pairs)


def agree(image: Tensor, mask: Tensor) -> float:
    """Share of labelled pixels whose picture shows their class."""
    kept = mask != IGNORE
    return float((image[0][kept].float().div(50).round() == mask[kept]).float().mean())


@pytest.mark.parametrize(("rows", "columns"), [(96, 128), (20, 300), (24, 32), (7, 5), (200, 31)])
def test_picture_and_mask_are_cut_alike(rows: int, columns: int) -> None:
    mask = scene(rows, columns)
    image, labels = torch.from_numpy(of_mask(mask)).permute(2, 0, 1), torch.from_numpy(mask)
    shares, moved = list[float](), list[float]()
    for seed in range(20):
        picture, cut = PLAIN(image, labels, Generator().manual_seed(seed))
        assert picture.shape == (3, 24, 32)
        assert cut.shape == (24, 32)
        assert bool((torch.tensor(PLAIN.fill) == picture[:, cut == IGNORE].T).all()), (
            "padding has the fill and no label"
        )
        shares.append(agree(picture, cut))
        moved.append(agree(picture.roll(6, -1), cut))
    assert min(shares) > 0.6, "edges are soft"
    assert sum(shares) / 20 > 0.85
    assert sum(moved) < sum(shares) - 1 or rows < 10, "a shift would be noticed"


def test_flips_are_of_both_and_of_half() -> None:
    ramp = torch.arange(48, dtype=torch.uint8).expand(40, 48)
    crop, flipped = ScaleCropFlip((24, 32), scale=(1, 1), photometric=False), 0
    for seed in range(40):
        image, mask = crop((ramp * 5).expand(3, -1, -1), ramp, Generator().manual_seed(seed))
        falls = bool(mask[0, 0] > mask[0, -1])
        assert falls == bool(image[0, 0, 0] > image[0, 0, -1])
        flipped += falls
    assert 10 < flipped < 30
    assert ScaleCropFlip((24, 32), flip=False)(ramp.expand(3, -1, -1), ramp, Generator())[1][0, 0] < 48


@pytest.mark.parametrize(
    ("picture", "crop", "times"),
    [
        ((683, 1024), (512, 512), 512 / 683),
        ((1024, 683), (512, 512), 512 / 683),
        ((300, 3000), (512, 512), 2048 / 3000),
        ((360, 480), (176, 240), 0.5),
        ((100, 100), (50, 200), 2.0),
    ],
)
def test_scale_one_just_covers_the_crop(picture: tuple[int, int], crop: tuple[int, int], times: float) -> None:
    assert covering(picture, crop) == pytest.approx(times)


def test_small_scales_show_all_and_pad_at_the_right_and_below() -> None:
    mask = torch.from_numpy(scene(48, 64))
    image, cut = ScaleCropFlip((24, 32), scale=(0.5, 0.5), flip=False, photometric=False)(
        torch.from_numpy(of_mask(mask.numpy())).permute(2, 0, 1), mask, Generator()
    )
    assert torch.equal(cut[:12, :16], nearest(mask, (12, 16)))
    assert bool((cut[12:] == IGNORE).all() and (cut[:, 16:] == IGNORE).all())
    assert image[:, -1, -1].tolist() == [124, 116, 104]


def test_crops_filled_by_one_class_are_drawn_again() -> None:
    mask = torch.zeros(64, 256, dtype=torch.uint8)
    mask[:, 192:] = 1
    mask[:8] = IGNORE
    image = mask.expand(3, -1, -1)
    mixed = dict.fromkeys((0.75, 1.0), 0)
    for ratio in mixed:
        crop = ScaleCropFlip((32, 32), scale=(1.0, 1.0), cat_max_ratio=ratio, photometric=False)
        for seed in range(60):
            counts = torch.bincount(crop(image, mask, Generator().manual_seed(seed))[1].flatten(), minlength=2)[:2]
            mixed[ratio] += int(counts.min() > 0 and counts.max() < 0.8 * counts.sum())
    assert mixed[0.75] > 40 > 20 > mixed[1.0]


def test_nearest_is_pillows() -> None:
    mask = scene(37, 53, block=5)
    for height, width in ((80, 20), (11, 99), (37, 53)):
        expected = np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        assert nearest(torch.from_numpy(mask), (height, width)).tolist() == expected.tolist()


def draws(**given: float) -> list[float]:
    """Numbers for `distorted` that do nothing, but for those given by place, as n0=…"""
    values = [0.9, 0.5, 0.9, 0.5, 0.9, 0.9, 0.5, 0.9, 0.5]
    for place, value in given.items():
        values[int(place[1:])] = value
    assert len(values) == COLOURS
    return values


def test_photometric_distortion_part_by_part() -> None:
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8, generator=Generator().manual_seed(0))
    x = image.double()
    assert torch.equal(distorted(image, draws()), image)
    assert torch.equal(distorted(image, draws(n0=0.1, n1=1.0)), (x + 32).clamp(0, 255).to(torch.uint8))
    assert torch.equal(distorted(image, draws(n2=0.1, n3=1.0)), (x * 1.5).clamp(0, 255).round().to(torch.uint8))
    first, last = draws(n0=0.1, n1=1.0, n2=0.1, n3=0.0, n4=0.1), draws(n0=0.1, n1=1.0, n2=0.1, n3=0.0)
    assert torch.equal(distorted(image, first), distorted(image, last)), "brightness comes before both"
    for factor in (0.5, 1.5):
        found = distorted(image, draws(n5=0.1, n6=factor - 0.5)).double()
        for y, z in np.ndindex(4, 5):
            hue, saturation, value = colorsys.rgb_to_hsv(*(x[:, y, z] / 255).tolist())
            expected = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)
            assert found[:, y, z].tolist() == pytest.approx([255 * c for c in expected], abs=0.51)
    turned = distorted(image, draws(n7=0.1, n8=1.0)).double()
    for y, z in np.ndindex(4, 5):
        hue, saturation, value = colorsys.rgb_to_hsv(*(x[:, y, z] / 255).tolist())
        expected = colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation, value)
        assert turned[:, y, z].tolist() == pytest.approx([255 * c for c in expected], abs=0.6)
    two = image[:2]
    assert torch.equal(distorted(two, draws(n5=0.1, n6=1.0, n7=0.1, n8=1.0)), two), "hue is of three channels"


def test_an_epoch_is_a_function_of_seed_epoch_and_position() -> None:
    fake, crop = Fake(22, broken=frozenset({7}), misfit=frozenset({8})), ScaleCropFlip((24, 32))
    lines: list[str] = []
    loader = PairLoader(fake, crop, 4, seed=3, report=lines.append)
    before = torch.get_rng_state()
    whole = list(loader.epoch(2))
    assert len(whole) == len(loader) == 5
    assert whole[0].images.shape == (4, 3, 24, 32)
    assert (whole[0].labels.shape, whole[0].labels.dtype) == ((4, 24, 32), torch.uint8)
    assert sorted(lines) == ["fake 7: its mask is broken", "fake 8: its mask is of another size: 48x39 and not 48x40"]
    assert set(loader.bad) == {"fake 7", "fake 8"}
    for workers, start in ((0, 3), (2, 0), (2, 4)):
        other = PairLoader(fake, crop, 4, seed=3, workers=workers)
        assert same(list(other.epoch(2, start)), whole[start:])
    assert not same(list(loader.epoch(3)), whole)
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn from the global stream"


def test_too_many_bad_pairs_end_the_run() -> None:
    loader = PairLoader(Fake(20, broken=frozenset(range(5))), PLAIN, 4)
    with pytest.raises(TooManyBad, match="its mask is broken"):
        list(loader.epoch(0))


def test_whole_pairs_come_in_order_and_in_batches_of_one_size() -> None:
    fake = Fake(9, broken=frozenset({1}), tall=frozenset({4, 5}))
    batches = list(full_pairs(fake, 3))
    assert [batch.index.tolist() for batch in batches] == [[0, 2, 3], [4, 5], [6, 7, 8]]
    assert [tuple(batch.labels.shape[1:]) for batch in batches] == [(40, 48), (64, 48), (40, 48)]
    assert torch.equal(batches[1].labels[0], torch.from_numpy(scene(64, 48, 4)))
    assert all(agree(i, m) == 1 for batch in batches for i, m in zip(batch.images, batch.labels, strict=True))


@pytest.mark.parametrize("wrong", [{"size": (0, 3)}, {"scale": (2.0, 1.0)}, {"cat_max_ratio": 0.0}])
def test_wrong_settings(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(UserError):
        ScaleCropFlip(**{"size": (8, 8), **wrong})  # type: ignore[arg-type]
