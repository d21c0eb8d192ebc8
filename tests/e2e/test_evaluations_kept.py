"""What a run was tested on stands side by side in its folder and in its report; few pictures are enough on the way."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from remask import commands
from remask.errors import UserError
from remask.report.evaluations import evaluations
from tests.e2e.test_probe_small import cut, pictures

TASK = ["runtime.threads=1", "optim.precision=fp32", "runtime.workers=0", "optim.batch_size=4", "optim.epochs=1"]
SMALL = [
    "data.image_size=16", "backbone.width=32", "backbone.depth=2", "backbone.heads=2", "method.decoder_width=32",
    "method.decoder_heads=2", "method.decoder_depth=1", "optim.batch_size=8", "optim.epochs=2", "optim.precision=fp32",
    "optim.warmup_epochs=1", "runtime.threads=1", "runtime.tensorboard=false", "runtime.device=cpu",
]  # fmt: skip


def finetuned(root: Path, *counts: int, **more: Any) -> Path:
    data = pictures(root / "data", *counts)
    given = {"model.source": "untrained:vit_micro", "data.image_size": 16, "data.source": str(data)} | more
    return commands.finetune(None, None, given, settings=TASK, out=root / "run", quiet=True)


def kept(run: Path, kind: str) -> list[Path]:
    return sorted(run.glob(f"eval/{kind}-*.json"))


def test_a_model_tested_on_several_sets(tmp_path: Path) -> None:
    run, other = finetuned(tmp_path, 8, 8), pictures(tmp_path / "other", 3, 2)
    first = json.loads((run / "eval/finetune.json").read_text())
    commands.evaluate(run, quiet=True)
    assert len(kept(run, "finetune")) == 1, "the same test is the same result"
    commands.evaluate(run, {"data.val": str(other)}, quiet=True)
    (mine,) = [path for path in kept(run, "finetune") if "-other-" in path.name]
    found = json.loads(mine.read_text())
    assert found == json.loads((run / "eval/finetune.json").read_text())
    assert len(kept(run, "finetune")) == 2
    assert (first["protocol"]["pictures"]["train"], first["protocol"]["pictures"]["test"]) == (13, 3)
    assert (found["protocol"]["pictures"]["train"], found["protocol"]["pictures"]["test"]) == (13, 5)
    assert [cells[4] for cells, _ in evaluations(run)] == [f"{tmp_path}/data: a fifth of the source", str(other)]
    assert str(other) in (run / "report.html").read_text()


@pytest.mark.parametrize("counts", [(2, 2), (2, 3, 1)])
def test_two_pictures_a_class_are_enough(
    counts: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetuned(tmp_path, *counts, **{"data.val": None})
    found = json.loads((run / "eval/finetune.json").read_text())
    assert found["images"] == 2
    assert found["protocol"].get("untested", []) == ["c"] * (len(counts) > 2)
    assert json.loads((run / "task.json").read_text())["held_out"] == "by class"


def test_one_picture_a_class_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no two of one class: none can be held out.*test pictures with --val"):
        finetuned(tmp_path, 1, 1, 1)


def test_a_run_of_an_older_version_is_tested_on_what_it_held_out(tmp_path: Path) -> None:
    """Six classes of two pictures: the plain fifth are two pictures, the new rule holds out one of each."""
    run = finetuned(tmp_path, *[2] * 6)
    assert json.loads((run / "eval/finetune.json").read_text())["images"] == 6
    facts = json.loads((run / "task.json").read_text())
    del facts["held_out"]
    (run / "task.json").write_text(json.dumps(facts))
    commands.evaluate(run, quiet=True)
    assert json.loads((run / "eval/finetune.json").read_text())["images"] == 2


def pretrained(root: Path, probe: Path) -> Path:
    settings = [
        *SMALL,
        f"data.source={pictures(root / 'unlabelled', 16)}",
        f"probe.source={probe}",
        "probe.every_epochs=1",
    ]
    return commands.pretrain("mae-vit-micro-cifar", settings=settings, out=root / "run")


def test_knn_on_the_way_of_few_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = pictures(tmp_path / "probe", 3, 2, 1)
    cut(probe / "a/001.png")
    run = pretrained(tmp_path, probe)
    said = capsys.readouterr()
    text = said.out + said.err
    assert re.search(r"kNN on the way: 4 pictures of .*probe vote, not 20", text)
    assert "'c') is learned and not tested" in text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("probe/knn" in line for line in lines) == 2
    assert "a/001.png" in (run / "bad_images.txt").read_text()


def test_a_probed_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "labelled", 6, 6)
    run = pretrained(tmp_path, data)
    assert "Not probed yet" in (run / "report.html").read_text()
    for asked in (commands.ProbeOptions("mae", epochs=1), commands.ProbeOptions("attentive", epochs=1)):
        commands.probe(str(run), str(data), None, asked, quiet=True)
    assert "Not probed yet" not in (run / "report.html").read_text()
    commands.probe(str(run), str(data), None, commands.ProbeOptions(fractions=(0.5,)), quiet=True)
    text = (run / "report.html").read_text()
    for words in ("linear probe as MAE", "attentive probe", "kNN, 50 % of the labels", "8 to learn from"):
        assert words in text or words.replace("8", "10") in text, words
    assert len(evaluations(run)) == 3

    capsys.readouterr()
    pile = pictures(tmp_path / "pile", 3)
    cut(pile / "a/001.png")
    assert commands.reconstruct(run, str(pile), out=tmp_path / "r.png").is_file()
    assert len(re.findall("skipped .*a/001.png", capsys.readouterr().err)) == 1
    for path in pile.rglob("*.png"):
        cut(path)
    with pytest.raises(UserError, match=r"3 of 3 pictures .* cannot be used"):
        commands.reconstruct(run, str(pile), out=tmp_path / "r.png")
