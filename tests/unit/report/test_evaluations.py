"""report/evaluations.py: a row for every file in eval/, with what it was tested on and how many pictures."""

import json
from pathlib import Path
from typing import Any

import pytest

from remask.recipe.sections import METHODS
from remask.report import write_report, write_task_report
from remask.report.evaluations import HEADS, evaluations
from remask.report.page import NAMES, summary
from tests.unit.report.test_page import PROBE, RECIPE, Page

COUNTS = {"train": 1400, "test": 357, "bad": {"train": [], "test": ["a.png: cut", "b.png: cut"]}}
TOLD = {"data": "digits:train", "val": "digits:val", "pictures": COUNTS}
RESULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "probe": (
        PROBE | {"fractions": {"0.01": {"top1": 21.5, "untrained": 12.5, "pixels": 11.5, "knn": {"top1": 19.25}}}},
        ("kNN and logistic regression", "linear 54.4, kNN 46.1, linear at 1 % of the labels 21.5", "linear 37.0"),
    ),
    "linprobe": ({"top1": 81.2, "untrained": 40.4}, ("linear probe as MAE", "81.2", "40.4")),
    "attentive": ({"top1": 91.0, "untrained": 40.4}, ("attentive probe", "91.0")),
    "layers": (
        {"layers": {}, "best": {"top1": {"linear": {"layer": 5, "test": 62.5}, "knn": {"layer": -1, "test": 50.0}}}},
        ("every layer", "linear at layer 5 62.5", "knn at layer -1 50.0"),
    ),
    "finetune": ({"top1": 81.25, "top5": 99.0, "images": 160}, ("fine-tuned", "top-1 81.2")),
    "segment": ({"mIoU": 41.5, "images": 9, "bad_images": 1}, ("segmentation", "mIoU 41.5")),
    "detect": ({"AP": None, "AP50": None}, ("detection", "AP –")),
    "mine-of-tuesday": ({"f1": 0.5, "name": "x", "good": True}, ("mine-of-tuesday", "f1 0.5")),
}


def run(folder: Path, **files: Any) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / "recipe.toml").write_text(RECIPE)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "eval" / f"{name}.json").write_text(text)
    return folder


@pytest.mark.parametrize("name", RESULTS)
def test_each_kind_is_a_row(name: str, tmp_path: Path) -> None:
    result, shown = RESULTS[name]
    folder = run(tmp_path / "run", **{name: result | {"protocol": TOLD}})
    ((cells, _),) = evaluations(folder)
    assert len(cells) == len(HEADS)
    assert cells[-1] == f"{name}.json"
    for words in (*shown, "digits:val", "1,400 to learn from, 357 tested, 2 of test unusable"):
        assert any(words in cell for cell in cells), words
    for text in (write_report(folder).read_text(), write_task_report(folder).read_text()):
        assert "Not probed yet" not in text
        assert "357 tested" in text
        assert Page(text).open == []


def test_all_of_them_are_rows_and_the_latest_is_one(tmp_path: Path) -> None:
    results = {name: result | {"protocol": TOLD} for name, (result, _) in RESULTS.items()}
    latest = PROBE | {"protocol": {"val": "cells", "kept_as": "probe-cells-0.json"}}
    more = {"probe": latest, "probe-cells-0": latest, "probe-digits-val-1": results["probe"], "detections": [1, 2]}
    found = [evaluation.cells[-1] for evaluation in evaluations(run(tmp_path / "run", **{**results, **more}))]
    assert found == sorted([f"{name}.json" for name in {**results, **more} if name not in ("probe", "detections")])


def test_the_latest_is_a_row_where_its_twin_is_gone_or_another(tmp_path: Path) -> None:
    latest = PROBE | {"protocol": {"kept_as": "probe-a-0.json"}}
    assert len(evaluations(run(tmp_path / "gone", probe=latest))) == 1
    assert len(evaluations(run(tmp_path / "other", **{"probe": latest, "probe-a-0": PROBE}))) == 2


@pytest.mark.parametrize(
    "content",
    ["{", '{"linear": 3}', '{"protocol": null, "top1": "x"}', '{"best": {"top1": 3}, "fractions": [1]}', "{}",
     '{"few_labels": null, "knn": null, "fractions": {"many": 1}}',
     '{"protocol": {"pictures": 3, "images": {"train": "x"}}}'],
)  # fmt: skip
def test_damaged_ones_are_rows_too(content: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", probe=content)
    assert len(evaluations(folder)) == 1
    assert "probe.json" in write_report(folder).read_text()
    assert "cannot be read" in write_report(folder).read_text() or content != "{"


def test_names_of_people_are_escaped(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", probe=PROBE | {"protocol": {"val": "<b>$x_1</b>", "data": "a&b"}})
    text = write_report(folder).read_text()
    assert "<b>$x_1</b>" not in text
    assert "&lt;b&gt;$x_1&lt;/b&gt;" in text


def test_without_any_the_page_says_so(tmp_path: Path) -> None:
    assert "Not probed yet" in write_report(run(tmp_path / "run")).read_text()
    assert "Not probed yet" in write_report(run(tmp_path / "lists", detections=[1])).read_text()


def test_another_checkpoint_or_layer_is_told(tmp_path: Path) -> None:
    protocol = {"checkpoint": "epoch-0100", "features": {"layer": 3}}
    ((cells, _),) = evaluations(run(tmp_path / "run", probe=PROBE | {"protocol": protocol}))
    assert cells[0] == "kNN and logistic regression (layer 3, epoch-0100)"


def test_fractions_are_bars(tmp_path: Path) -> None:
    shares = {"0.01": {"top1": 21.5, "knn": {"top1": 19.2}}, "0.125": {"top1": 31.5, "knn": {"top1": 29.2}}}
    text = write_report(run(tmp_path / "run", probe=PROBE | {"fractions": shares})).read_text()
    for words in ("Linear, 1 % of the labels", "kNN, 12.5 % of the labels", "21.5", "29.2"):
        assert words in text, words


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_written_as_their_papers_do(method: str) -> None:
    assert NAMES[method].lower() == method
    assert NAMES[method] != method or method == "data2vec", "which its paper writes in lower case"
    assert summary({"method": {"name": method}}, {}, []) == f"{NAMES[method]}."
