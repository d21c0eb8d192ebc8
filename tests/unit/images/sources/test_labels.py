"""images/labels.py and by_classes: which class of one source is which of another, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from remask.errors import UserError
from remask.images.sources.labels import match, numbered, repeated, united
from remask.images.sources.left_out import notes
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
        (["1.0", "2."], ["2", "1"], {0: 1, 1: 0}),  # as tables write whole numbers beside missing ones
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
        (["1.5"], ["1", "2"], "class '1.5' of here is not among"),
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


def listed(folder: Path, *labels: str) -> str:
    """A list of so many pictures with these labels."""
    lines = (f"{number}.png\t{label}\n" for number, label in enumerate(labels))
    (folder / "list.txt").write_text("".join(lines))
    return str(folder / "list.txt")


def test_ids_in_a_list(tmp_path: Path) -> None:
    source = open_source(listed(tmp_path, "1234567890", "9876543210987", "-5", "1234567890"), labelled=True)
    assert source.labels == [1, 2, 0, 1]
    assert source.classes == ["-5", "1234567890", "9876543210987"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0.0", "1.0", "0.0"], ["0", "1"]),
        (["00", "02", "10"], ["0", "2", "10"]),
        (["v1.5", "2.0", "x"], ["2.0", "v1.5", "x"]),
        (["-2", "3"], ["-2", "3"]),
    ],
)
def test_numbers_in_a_list_are_their_values(tmp_path: Path, labels: list[str], classes: list[str]) -> None:
    assert open_source(listed(tmp_path, *labels), labelled=True).classes == classes


@pytest.mark.parametrize("labels", [("01", "1"), ("1", "1.0"), ("+2", "2"), ("0", "-0"), ("cat", "1", "001")])
def test_one_rule_for_two_spellings_of_a_number(tmp_path: Path, labels: tuple[str, ...]) -> None:
    """In a list as in class folders: said where labels are not needed, refused where they are."""
    folders = written(tmp_path / "folders", dict.fromkeys(labels, 1))
    for spec in (str(folders), listed(tmp_path, *labels)):
        source = open_source(spec)
        assert sorted(source.classes or []) == sorted(labels)
        assert "which are one number: they are taken for two" in notes(source)[0]
        with pytest.raises(UserError, match="which are one number: write it alike where one class is meant") as caught:
            open_source(spec, labelled=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("none", ["-1", "-1.0", "nan", "NaN", ""])
@pytest.mark.parametrize("others", [("0", "1"), ("cat", "dog")])
def test_labels_that_are_withheld(tmp_path: Path, none: str, others: tuple[str, str]) -> None:
    (tmp_path / "list.csv").write_text(f"path,label\na.png,{others[0]}\nb.png,{none}\nc.png,{others[1]}\n")
    source = open_source(str(tmp_path / "list.csv"))
    assert (source.labels, source.classes) == (None, None)
    assert source.left_out == {"class labels, which not every picture has": 2}
    assert "1 of 3 images have no label (missing, -1 or NaN)" in notes(source)[-1]
    with pytest.raises(UserError, match=r"has no labels to use: 1 of 3 images have no label"):
        open_source(str(tmp_path / "list.csv"), labelled=True)


def test_withheld_labels_of_a_whole_list_are_counted(tmp_path: Path) -> None:
    source = open_source(listed(tmp_path, "-1", "-1"))
    assert (source.labels, source.left_out) == (None, {})
    assert "2 of 2 images have no label" in notes(source)[0]


def test_measures_are_no_classes(tmp_path: Path) -> None:
    source = open_source(listed(tmp_path, "0.25", "3", "1e-3"))
    assert source.labels is None
    assert "its labels are measures such as 0.25, and no classes" in notes(source)[0]
    with pytest.raises(UserError, match="measures such as"):
        open_source(listed(tmp_path, "0.25", "3", "1e-3"), labelled=True)
