"""A long probe that is killed goes on where it was, ends as if it had not been, and leaves its result alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.evaluation.probing import attentive
from remask.evaluation.probing import mae_probe as linprobe

NET, LOOK = "untrained:vit_micro", commands.ModelOptions(image_size=(16, 16))
PARTS: dict[str, tuple[Any, str, int]] = {
    "linprobe": (linprobe.LinearProbe, "state_dict", 4),
    "attentive": (attentive, "fit", 9),
}
"""What is killed when it is called for so many a time: within the second network."""


def probe(out: Path, asked: commands.ProbeOptions) -> dict[str, Any]:
    return commands.probe(NET, "digits:train", "digits:val", asked, LOOK, limit=120, out=out, quiet=True)


@pytest.mark.parametrize("name", PARTS)
def test_a_killed_probe_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (
        commands.ProbeOptions("mae", epochs=3) if name == "linprobe" else commands.ProbeOptions("attentive", epochs=1)
    )
    whole = probe(tmp_path / "whole", asked)
    owner, method, last = PARTS[name]
    own, calls = getattr(owner, method), list[int]()

    def counted(*arguments: Any, **keys: Any) -> Any:
        calls.append(1)
        if len(calls) > last:
            raise MemoryError("killed")
        return own(*arguments, **keys)

    monkeypatch.setattr(owner, method, counted)
    with pytest.raises(MemoryError):
        probe(tmp_path / "cut", asked)
    parts = [path.name for path in (tmp_path / "cut" / "eval").iterdir()]
    assert parts == [f".{asked.protocol}.part"]
    calls.clear()
    monkeypatch.setattr(owner, method, lambda *a, **k: (calls.append(1), own(*a, **k))[1])
    assert probe(tmp_path / "cut", asked) == whole
    assert len(calls) < last, "what was there is not done again"
    files = [tmp_path / folder / "eval" / f"{name}.json" for folder in ("whole", "cut")]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())
    assert {path.name for path in files[1].parent.iterdir()} == {f"{name}.json", whole["protocol"]["kept_as"]}


def test_what_another_call_left_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: Any, **keys: Any) -> Any:
        raise MemoryError("killed")

    own = attentive.score
    monkeypatch.setattr(attentive, "score", lambda *a, **k: (99.0, 0.0))
    memory = commands.ProbeOptions("attentive", epochs=1)
    monkeypatch.setattr("remask.commands.probing._write", killed)
    with pytest.raises(MemoryError):
        probe(tmp_path, memory)
    monkeypatch.undo()
    assert own is attentive.score
    assert probe(tmp_path, commands.ProbeOptions("attentive", epochs=1, seed=1))["top1"] != 99.0


def test_what_was_reached_on_other_pictures_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is replaced between a kill and the next call."""
    for number, name in enumerate("ab"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.random.default_rng(i).integers(90 * number, 90 * number + 80, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    asked, kept = commands.ProbeOptions("attentive", epochs=1), list[object]()
    monkeypatch.setattr(
        "remask.commands.probing.request_key", lambda *named: kept.append(named[3:]) or {"named": named[3:]}
    )

    def call() -> None:
        commands.probe(NET, str(tmp_path / "data"), None, asked, LOOK, out=tmp_path / "out", quiet=True)

    call()
    call()
    assert kept[0] == kept[1]
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "data/b/3.png")
    call()
    assert kept[1] != kept[2]
