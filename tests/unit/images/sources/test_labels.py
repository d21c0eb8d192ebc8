"""images/labels.py and by_classes: which class of one source is which of another, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from remask.errors import UserError
from remask.images.sources.labels import match, numbered, repeated, united
from remask.images.sources.named import Arrays
from remask.images.sources.opening import open_source
from remask.images.sources.subset import by_classes

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_numbers_are_names_and_never_a_size() -> None:
    labels, classes = numbered([1234567890, -1, 1234567890, 7])
    assert labels == [2, 0, 2, 1]
    assert classes == ["-1", "7", "1234567890"]
    assert numbered(["dog", "ant", "dog"]) == ([1, 0, 1], ["ant", "dog"])
    assert numbered([]) == ([], [])


def test_classes_of_several_files_come_together_by_name() -> None:
    assert united([["ant", "bee"], ["bee", "cow", "ant"]]) == (["ant", "bee", "cow"], [[0, 1], [1, 2, 0]])
    assert repeated(["a", "b", "a", "b"]) == "a"
    assert repeated(["a", "b"]) is None


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["ant", "bee"], ["ant", "bee"], {0: 0, 1: 1}),
        (["dog", "ant"], ["ant", "bee", "cow", "dog"], {0: 3, 1: 0}),
        (["0", "1", "10", "2"], ["0", "1", "2", "10"], {0: 0, 1: 1, 2: 3, 3: 2}),
        (["010", "+2", "-3"], ["2", "10", "-3"], {0: 1, 1: 0, 2: 2}),
        (["01", "1"], ["1", "01"], {0: 1, 1: 0}),  # the text itself comes before the value
        (["n\u00b0 1", DECOMPOSED], [COMPOSED, "n\u00b0 1"], {0: 1, 1: 0}),
        (["99999999999999999999"], ["1", "099999999999999999999"], {0: 1}),
    ],
)
def test_names_are_matched(names: list[str], known: list[str], expected: dict[int, int]) -> None:
    assert match(names, known, range(len(names)), "here", "there") == expected


@pytest.mark.parametrize(
    ("names", "known", "words"),
    [
        (["ant", "zebra"], ["ant", "bee"], "class 'zebra' of here is not among those of there ('ant', 'bee')"),
        (["yak", "zebu"], ["ant", "bee"], "classes 'yak', 'zebu' of here are not among those of there"),
        (
            ["0", "1"],
            ["ant", "bee"],
            "('ant', 'bee'): numbers cannot be matched with names; give both sources the same",
        ),
        (["ant"], ["0", "1"], "('0', '1'): numbers cannot be matched with names"),
        (["Dog"], ["dog", "cat"], "which has 'dog': name the class alike in both"),
        (["dog "], ["dog", "cat"], "which has 'dog': name the class alike"),
        (["golden_retriever"], ["golden retriever"], "which has 'golden retriever'"),
        (["001"], ["1", "01"], "which has '1', '01': name the class alike"),
        (["1", "01"], ["1", "2"], "the classes '1' and '01' of here are both '1' of there"),
        (["1.0"], ["1", "2"], "class '1.0' of here is not among"),
        (["\u0661"], ["1", "2"], "is not among"),  # an Arabic one is no file system's number
    ],
)
def test_what_is_refused(names: list[str], known: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        match(names, known, range(len(names)), "here", "there")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_classes_with_pictures_have_to_be_known() -> None:
    assert match(["ant", "zebra"], ["bee", "ant"], [0], "here", "there") == {0: 1}


def arrays(labels: list[int], classes: list[str] | None, name: str = "made") -> Arrays:
    return Arrays(name, np.arange(len(labels), dtype=np.uint8)[:, None, None], labels, classes)


def test_a_source_by_other_classes() -> None:
    source = arrays([0, 1, 1], ["dog", "ant"])
    found = by_classes(source, ["ant", "bee", "dog"], "there")
    assert found.labels == [2, 0, 0]
    assert found.classes == ["ant", "bee", "dog"]
    assert [int(found.read(i)[0, 0]) for i in range(3)] == [0, 1, 2]  # type: ignore[index, call-overload]
    assert pickle.loads(pickle.dumps(found)).labels == [2, 0, 0]
    assert by_classes(source, ["dog", "ant"], "there") is source
    with pytest.raises(UserError, match=r"class 'dog' of made has no training image in there"):
        by_classes(source, ["ant", "bee", "dog"], "there", trained=[0, 1])


def test_a_source_of_numbers_that_somebody_else_made() -> None:
    found = by_classes(arrays([1234567890, 7], None), ["7", "1234567890", "8"], "there")
    assert found.labels == [1, 0]


def written(folder: Path, names: dict[str, int]) -> Path:
    for name, count in names.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(b"x")
    return folder


def test_a_test_folder_may_have_one_class(tmp_path: Path) -> None:
    one = written(tmp_path / "one", {"bee": 2})
    assert open_source(str(one)).labels is None
    found = open_source(str(one), labelled=True, one_class=True)
    assert by_classes(found, ["ant", "bee"], "there").labels == [1, 1]
    for folder in ({"train": 2}, {}):
        plain = written(tmp_path / f"plain{len(folder)}", folder)
        (plain / "deep").mkdir(parents=True, exist_ok=True)
        (plain / "loose.png").write_bytes(b"x")
        with pytest.raises(UserError, match="has no labels"):
            open_source(str(plain), labelled=True, one_class=True)
    with pytest.raises(UserError, match="has no labels"):
        open_source(str(written(tmp_path / "split", {"train": 2})), labelled=True, one_class=True)


def test_ids_in_a_list(tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("a.png 1234567890\nb.png 9876543210987\nc.png -5\nd.png 01234567890\n")
    source = open_source(str(listed), labelled=True)
    assert source.labels == [1, 2, 0, 1], "equal numbers are one class, however they are written"
    assert source.classes == ["-5", "1234567890", "9876543210987"]
