"""loader: a pure function of (seed, epoch, position), with broken pictures among them and any number of workers."""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from remask.errors import UserError
from remask.images.loading.image_cache import ImageCache
from remask.images.loading.loader import Batch, Loader, TooManyBad, iterate
from remask.images.sources.opening import Source, open_source
from remask.images.sources.subset import Subset
from remask.images.transforms import CentreCrop, RandomCropFlip
from remask.seeds import mix
from remask.training.distributed import World

CROP = RandomCropFlip((16, 16))


@dataclass
class Fake:
    """n pictures of known colour, PNG-encoded; some broken, some too small, some gone."""

    n: int
    broken: frozenset[int] = frozenset()
    small: frozenset[int] = frozenset()
    gone: frozenset[int] = frozenset()
    labels: list[int] | None = None
    classes: list[str] | None = None
    name: str = "fake"
    left_out: dict[str, int] = field(default_factory=dict)
    sizes: bool = False
    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return self.n

    def read(self, i: int) -> bytes:
        self.reads.append(i)
        if i in self.gone:
            raise FileNotFoundError(2, "No such file or directory")
        side = 5 if i in self.small else 20 + (i % 3 if self.sizes else 0)
        noise = np.random.default_rng(i).integers(0, 200, (side, side, 3), dtype=np.uint8)
        noise[0, 0] = i
        stream = io.BytesIO()
        Image.fromarray(noise).save(stream, "PNG", compress_level=0)
        return stream.getvalue()[: 60 if i in self.broken else None]

    def where(self, i: int) -> str:
        return f"fake {i}"


def same(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(torch.equal(x.images, y.images) and torch.equal(x.index, y.index) for x, y in pairs)


def index(batches: Iterable[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.index.tolist()]


def test_an_epoch_is_every_picture_once_in_full_batches() -> None:
    loader = Loader(Fake(50, labels=list(range(100, 150))), CROP, 8)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 6
    assert len(set(index(batches))) == 48
    for batch in batches:
        assert batch.images.shape == (8, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.labels is not None
        assert torch.equal(batch.labels, batch.index + 100)
    assert index(loader.epoch(0)) == index(batches)
    assert index(loader.epoch(1)) != index(batches)
    assert index(Loader(Fake(50), CROP, 8, seed=1).epoch(0)) != index(batches)


def test_the_crop_differs_by_epoch_and_position_and_nothing_else() -> None:
    one = Loader(Fake(12), CROP, 4, shuffle=False, seed=3)
    other = Loader(Fake(12), CROP, 6, shuffle=False, seed=3)
    images = torch.cat([batch.images for batch in one.epoch(2)])
    assert torch.equal(images, torch.cat([batch.images for batch in other.epoch(2)])), "the batch size changes nothing"
    assert not torch.equal(images, torch.cat([batch.images for batch in one.epoch(3)]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 4, 6])
def test_starting_in_mid_epoch_is_exact(workers: int, start: int) -> None:
    fake = Fake(50, broken=frozenset({7}), gone=frozenset({8, 30}), sizes=True)
    whole = list(Loader(fake, CROP, 8).epoch(5))
    assert same(whole[start:], Loader(fake, CROP, 8, workers=workers).epoch(5, start))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    fake = Fake(40, broken=frozenset({3, 4}), small=frozenset({39}))
    alone, together = Loader(fake, CROP, 8, min_side=6), Loader(fake, CROP, 8, min_side=6, workers=workers)
    before = torch.get_rng_state()
    for epoch in range(2):
        assert same(list(alone.epoch(epoch)), list(together.epoch(epoch)))
    assert torch.equal(before, torch.get_rng_state()), "nothing is drawn from the global stream"
    assert alone.bad == together.bad
    assert set(alone.bad) == {"fake 3", "fake 4", "fake 39"}


def test_cached_pictures_are_the_same_and_are_read_once() -> None:
    fake = Fake(30)
    kept, fresh = Loader(fake, CROP, 10), Loader(Fake(30), CROP, 10, cache_mb=0)
    assert same(list(kept.epoch(0)), list(fresh.epoch(0)))
    fake.reads.clear()
    assert same(list(kept.epoch(1)), list(fresh.epoch(1)))
    assert fake.reads == []


def test_shared_cache_and_its_limits() -> None:
    fake = Fake(9)
    pictures = ImageCache(fake, shared=True)
    first = pictures.get(4)
    fake.reads.clear()
    assert torch.equal(pictures.get(4), first)
    assert fake.reads == []
    assert torch.equal(first, ImageCache(fake, cache_mb=0).get(4))
    mixed = Fake(9, sizes=True)
    shared, nothing = ImageCache(mixed, shared=True), ImageCache(mixed, cache_mb=0)
    assert all(torch.equal(shared.get(i), nothing.get(i)) for i in (4, 5, 6, 4))
    mixed.reads.clear()
    assert all(torch.equal(shared.get(i), nothing.get(i)) for i in (4, 5))
    assert mixed.reads == [4, 5], "pictures of several sizes are shared as well"


@dataclass
class Counting:
    """A source that leaves a line in a file for each read, also from worker processes."""

    source: Source
    log: Path

    def __post_init__(self) -> None:
        self.name, self.labels, self.classes = self.source.name, self.source.labels, self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> bytes | np.ndarray:
        with open(self.log, "a") as file:
            file.write(f"{i}\n")
        return self.source.read(i)

    def where(self, i: int) -> str:
        return self.source.where(i)

    def numbers(self) -> list[int]:
        return sorted(int(line) for line in self.log.read_text().split())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sizes", [False, True])
def test_a_set_that_fits_is_decoded_once(workers: int, sizes: bool, tmp_path: Path) -> None:
    counting = Counting(Fake(40, sizes=sizes), tmp_path / "reads")
    loader = Loader(counting, CROP, 10, workers=workers, keep="ram")
    fresh = Loader(Fake(40, sizes=sizes), CROP, 10, keep="never")
    for epoch in range(2):
        assert same(list(loader.epoch(epoch)), list(fresh.epoch(epoch)))
    assert counting.numbers() == list(range(40))


def test_a_parquet_of_jpegs_is_decoded_once(shared: Path, tmp_path: Path) -> None:
    source = open_source(str(shared / "data/cifar10/test.parquet"), limit=200)
    counting = Counting(source, tmp_path / "reads")
    loader = Loader(counting, CROP, 50, workers=2)
    for epoch in range(2):
        list(loader.epoch(epoch))
    assert counting.numbers() == list(range(200))


def test_what_must_be_kept_and_has_no_room_is_a_mistake() -> None:
    many = Subset(Fake(9), [0] * 1000)
    with pytest.raises(UserError, match=r'data\.keep "ram".* remask data pack'):
        ImageCache(many, cache_mb=1, must=True)


def test_pictures_are_reduced_whatever_fits() -> None:
    """What a picture looks like is the recipe's business, not the memory's."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    fake = Fake(1)
    fake.read = lambda i: stream.getvalue()  # type: ignore[method-assign]
    for pictures in (ImageCache(fake), ImageCache(fake, cache_mb=0)):
        for _ in range(2):
            assert pictures.get(0, lambda rows, columns: 4).shape == (3, 80, 120)
        assert pictures.get(0).shape == (3, 320, 480)


@pytest.mark.parametrize("workers", [0, 2])
def test_several_crops_of_a_picture(workers: int) -> None:
    fake = Fake(24, broken=frozenset({5}))
    loader = Loader(fake, CROP, 8, crops=4, keep="never", workers=workers)
    fake.reads.clear()
    epochs = [list(loader.epoch(epoch)) for epoch in range(4)]
    assert len(loader) == 3
    seen = [index(epoch) for epoch in epochs]
    assert all(numbers[at : at + 4] == [numbers[at]] * 4 for numbers in seen for at in range(0, 24, 4))
    crops = Counter(i for numbers in seen for i in numbers)
    assert crops == {i: 4 for i in range(24) if i != 5} | {6: 8}, "four epochs see every picture, and 6 for 5"
    first = epochs[0][0].images
    assert len({image.numpy().tobytes() for image in first}) == 8, "every crop is another"
    assert same(epochs[1][1:], Loader(Fake(24, broken=frozenset({5})), CROP, 8, crops=4).epoch(1, 1))
    if not workers:
        assert len([i for i in fake.reads if i != 5]) == 24, "one decode for four crops"


def test_crops_are_those_of_their_positions() -> None:
    """The crop of a position does not depend on how many belong to a picture."""
    alone, several = (Loader(Fake(1), CROP, 4, crops=crops) for crops in (1, 4))
    assert same(list(alone.epoch(3)), list(several.epoch(3)))
    for wrong in (0, 3, 16):
        with pytest.raises(UserError, match="crops"):
            Loader(Fake(20), CROP, 8, crops=wrong)


def test_a_source_smaller_than_a_batch_is_gone_through_again() -> None:
    (batch,) = Loader(Fake(5), CROP, 12).epoch(0)
    assert len(batch.index) == 12
    assert sorted(batch.index[:5].tolist()) == sorted(batch.index[5:10].tolist()) == list(range(5))
    (short,) = Loader(Fake(5), CROP, 12, drop_last=False).epoch(0)
    assert sorted(short.index.tolist()) == list(range(5))


def test_bad_pictures_are_replaced_by_the_next_good_one_and_told_once() -> None:
    told: list[str] = []
    fake = Fake(20, broken=frozenset({0}), gone=frozenset({1}), small=frozenset({19}))
    loader = Loader(fake, CROP, 20, shuffle=False, min_side=16, report=told.append)
    for epoch in range(3):
        assert index(loader.epoch(epoch)) == [2, 2, *range(2, 19), 2]
    assert loader.bad["fake 1"] == "No such file or directory"
    assert loader.bad["fake 19"] == "5x5 is smaller than a 16-pixel patch"
    assert sorted(told) == sorted(f"{where}: {reason}" for where, reason in loader.bad.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad(workers: int) -> None:
    loader = Loader(Fake(40, broken=frozenset(range(10, 15))), CROP, 8, workers=workers)
    with pytest.raises(TooManyBad, match=r"of 40 images cannot be used, more than --max-bad 0.01.*bad_images.txt") as e:
        list(loader.epoch(0))
    assert len(e.value.bad) >= 4
    assert set(e.value.bad) <= {f"fake {i}" for i in range(10, 15)}
    assert str(e.value).count("fake") == 3
    with pytest.raises(TooManyBad):
        list(loader.epoch(1))
    assert len(index(Loader(Fake(40, broken=frozenset(range(10, 15))), CROP, 8, max_bad=0.125).epoch(0))) == 40


def test_three_of_few_are_allowed_unless_none_shall_be() -> None:
    fake = Fake(10, broken=frozenset({1, 2, 3}))
    assert len(index(Loader(fake, CROP, 10).epoch(0))) == 10
    with pytest.raises(TooManyBad, match="1 of 10"):
        list(Loader(fake, CROP, 10, max_bad=0.0).epoch(0))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_pictures_ends(workers: int, skip: bool) -> None:
    for n in (2, 30):
        fake = Fake(n, broken=frozenset(range(n)))
        with pytest.raises(TooManyBad, match=f"of {n} images"):
            list(Loader(fake, CROP, 4, max_bad=1.0, workers=workers, skip=skip, drop_last=False).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_iterate_skips_in_order(workers: int) -> None:
    fake = Fake(11, broken=frozenset({0, 4, 5}), labels=list(range(11)))
    batches = list(iterate(fake, CentreCrop((16, 16)), 2, workers=workers, max_bad=0.5))
    assert index(batches) == [1, 2, 3, 6, 7, 8, 9, 10]
    assert [len(batch.index) for batch in batches] == [1, 2, 2, 2, 1]
    assert [label for batch in batches if batch.labels is not None for label in batch.labels.tolist()] == index(batches)


def test_an_iterator_may_be_left_and_another_begun() -> None:
    for workers in (0, 2):
        loader = Loader(Fake(64), CROP, 4, workers=workers)
        whole = list(loader.epoch(0))
        for _ in range(3):
            first = next(iter(loader.epoch(0)))
            assert torch.equal(first.images, whole[0].images)
        one, other = loader.epoch(0), loader.epoch(0)
        assert all(torch.equal(next(one).images, next(other).images) for _ in range(5))


def test_a_folder_with_three_broken_files(shared: Path, tmp_path: Path) -> None:
    source = open_source(str(shared / "data/imagenet1000"), limit=20)
    for i in range(20):
        (tmp_path / f"{i:02}.jpg").write_bytes(source.read(i))  # type: ignore[arg-type]
    for name in ("truncated_half.jpg", "zero_byte.jpg", "html_404.jpg"):
        (tmp_path / name).write_bytes((shared / "data/nasty" / name).read_bytes())
    loader = Loader(open_source(str(tmp_path)), RandomCropFlip((96, 160)), 4, min_side=16)
    for epoch in range(2):
        assert all(batch.images.shape == (4, 3, 96, 160) for batch in loader.epoch(epoch))
    assert {Path(where).name for where in loader.bad} == {"truncated_half.jpg", "zero_byte.jpg", "html_404.jpg"}


def test_gray_and_many_channels() -> None:
    (batch,) = Loader(Fake(4), CROP, 4, channels=1).epoch(0)
    assert batch.images.shape == (4, 1, 16, 16)
    with pytest.raises(TooManyBad, match="where 6 are wanted"):
        list(Loader(Fake(4), CROP, 4, channels=6).epoch(0))


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}, {"max_bad": 1.5}])
def test_mistakes(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="batch size"):
        Loader(Fake(4), CROP, **{"batch_size": 4, **wrong})  # type: ignore[arg-type]


def test_mix_spreads_what_sums_would_confuse() -> None:
    seeds = {mix(seed, epoch, position, 2) for seed in range(8) for epoch in range(8) for position in range(200)}
    assert len(seeds) == 8 * 8 * 200
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == 8 * 8 * 200, "torch's generator takes the low 32 bits"
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert mix(-1) == mix(2**64 - 1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parts_of_all_processes_are_the_whole_batches(size: int) -> None:
    """Pictures and crops, with broken ones among them; batches of 7 are cut unevenly."""
    fake = Fake(40, broken=frozenset({5, 6}), sizes=True)
    whole = list(Loader(fake, CROP, 7).epoch(3, 1))
    parts = [list(Loader(fake, CROP, 7, share=World(rank, size).share).epoch(3, 1)) for rank in range(size)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert torch.equal(torch.cat([share.index for share in shares]), batch.index)


def test_what_another_process_could_not_use_counts() -> None:
    said: list[str] = []
    loader = Loader(Fake(40), CROP, 8, max_bad=0.05, report=said.append)
    loader.learn({3: "broken", 4: "gone"})
    loader.learn({3: "broken"})
    assert loader.unusable == {3: "broken", 4: "gone"}
    assert said == ["fake 3: broken", "fake 4: gone"]
    assert not {3, 4} & set(index(loader.epoch(0)))
    with pytest.raises(TooManyBad, match="4 of 40"):
        loader.learn({7: "gone", 8: "gone"})
