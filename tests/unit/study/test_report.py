import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp, ttest_rel

from remask.errors import UserError
from remask.study.cells import Cell, Place, Size, settings_of
from remask.study.plan import load_study
from remask.study.report import write_report
from remask.study.statistics import mean_and_deviation, paired

TEXT = """
title = "A <b> & B"
question = "Which?"
data = "digits"
seeds = [0, 1, 2, 3]
budget = { epochs = 1 }
compare = [["b", "a"], ["b", "c"]]
probe = { data = "digits:train", val = "digits:val" }
rows = { a = { label = "Row A" }, b = {}, c = {} }
"""
LINEAR = {"a": [50.0, 51.5, 49.0, 50.5], "b": [53.0, 54.0, 53.5, 52.0]}


def result(place: Place, row: str, seed: int) -> dict[str, Any]:
    value = LINEAR[row][seed]
    return {
        "digest": "x",
        "settings": settings_of(Cell(load_study(place.file), place, row, seed), Size(1), {}),
        "command": f"remask pretrain --out runs/{row}",
        "measures": {
            "kNN": {"trained": value - 10, "untrained": 20.0},
            "linear": {"trained": value, "untrained": 40.0, "pixels": 30.0},
        },
        "cost": {"cpu_hours": 0.1, "gpu_hours": 0.0, "images": 1000, "ete": 2.0},
        "machine": {"cpu": "A CPU", "instructions": "avx2", "gpus": []},
        "versions": {"torch": "2", "remask": "0"},
    }


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "ab.toml").write_text(TEXT)
    (tmp_path / "results" / "ab").mkdir(parents=True)
    place = Place(tmp_path / "ab.toml", tmp_path / "runs")
    for row in LINEAR:
        for seed in range(4):
            (tmp_path / f"results/ab/{row}-seed{seed}.json").write_text(json.dumps(result(place, row, seed)))
    return place


def test_the_page_is_made_from_the_files(place: Place) -> None:
    page, html = write_report(load_study(place.file), place)
    text = page.read_text()
    assert text.startswith("# A <b> & B\n\nWhich?\n")
    assert "| Row A | 50.2 ± 1.0 | 40.0 ± 0.0 | 30.0 ± 0.0 | 4 |" in text
    assert "| b | 53.1 ± 0.9 | 40.0 ± 0.0 | 30.0 ± 0.0 | 4 |" in text
    assert text.index("**linear, %**") < text.index("**kNN, %**")
    low, high = ttest_rel(LINEAR["b"], LINEAR["a"]).confidence_interval(0.95)
    assert f"| b − Row A | +2.9 [{low:+.1f}, {high:+.1f}] |" in text
    assert "b − c" not in text, "a row without results"
    assert "| Row A | 6.0 ± 0.0 | 1,000 | 2 |" in text
    assert "Run on A CPU (avx2) with torch 2, remask 0." in text
    assert "Not there yet, of 12: c-seed0, c-seed1, c-seed2, c-seed3." in text
    assert "Row A: remask pretrain --out runs/a" in text
    assert "A &lt;b&gt; &amp; B" in html.read_text()
    assert (page.parent / "cost.png").read_bytes().startswith(b"\x89PNG")


CLAIMS = """
[[claims]]
text = "B is ahead of A"
first = "b"
second = "a"

[[claims]]
text = "B is ahead of A by 2"
first = "b"
second = "a"
by = 2.0

[[claims]]
text = "A is not 2 points worse than B"
first = "a"
second = "b"
by = -2.0
level = 0.5

[[claims]]
text = "B learns ten neighbours more"
first = "b"
second = "untrained"
measure = "kNN"
by = 10.0

[[claims]]
text = "C is ahead of A"
first = "c"
second = "a"
"""


def test_claims_are_decided_by_their_intervals(place: Place) -> None:
    place.file.write_text(TEXT + CLAIMS)
    text = write_report(load_study(place.file), place)[0].read_text()
    low, high = ttest_rel(LINEAR["b"], LINEAR["a"]).confidence_interval(0.95)
    assert 0 < low < 2 < high
    assert f"| B is ahead of A | linear | +2.9 [{low:+.1f}, {high:+.1f}] at 95 % | +0 | seen |" in text
    assert f"| B is ahead of A by 2 | linear | +2.9 [{low:+.1f}, {high:+.1f}] at 95 % | +2 | not seen |" in text
    low, high = ttest_rel(LINEAR["a"], LINEAR["b"]).confidence_interval(0.5)
    assert high < -2
    assert (
        f"| A is not 2 points worse than B | linear | -2.9 [{low:+.1f}, {high:+.1f}] at 50 % | -2 | opposite |" in text
    )
    low, high = ttest_1samp([value - 30 for value in LINEAR["b"]], 0).confidence_interval(0.95)
    assert f"| kNN | +23.1 [{low:+.1f}, {high:+.1f}] at 95 % | +10 | seen |" in text
    assert "| C is ahead of A | linear | – | +0 | open |" in text
    (place.file.parent / "results/ab/b-seed3.json").unlink()
    text = write_report(load_study(place.file), place)[0].read_text()
    assert text.count("| open |") == 5, "a claim waits for all seeds"


def test_nothing_is_there_yet(place: Place) -> None:
    for file in (place.file.parent / "results" / "ab").iterdir():
        file.unlink()
    text = write_report(load_study(place.file), place)[0].read_text()
    assert "Not there yet, of 12: a-seed0" in text
    assert not {"cost.png", "|", "```"} & set(text.split())


def test_a_damaged_result_is_named(place: Place) -> None:
    (place.file.parent / "results/ab/a-seed2.json").write_text('{"digest": ')
    with pytest.raises(UserError, match=r"a-seed2\.json cannot be read .*: delete it, and the cell is run again"):
        write_report(load_study(place.file), place)


def test_pairs_are_over_the_seeds_of_both() -> None:
    first, second = {0: 5.0, 1: 7.0, 2: 9.0}, {1: 6.0, 2: 6.0, 3: 0.0}
    found = paired(first, second)
    assert found is not None
    assert (found.mean, found.seeds) == (2.0, (1, 2))
    low, high = ttest_rel([7.0, 9.0], [6.0, 6.0]).confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    alone = paired({0: 1.0}, {0: 2.0})
    assert alone is not None
    assert str(alone) == "-1.0"
    assert paired({0: 1.0}, {1: 2.0}) is None


def test_deviation_is_of_a_sample() -> None:
    assert mean_and_deviation([1.0, 2.0, 3.0]) == "2.0 ± 1.0"
    assert mean_and_deviation([1.0]) == "1.0"


@pytest.mark.parametrize(("before", "after"), [
    ("epochs = 1", "epochs = 2"),
    ('val = "digits:val"', 'val = "digits"'),
    ("b = {}", 'b = { set = { "optim.base_lr" = 1.0 } }'),
])  # fmt: skip
def test_results_of_a_changed_study_are_left_out_and_named(place: Place, before: str, after: str) -> None:
    place.file.write_text(TEXT.replace(before, after))
    text = write_report(load_study(place.file), place)[0].read_text()
    line = next(line for line in text.splitlines() if line.startswith("Left out, since the study has changed: "))
    assert "b-seed0, " in line
    assert ("a-seed0" in line) == (before != "b = {}")
    assert "| b |" not in text
