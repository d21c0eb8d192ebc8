"""Addresses of sources: what is refused before anything is opened, in the words of who opens it."""

from pathlib import Path

import pytest

from remask.errors import UserError
from remask.images.sources.addresses import SPLITS, check_second, check_source, find_source
from remask.images.sources.named import NAMED
from remask.images.sources.opening import open_second, open_source


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a folder, a list, a packed file, shards and a path of a named set's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    for name in ("list.txt", "x.remask", "x.parquet", "s-000.tar", "s-001.tar", "photos", "a{b}.tar"):
        (tmp_path / name).touch()
    return tmp_path


def test_every_named_set_has_its_splits() -> None:
    assert NAMED.keys() == SPLITS.keys()


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("pics", "folder"), ("./pics", "folder"), ("list.txt", "file"), ("x.remask", "file"), ("x.parquet", "file"),
        ("s-{000..001}.tar", "shards"), ("s-{000,001}.tar", "shards"), ("s-*.tar", "shards"), ("a{b}.tar", "file"),
        ("digits", "set"), ("digits:val", "set"), ("cifar10:test", "set"), ("imagenette", "set"), ("set:photos", "set"),
        ("hf:user/set:split", "hub"), ("hf:user/set", "hub"),
    ],
)  # fmt: skip
def test_what_may_exist_is_found(spec: str, kind: str, home: Path) -> None:
    assert find_source(spec).kind == kind


REFUSED = {
    "absent": ("absent", None, ()),
    "near a named set": ("digit", None, ()),
    "a shard that is missing": ("s-{000..002}.tar", None, ()),
    "a pattern of nothing": ("t-*.tar", None, ()),
    "a set and a path": ("photos", None, ()),
    "no such split": ("digits:test", None, ()),
    "nothing left": ("pics", 0, ()),
    "patterns for a set": ("digits", None, ("*.png",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_refusal_has_the_opener_s_words(case: str, home: Path) -> None:
    spec, limit, exclude = REFUSED[case]
    with pytest.raises(UserError) as early:
        check_source(spec, limit, exclude)
    with pytest.raises(UserError) as late:
        open_source(spec, limit=limit, exclude=exclude)
    assert str(early.value) == str(late.value)


def test_patterns_meant_for_others_are_not_held_against_a_second_source(home: Path) -> None:
    check_second("digits", ("*.png",))
    check_second(None, ("*.png",))
    assert len(open_second("digits", exclude=("*.png",))) == 1797
