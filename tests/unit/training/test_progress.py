"""console.py: lines at their own pace, nothing when quiet, and a bar that takes words as they are."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from remask.files.escaping import on_one_line
from remask.training import progress as module
from remask.training.progress import Bar, Lines, Watch, console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_every_few_seconds_and_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(100, "run", seconds=5.0) as lines:
        for step in range(1, 101):
            lines.update(step, f"loss {step}")
            clock[0] += 0.5
    printed = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in printed] == [*range(1, 101, 10), 100]
    assert printed[0] == "run 1/100 | loss 1"


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(2, "run", quiet=True) as lines:
        lines.update(1, "loss")
        lines.update(2, "loss")
        lines.say("a picture was skipped")
    assert capsys.readouterr() == ("", "")


def test_lines_go_where_they_are_told(tmp_path: Path) -> None:
    with open(tmp_path / "train.log", "w") as file:
        Lines(2, "run", out=file).say("one line")
        assert (tmp_path / "train.log").read_text() == "one line\n", "at once"


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Lines(1, "run").update(1, "done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "run 1/1 | done\n"


@pytest.mark.parametrize(
    ("terminal", "quiet", "kind"), [(True, False, Bar), (True, True, Lines), (False, False, Lines)]
)
def test_a_bar_on_a_terminal_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, quiet: bool, kind: type
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert isinstance(console(10, "run", quiet), kind)


def test_the_bar_follows_the_steps_and_prints_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(4, "run") as bar:
        bar.update(3, "loss 0.5")
        bar.say("bad_images.txt: [red]picture[/red] 3 was skipped")
    task = bar.progress.tasks[0]
    assert (task.completed, task.total, task.fields["words"]) == (3, 4, "loss 0.5")
    assert "[red]picture[/red] 3" in capsys.readouterr().err


def test_an_error_passes_through() -> None:
    for shown in (Lines(1, "run", quiet=True), Bar(1, "run")):
        with pytest.raises(KeyError), shown:
            raise KeyError


def test_a_watch_shows_one_thing_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own bar for a pass over pictures; within longer work, the words of that."""
    batches = [SimpleNamespace(images=[0] * count) for count in (4, 2)]
    with Watch("probe") as watch:
        watch.say("first")
        assert [len(batch.images) for batch in watch.over(batches, 6, "pass")] == [4, 2]
        watch(1, 3, "fit")
        list(watch.over(batches, 6, "pictures"))
        watch(3, 3, "done")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["first", "pass 4/6"]
    assert "pass 6/6" in lines
    assert lines[-1] == "probe 3/3 | done"
    quiet = Watch("probe", quiet=True)
    quiet.say("nothing")
    quiet(1, 1, "nothing")
    list(quiet.over(batches, 6))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["[/bold]", "[red]", ":smile:", "line\nbreak", "\udce9"])
def test_names_are_no_markup(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    with Bar(2, f"title {name}") as bar:
        bar.update(1, f"words {name}")
        bar.say(f"line {name}")
    for word in ("title", "words"):
        assert f"{word} {on_one_line(name)}" in out.getvalue()
    assert f"line {name}" in out.getvalue()
    monkeypatch.setattr(sys, "stderr", plain := io.StringIO())
    with Lines(1, name) as lines:
        lines.update(1, name)
    assert plain.getvalue() == f"{on_one_line(name)} 1/1 | {on_one_line(name)}\n"
