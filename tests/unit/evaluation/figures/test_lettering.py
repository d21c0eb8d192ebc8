"""Users' names in figures: as they are, all of them, and never as mathematics."""

import html
import re
from typing import Any

import pytest
import torch
from matplotlib.text import Text

from remask.downstream.detect import drawing
from remask.downstream.finetune import accuracy
from remask.downstream.segment import frames
from remask.evaluation.figures import lettering, sheet, tsne
from remask.evaluation.figures.lettering import as_written, labels, png, shown
from remask.evaluation.probing import layers
from remask.report.figures import curves
from remask.study import report as study_report
from remask.study.plan import Study
from tests.architecture.source import LIBRARY

NAMES = ["$x^2$", "$\\frac{$", "_hidden", "a\\$b", "[red]", "line\nbreak", "\udce9", "🐜", "n" * 120 + "a" + "n" * 120,
         "n" * 120 + "b" + "n" * 120]  # fmt: skip
DRAWN = ["$x^2$", "$\\frac{$", "_hidden", "a\\$b", "[red]", "line\\nbreak", "\\xe9", "🐜", "nnnnnnnnnnnn…nnnnn (8)",
         "nnnnnnnnnnnn…nnnnn (9)"]  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    found = list[Any]()

    def kept(figure: Any) -> bytes:
        found.append(figure)
        return png(figure)

    for module in (accuracy, drawing, frames, layers, sheet, tsne):
        monkeypatch.setattr(module, "png", kept)
    return found


def texts(figure: Any) -> list[str]:
    found = [text for text in figure.findobj(Text) if text.get_text()]
    users = [text for text in found if text.get_text()[0] not in "−0123456789"]
    assert not any(text.get_parse_math() for text in users if "$" in text.get_text())
    return [text.get_text() for text in found]


def test_short_names() -> None:
    assert shown("short") == "short"
    assert shown("x" * 18) == "x" * 18
    assert (
        shown("begin" + "x" * 30 + "end", 9) == "beginx…nd"[:6] + "…nd"
        or len(shown("begin" + "x" * 30 + "end", 9)) == 9
    )
    assert labels(NAMES) == DRAWN


def test_a_legend_names_all_classes(figures: list[Any]) -> None:
    y = torch.arange(len(NAMES)).repeat(3)
    maps = {
        "$a_{1}$ [x]\n": tsne.Map(torch.randn(len(y), 2), 1.0, 2.0),
        "_b": tsne.Map(torch.randn(len(y), 2), 1.0, 2.0),
    }
    assert tsne.tsne_figure(maps, y, NAMES)[:4] == b"\x89PNG"
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == DRAWN
    assert len({tuple(handle.get_facecolor()[0]) for handle in legend.legend_handles}) == len(NAMES)
    titles = [axes.get_title().split("\n")[0] for axes in figures[0].axes]
    assert titles == ["$a_{1}$ [x]\\n", "_b"]
    texts(figures[0])


def test_confusions_name_all_classes(figures: list[Any]) -> None:
    accuracy.confusion_figure(torch.eye(len(NAMES), dtype=torch.long), NAMES)
    texts(figures[0])
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == DRAWN
    assert [label.get_text() for label in axes.get_yticklabels()] == DRAWN


def test_frames_name_all_classes(figures: list[Any]) -> None:
    mask = torch.arange(len(NAMES)).repeat(4, 1)
    palette = [(20 * n, 0, 0) for n in range(len(NAMES))]
    frames.frames([torch.zeros(3, *mask.shape, dtype=torch.uint8)], [mask], [mask], palette, NAMES)
    assert set(DRAWN) <= set(texts(figures[0]))


def test_sheets_of_boxes(figures: list[Any]) -> None:
    count = len(NAMES)
    found: Any = {"boxes": torch.tensor([[2.0, 2.0, 9.0, 9.0]] * count), "labels": torch.arange(count) + 1}
    found["scores"] = torch.ones(count)
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    drawing.sheet_of_boxes([drawing.Drawing(image, found, name) for name in NAMES], NAMES)
    drawn = texts(figures[0])
    assert {f"{shown(name)} 1.00" for name in NAMES} <= set(drawn)
    assert {shown(name, drawing.CAPTION) for name in NAMES} <= set(drawn)


def test_notes_and_titles(figures: list[Any]) -> None:
    panel = sheet.Panel("$h_1$", torch.zeros(16, 16, 3, dtype=torch.uint8), "_caption $x$")
    sheet.sheet(sheet.Reconstruction([[panel]], ["Attention of a$b^ \\udcff [red]."]))
    row = {"layer": 0, "linear": 1.0, "knn": 2.0}
    best = {"linear": {"layer": 0}, "knn": {"layer": 0}}
    layers.layers_figure({"layers": {"top1": [row], "untrained": [row]}, "best": {"top1": best}}, "run $a^ \n")
    assert "_caption $x$" in texts(figures[0])
    assert "run $a^ \\n" in texts(figures[1])
    assert lettering.SHORT == 18


def test_curves_of_a_report_name_all_lines() -> None:
    """Their SVG holds each name as a text of its own."""
    svg = curves("c", {name: ([0.0, 1.0], [1.0, 2.0]) for name in NAMES[:5]}, "$x_1$")
    for name in (*NAMES[:5], "$x_1$"):
        assert f">{html.escape(name, quote=False)}<" in svg, name


def test_costs_of_a_study_name_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list[Any]()
    monkeypatch.setattr(study_report, "as_written", lambda figure: found.append(figure) or as_written(figure))
    monkeypatch.setattr(study_report, "label", lambda study, name: name)
    monkeypatch.setattr(study_report, "measures_of", lambda results: ["$m_1$"])
    monkeypatch.setattr(study_report, "measured", lambda results, name, measure, kind="": {} if kind else {0: 50.0})
    rows = [name for name in DRAWN if name != "🐜"]  # which the font lacks
    results = {name: {0: {"cost": {"cpu_hours": 1.0, "gpu_hours": 0.0}}} for name in rows}
    written = study_report.cost_figure(object.__new__(Study), results)
    assert written
    assert written[:4] == b"\x89PNG"
    (axes,) = found[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == rows
    assert not any(text.get_parse_math() for text in found[0].findobj(Text))


def test_no_figure_is_written_in_another_way() -> None:
    """What writes a figure has first let its texts be drawn as they are."""
    writers = [path for path in LIBRARY.rglob("*.py") if re.search(r"\.savefig\(|print_png\(", path.read_text())]
    assert len(writers) == 3
    assert not [path.name for path in writers if "as_written(figure)" not in path.read_text()]
