"""images/hold_out.py: some of every class is held out, from two pictures on; the plain fifth where it does that."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remask.downstream.build import split
from remask.errors import UserError
from remask.images.sources.hold_out import fifth, hold_out, split_source
from remask.images.sources.left_out import notes
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset


def order(n: int, seed: int = 0) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=60), seed=st.integers(0, 9))
def test_every_class_is_learned_and_every_one_of_two_is_tested(labels: list[int], seed: int) -> None:
    found = hold_out(order(len(labels), seed), labels)
    assert sorted(found.train + found.test) == list(range(len(labels)))
    assert found == hold_out(order(len(labels), seed), labels)
    learned, tested = (Counter(labels[i] for i in numbers) for numbers in (found.train, found.test))
    for label, count in Counter(labels).items():
        assert learned[label] >= 1
        assert tested[label] >= (count > 1)
        assert (label in found.untested) == (tested[label] == 0)


@pytest.mark.parametrize("n", [100, 103, 1797])
def test_the_plain_fifth_stays_where_it_has_every_class(n: int) -> None:
    """Bit for bit what was held out before classes were looked at."""
    labels, numbers = [i % 3 for i in range(n)], order(n)
    assert hold_out(numbers, labels) == fifth(numbers) == (numbers[n // 5 :], numbers[: n // 5], [])
    assert hold_out(numbers)[:2] == fifth(numbers)[:2]


def test_a_fifth_of_each_class_where_the_plain_one_lacks_some() -> None:
    labels = [0] * 50 + [1] * 10 + [2] * 2 + [3]
    found = hold_out([62, *range(62)], labels)  # the plain fifth would test the only picture of class 3
    assert Counter(labels[i] for i in found.test) == {0: 10, 1: 2, 2: 1}
    assert found.untested == [3]


@pytest.mark.parametrize(("n", "tested"), [(2, 1), (3, 1), (4, 1), (5, 1), (10, 2)])
def test_without_labels_one_at_least(n: int, tested: int) -> None:
    assert len(hold_out(order(n)).test) == tested


class Named:
    """A source of so many pictures of each class."""

    name, left_out = "some", dict[str, int]()

    def __init__(self, *counts: int) -> None:
        self.labels = [label for label, count in enumerate(counts) for _ in range(count)]
        self.classes = [f"class {letter}" for letter in "abcdef"[: len(counts)]]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> bytes:
        return b""

    def where(self, i: int) -> str:
        return str(i)


@pytest.mark.parametrize(("counts", "words"), [((1, 1, 1), "3 pictures, and no two of one class"), ((1,), "a single")])
def test_what_it_needs_is_said(counts: tuple[int, ...], words: str) -> None:
    source = Named(*counts)
    with pytest.raises(UserError, match=f"some has {words}.*give more pictures, or --val") as caught:
        split_source(source, hold_out(order(len(source)), source.labels), "--val")
    assert "\n" not in str(caught.value)


def test_classes_of_one_picture_are_said() -> None:
    _, test = split(Named(4, 1, 2, 1), None, 0)
    assert notes(test) == ["some: 2 classes of one picture ('class b', 'class d') are learned and not tested"]
    assert notes(split(Named(2, 2), None, 0)[1]) == []


def test_older_runs_hold_out_what_they_did() -> None:
    source = Named(*[2] * 6)
    train, test = split(source, None, 3, older=True)
    numbers = train.numbers + test.numbers if isinstance(train, Subset) and isinstance(test, Subset) else []
    assert sorted(numbers) == list(range(12))
    assert len(test) == 2
    assert Counter(split(source, None, 3)[1].labels) == dict.fromkeys(range(6), 1)


def test_digits_are_held_out_as_before() -> None:
    source = open_source("digits", labelled=True)
    new, old = split(source, None, 0)[1], split(source, None, 0, older=True)[1]
    assert isinstance(new, Subset)
    assert isinstance(old, Subset)
    assert new.numbers == old.numbers
