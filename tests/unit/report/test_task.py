"""report/task.py: a downstream run on one page that opens offline; what is missing is said instead of failing."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from remask.errors import UserError
from remask.report import write_task_report
from remask.report.task import tables
from tests.unit.report.test_page import Page

RECIPE = """title = "Of <b>bold</b> things"
task = "{task}"
[data]
source = "digits"
val = "digits:val"
[model]
source = "run:/somewhere/mine"
[optim]
epochs = 2
"""
RESULTS: dict[str, dict[str, Any]] = {
    "finetune": {
        "top1": 81.25, "top5": 99.0, "images": 160,
        "per_class": [{"class": "a<i>", "images": 80, "top1": 62.5, "mistaken_for": "b"},
                      {"class": "b", "images": 80, "top1": 100.0, "mistaken_for": None}],
    },
    "segment": {"mIoU": 41.5, "IoU": {"sky": 83.0, "pole": 0.0, "sign": None}, "Acc": {"sky": 90.0, "pole": 0.0}},
    "detect": {
        "AP": 12.5, "AP50": 30.0, "bbox": {"AP": 0.125, "APs": -1.0, "per_class": {"cat": 0.25, "dog": -1.0}},
        "segm": {"AP": 0.1, "per_class": {"cat": 0.2}},
    },
}  # fmt: skip


@pytest.fixture(params=RESULTS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    folder, task = tmp_path / "my-run", str(request.param)
    for name in ("eval", "pictures"):
        (folder / name).mkdir(parents=True)
    headline = {"finetune": "top1", "segment": "mIoU", "detect": "AP"}[task]
    line = {"step": 5, "epoch": 1.0, "loss/total": 2.0, "lr": 0.1, f"val/{headline}": 40.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "epoch": 2.0}) + '\n{"st')
    (folder / "recipe.toml").write_text(RECIPE.replace("{task}", task))
    result = {**RESULTS[task], "protocol": {"val": "digits:val"}}
    (folder / "eval" / f"{task}.json").write_text(json.dumps(result))
    (folder / "cost.json").write_text('{"ete": 2.0, "cpu_hours": 0.5}')
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    (folder / "pictures" / "frames.png").write_bytes(buffer.getvalue())
    return folder, task


def test_the_page_holds_all_and_fetches_nothing(run: tuple[Path, str]) -> None:
    folder, task = run
    text = write_task_report(folder).read_text()
    page = Page(text)
    assert page.open == []
    assert page.fetched
    assert all(address.startswith(("data:", "#")) for address in page.fetched)
    assert "Of &lt;b&gt;bold" in text
    assert "from run:mine on digits for 2 epochs" in text
    assert text.count("<svg") == 3, "the headline, the loss, the rate"
    words = {"finetune": ("81.25", "a&lt;i&gt;"), "segment": ("41.50", "83.0"), "detect": ("12.50", "AP of masks")}
    assert all(word in text for word in words[task])


def test_a_run_that_was_not_tested_says_so(run: tuple[Path, str]) -> None:
    folder, task = run
    for name in (f"eval/{task}.json", "metrics.jsonl", "cost.json", "pictures/frames.png"):
        (folder / name).unlink()
    text = write_task_report(folder).read_text()
    for words in ("Not tested yet", "No curves", "No pictures yet", "No cost.json"):
        assert words in text


def test_tables() -> None:
    worst = tables("finetune", RESULTS["finetune"])[0].rows[0]
    assert (worst.cells, worst.share) == (["a<i>", "62.5", "80", "b"], 62.5)
    assert [row.cells for row in tables("segment", RESULTS["segment"])[0].rows][1:] == [
        ["pole", "0.0", "0.0"], ["sign", "–", "–"],
    ]  # fmt: skip
    sizes, classes = tables("detect", RESULTS["detect"])
    assert sizes.rows[0].cells[:2] == ["boxes", "12.5"]
    assert [row.cells for row in classes.rows] == [["cat", "25.0", "20.0"], ["dog", "–", "–"]]
    assert tables("detect", {}) == []


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_task_report(tmp_path / "absent")
