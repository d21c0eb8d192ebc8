"""evaluation/keeping.py: results on several data stand side by side, the latest under the name that scripts read."""

import json
from pathlib import Path
from typing import Any

import pytest

from remask.evaluation.results import keep, name_of
from remask.training.run_folder import RunFolder


def put(folder: Path, data: str, value: float, **about: Any) -> str:
    result: dict[str, Any] = {"top1": value, "protocol": {"data": "train", "val": data}}
    keep(RunFolder(folder), "probe", result, data, {"data": data, **about})
    return str(result["protocol"]["kept_as"])


def value(folder: Path, name: str) -> float:
    return float(json.loads((folder / "eval" / name).read_text())["top1"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "eval").iterdir())


def test_side_by_side(tmp_path: Path) -> None:
    first, second = put(tmp_path, "digits:val", 1.0), put(tmp_path, "/sets/cells/test", 2.0)
    assert first.startswith("probe-digits-val-")
    assert second.startswith("probe-cells-test-")
    assert names(tmp_path) == sorted([first, second, "probe.json"])
    assert [value(tmp_path, name) for name in (first, second, "probe.json")] == [1.0, 2.0, 2.0]


def test_the_same_again_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    first = put(tmp_path, "digits:val", 1.0)
    put(tmp_path, "digits:test", 2.0)
    assert put(tmp_path, "digits:val", 3.0) == first
    assert len(names(tmp_path)) == 3
    assert value(tmp_path, first) == value(tmp_path, "probe.json") == 3.0


@pytest.mark.parametrize("about", [{"k": 5}, {"checkpoint": "epoch-0001"}, {"pictures": ["another digest"]}])
def test_what_differs_otherwise_is_another(about: dict[str, Any], tmp_path: Path) -> None:
    assert put(tmp_path, "digits:val", 1.0) != put(tmp_path, "digits:val", 2.0, **about)
    assert len(names(tmp_path)) == 3


def test_one_of_an_older_version_is_kept(tmp_path: Path) -> None:
    old = {"top1": 7.0, "protocol": {"data": "digits:train", "val": "a fifth of --data, held out"}}
    RunFolder(tmp_path).write("eval/probe.json", old)
    own = put(tmp_path, "digits:val", 1.0)
    (kept,) = set(names(tmp_path)) - {own, "probe.json"}
    assert kept.startswith("probe-digits-train-")
    assert json.loads((tmp_path / "eval" / kept).read_text()) == old


@pytest.mark.parametrize("text", ["{", "[1]", "", '{"protocol": 3}', '{"protocol": {"kept_as": "../../x.json"}}'])
def test_a_damaged_one_is_no_obstacle(text: str, tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "probe.json").write_text(text)
    put(tmp_path, "digits:val", 1.0)
    assert value(tmp_path, "probe.json") == 1.0
    assert {path.name for path in tmp_path.iterdir()} == {"eval"}


def test_lists_that_belong_to_it_are_kept_too(tmp_path: Path) -> None:
    for number, data in enumerate(("a", "b")):
        result: dict[str, Any] = {"AP": number}
        keep(RunFolder(tmp_path), "detect", result, data, {"data": data}, {"detections.json": [number]})
        own = result["protocol"]["kept_as"].replace("detect", "detections", 1)
        assert json.loads((tmp_path / "eval" / own).read_text()) == [number]
    assert len(names(tmp_path)) == 6
    assert json.loads((tmp_path / "eval" / "detections.json").read_text()) == [1]


@pytest.mark.parametrize(
    "data",
    [
        "/",
        "",
        ".",
        "日本/画像",
        "a b/$x_^'\"[]\n",
        "x" * 255 + "/" + "y" * 255,
        "bad\udce9name/val",
        "..",
        "a/../..",
        "C:\\x",
    ],
)
def test_any_address_gives_a_plain_name(data: str, tmp_path: Path) -> None:
    name = name_of("probe", data, {"data": data})
    assert name.isascii()
    assert len(name) < 70
    assert not set(name) & set("/\\ \n'\"$*")
    put(tmp_path, data, 1.0)
    assert name in names(tmp_path)


def test_without_links_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*paths: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refused)
    assert value(tmp_path, put(tmp_path, "digits:val", 1.0)) == 1.0
