"""The record of a run's data: what it keeps, what stops a resume, what is said, and that looking writes nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remask.errors import UserError
from remask.images.sources.fingerprint import Inventory
from remask.training import data_record
from remask.training.data_record import FIRST, Care, DataRecord, Sources
from remask.training.run_folder import RunFolder

AT = {"step": 96, "epoch": 12.0}


def pictures(*names: str, content: str = "", **facts: Any) -> Inventory:
    sizes = np.arange(10, 10 + len(names), dtype=np.int64)
    return Inventory("pictures", len(names), list(names), sizes, read=lambda i: (names[i] + content).encode(), **facts)


def sources(**found: Inventory) -> Sources:
    named = {role.replace("_", " "): one for role, one in found.items()}
    return Sources(named, {role: f"/somewhere/{role}" for role in named})


def record(path: Path) -> DataRecord:
    return DataRecord(RunFolder(path), lambda line: None)


def begun(path: Path, care: Care = Care(), **found: Inventory) -> Path:  # noqa: B008
    path.mkdir(exist_ok=True)
    made = record(path)
    made.check(sources(**found), care, fresh=True)
    made.keep([], {})
    return path


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_what_it_keeps(tmp_path: Path) -> None:
    odd = pictures("é 🐜.png", "byte\udcff.png", "line\nbreak.png", labels=np.array([0, 1, 1]), classes=["a", "b"])
    begun(tmp_path, data=odd)
    about = json.loads((tmp_path / "data.json").read_text())
    assert about["history"] == []
    assert about["sources"]["data"] == {
        "source": "/somewhere/data", "what": "pictures", "count": 3, "bytes": 33, "digest": odd.digest(),
        "classes": ["a", "b"], "facts": {}, "named": True, "hashed": False,
    }  # fmt: skip
    assert record(tmp_path).check(sources(data=odd), Care(), False).changes == []
    other = pictures("é 🐜.png", "byte\udcfe.png", "line\nbreak.png", labels=np.array([0, 1, 1]), classes=["a", "b"])
    with pytest.raises(UserError, match=r"data: 1 gone, first byte\\xff\.png, 1 new, first byte\\xfe\.png; put it"):
        record(tmp_path).check(sources(data=other), Care(), False)


def test_a_change_stops_and_writes_nothing(tmp_path: Path) -> None:
    begun(tmp_path, data=pictures("a", "b"), teacher_1=pictures("w"), masks=pictures("m"))
    before = files(tmp_path)
    now = sources(data=pictures("a", "b", "c"), teacher_1=pictures("w"), masks=pictures("n"))
    with pytest.raises(UserError) as error:
        record(tmp_path).check(now, Care(), False)
    assert str(error.value) == (
        f"{tmp_path} was trained on other data than is there now: data: 2 pictures became 3, first new c; "
        f"masks: 1 gone, first m, 1 new, first n; put it back, or go on with remask resume {tmp_path} "
        "--accept-changed-data"
    )
    assert files(tmp_path) == before


def test_accepted_it_is_history_and_the_next_resume_is_quiet(tmp_path: Path) -> None:
    begun(tmp_path, data=pictures("a", "b"))
    made, now = record(tmp_path), sources(data=pictures("a"))
    checked = made.check(now, Care(accept=True), False)
    assert checked.changes == ["data: 2 pictures became 1, first gone b"]
    made.keep(checked.changes, AT)
    history = json.loads((tmp_path / "data.json").read_text())["history"]
    assert [(one["step"], one["epoch"], one["changes"]) for one in history] == [(96, 12.0, checked.changes)]
    again = record(tmp_path).check(sources(data=pictures("a")), Care(), False)
    assert (again.changes, again.lines) == ([], [])
    made = record(tmp_path)
    checked = made.check(sources(data=pictures("a", "z")), Care(accept=True), False)
    made.keep(checked.changes, {"step": 200, "epoch": 20.5})
    assert [one["step"] for one in json.loads((tmp_path / "data.json").read_text())["history"]] == [96, 200]


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    begun(tmp_path, data=pictures("a", "b"))
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    made = record(tmp_path)
    made.keep(made.check(sources(data=pictures("a", "b")), Care(accept=True), False).changes, AT)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


def test_a_run_of_before_is_said_and_then_known(tmp_path: Path) -> None:
    made = record(tmp_path)
    checked = made.check(sources(data=pictures("a")), Care(), False)
    assert not checked.known
    assert checked.lines == ["this run has no fingerprint of its data to compare with; it has one from now on"]
    made.keep([], AT)
    assert record(tmp_path).check(sources(data=pictures("a")), Care(), False).known
    with pytest.raises(UserError, match="1 new, first b"):
        record(tmp_path).check(sources(data=pictures("b")), Care(), False)


def test_first_weights_are_said_and_stop_nothing(tmp_path: Path) -> None:
    begun(tmp_path, data=pictures("a"), first_weights=pictures("w", facts={"blocks": ["1"]}))
    assert FIRST == "first weights"
    made = record(tmp_path)
    now = sources(data=pictures("a"), first_weights=pictures("w", facts={"blocks": ["2"]}))
    checked = made.check(now, Care(), False)
    assert checked.changes == []
    assert checked.lines == [
        "first weights: the content is another; the run goes on with the weights of its checkpoint"
    ]
    made.keep([], AT)
    assert record(tmp_path).check(now, Care(), False).lines == []


def test_verifying_sees_an_edit_of_the_same_size(tmp_path: Path) -> None:
    begun(tmp_path, Care(verify=True), data=pictures("a", "b", content="1"))
    edited = sources(data=pictures("a", "b", content="2"))
    assert record(tmp_path).check(edited, Care(), False).changes == [], "it takes --verify-data to see that"
    with pytest.raises(UserError, match="data: 2 contents differ, first a; put it back"):
        record(tmp_path).check(edited, Care(verify=True), False)
    same = record(tmp_path).check(sources(data=pictures("a", "b", content="1")), Care(verify=True), False)
    assert same.lines == ["the contents of the data are those that the run was trained on"]


def test_verifying_without_hashes_says_so_and_keeps_them(tmp_path: Path) -> None:
    begun(tmp_path, data=pictures("a", content="1"))
    made = record(tmp_path)
    checked = made.check(sources(data=pictures("a", content="1")), Care(verify=True), False)
    assert checked.lines == ["this run has no hashes of contents to compare with; they are kept from now on"]
    made.keep([], AT)
    with pytest.raises(UserError, match="1 content differs, first a"):
        record(tmp_path).check(sources(data=pictures("a", content="2")), Care(verify=True), False)


def test_hashes_of_what_did_not_change_are_kept(tmp_path: Path) -> None:
    begun(tmp_path, Care(verify=True), data=pictures("a"), probe=pictures("p"))
    made = record(tmp_path)
    made.keep(made.check(sources(data=pictures("b"), probe=pictures("p")), Care(accept=True), False).changes, AT)
    about = json.loads((tmp_path / "data.json").read_text())["sources"]
    assert (about["data"]["hashed"], about["probe"]["hashed"]) == (False, True)
    with pytest.raises(UserError, match="probe: 1 content differs"):
        record(tmp_path).check(sources(data=pictures("b"), probe=pictures("p", content="!")), Care(verify=True), False)


def test_too_many_names_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_record, "NAMES_KEPT", 2)
    begun(tmp_path, data=pictures("a", "b", "c"))
    assert record(tmp_path).check(sources(data=pictures("a", "b", "c")), Care(), False).changes == []
    for now, said in ((("a", "b", "d"), "names or sizes differ"), (("a", "b"), "3 pictures became 2")):
        with pytest.raises(UserError, match=f"data: {said}; put"):
            record(tmp_path).check(sources(data=pictures(*now)), Care(), False)


@pytest.mark.parametrize("damage", [None, b"", b"PK\x03\x04 cut"])
def test_without_its_names_a_change_is_still_seen(tmp_path: Path, damage: bytes | None) -> None:
    begun(tmp_path, data=pictures("a", "b"))
    (tmp_path / "data.npz").unlink() if damage is None else (tmp_path / "data.npz").write_bytes(damage)
    assert record(tmp_path).check(sources(data=pictures("a", "b")), Care(), False).changes == []
    with pytest.raises(UserError, match="data: names or sizes differ; put"):
        record(tmp_path).check(sources(data=pictures("a", "c")), Care(), False)


def test_names_of_another_writing_are_not_believed(tmp_path: Path) -> None:
    """A run that is killed between the two files has names that are not those of its digests."""
    other = begun(tmp_path / "other", data=pictures("x", "y"))
    run = begun(tmp_path / "run", data=pictures("a", "b"))
    (run / "data.npz").write_bytes((other / "data.npz").read_bytes())
    with pytest.raises(UserError, match="data: names or sizes differ; put"):
        record(run).check(sources(data=pictures("a", "c")), Care(), False)


def test_a_damaged_record_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json is damaged: remove it"):
        record(tmp_path).check(sources(data=pictures("a")), Care(), False)


def test_facts_of_later_versions_are_no_change(tmp_path: Path) -> None:
    begun(tmp_path, data=pictures("a", "b"))
    later = replace(pictures("a", "b"), facts={"bands": 6})
    assert record(tmp_path).check(sources(data=later), Care(), False).changes == []


def test_a_source_of_its_own_is_written_down_and_refuses_nothing(tmp_path: Path) -> None:
    begun(tmp_path, data=pictures("a"))
    made = record(tmp_path)
    assert made.check(sources(data=pictures("a"), probe=pictures("p")), Care(), False).changes == []
    made.keep([], AT)
    with pytest.raises(UserError, match="probe: 1 picture became 2"):
        record(tmp_path).check(sources(data=pictures("a"), probe=pictures("p", "q")), Care(), False)
