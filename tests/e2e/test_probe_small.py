"""Probes, maps and fine-tuning of few, alike or damaged pictures: what there is is used, and what is not is said."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.errors import UserError

NET, LOOK = "untrained:vit_micro", commands.ModelOptions(image_size=(16, 16))
PROBES = {
    "probe": commands.ProbeOptions(),
    "layers": commands.ProbeOptions(layers="all"),
    "linprobe": commands.ProbeOptions("mae", epochs=2),
    "attentive": commands.ProbeOptions("attentive", epochs=1),
}


def pictures(root: Path, *counts: int, kind: str = "noise") -> Path:
    """So many pictures of each class: noise about a brightness of its own, or all alike, or alike within a class."""
    for label, count in enumerate(counts):
        (root / "abcdef"[label]).mkdir(parents=True)
        for i in range(count):
            numbers = np.random.default_rng(1000 * label + i)
            pixels = numbers.integers(0, 60, (16, 16, 3)) + 90 * label
            level = {"alike": 128, "of a class": 60 * (label + 1)}.get(kind)
            pixels = pixels if level is None else np.full((16, 16, 3), level) + np.arange(16)[:, None]
            Image.fromarray(pixels.astype(np.uint8)).save(root / "abcdef"[label] / f"{i:03}.png")
    return root


def cut(path: Path) -> None:
    """Its header can be read, its pixels cannot."""
    path.write_bytes(path.read_bytes()[:60])


def probe(data: Path, out: Path, asked: commands.ProbeOptions = PROBES["probe"], **more: Any) -> dict[str, Any]:
    return commands.probe(NET, str(data), None, asked, LOOK, out=out, **more)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize(
    ("counts", "kind"), [((2, 2), "noise"), ((5, 1, 4), "noise"), ((45, 45), "alike"), ((10, 10), "of a class")]
)
def test_few_or_alike(name: str, counts: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", *counts, kind=kind)
    found = probe(data, tmp_path / "out", PROBES[name], quiet=True)
    tested = sum(max(1, n // 5) if n > 1 else 0 for n in counts) if min(counts) < 10 else sum(counts) // 5
    assert found["protocol"]["pictures"]["test"] == tested
    assert found["protocol"]["pictures"]["train"] == sum(counts) - tested
    assert json.loads((tmp_path / "out/eval" / f"{name}.json").read_text()) == found


def test_fewer_than_k_all_vote_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = probe(pictures(tmp_path / "data", 5, 5), tmp_path / "out")
    assert found["knn"]["k"] == found["protocol"]["knn"]["k"] == 8
    assert found["protocol"]["k_wanted"] == 20
    assert "there are 8 training images and not 20" in capsys.readouterr().err
    assert found["linear"]["pixels"] == 100
    with pytest.raises(UserError, match="at least one neighbour"):
        probe(tmp_path / "data", tmp_path / "out", commands.ProbeOptions(k=0), quiet=True)


@pytest.mark.parametrize("counts", [(1, 1), (1, 1, 1, 1, 1, 1)])
def test_what_it_needs_is_one_line(counts: tuple[int, ...], tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", *counts)
    with pytest.raises(UserError, match="none can be held out for the test; give more") as caught:
        probe(data, tmp_path / "out", quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", PROBES)
def test_bad_pictures_are_named_and_counted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "train", 12, 12), pictures(tmp_path / "test", 5, 5)
    cut(data[0] / "a/003.png")
    cut(data[1] / "b/001.png")
    found = commands.probe(NET, str(data[0]), str(data[1]), PROBES[name], LOOK, out=tmp_path / "out")
    told = found["protocol"]["pictures"]
    assert (told["train"], told["test"]) == (23, 9)
    assert ["train/a/003.png" in told["bad"]["train"][0], "test/b/001.png" in told["bad"]["test"][0]] == [True, True]
    said = capsys.readouterr()
    for file in ("train/a/003.png", "test/b/001.png"):
        assert len(re.findall(f"skipped [^\n]*{file}", said.err)) == 1
    assert "without 1 of the test pictures" in said.out


@pytest.mark.parametrize("name", ["probe", "linprobe"])
def test_more_bad_ones_than_allowed_are_one_line(name: str, tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 12, 12)
    for i in range(5):
        cut(data / f"a/{i:03}.png")
    with pytest.raises(UserError, match=r"cannot be used, more than is allowed.*--exclude") as caught:
        probe(data, tmp_path / "out", PROBES[name], quiet=True)
    assert "\n" not in str(caught.value)


def test_results_on_several_data_stand_side_by_side(tmp_path: Path) -> None:
    data, sets = pictures(tmp_path / "data", 6, 6), [pictures(tmp_path / name, 3, 3) for name in ("one", "two")]
    kept = []
    for val in (*sets, sets[0]):
        found = commands.probe(NET, str(data), str(val), PROBES["probe"], LOOK, out=tmp_path / "out", quiet=True)
        kept.append(found["protocol"]["kept_as"])
    assert kept[0] == kept[2] != kept[1]
    names = {path.name for path in (tmp_path / "out/eval").glob("*.json")}
    assert names == {"probe.json", *kept}
    assert json.loads((tmp_path / "out/eval/probe.json").read_text())["protocol"]["val"] == str(sets[0])
    assert json.loads((tmp_path / "out/eval" / kept[1]).read_text())["protocol"]["val"] == str(sets[1])


def test_fractions_are_in_result_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = commands.ProbeOptions(fractions=(0.25, 0.5))
    found = probe(pictures(tmp_path / "data", 20, 20), tmp_path / "out", asked)
    assert list(found["fractions"]) == ["0.25", "0.5"]
    out = capsys.readouterr().out
    for row in ("kNN, 25 % of the labels", "linear, 50 % of the labels"):
        assert row in out


def test_shots_are_in_result_table_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "data", 12, 12)
    cut(data / "a/003.png")
    found = probe(data, tmp_path / "out", commands.Asked(shots=2))
    assert (found["few_labels"]["per_class"], found["protocol"]["few_labels"]["images_per_draw"]) == (2, 4)
    assert "| linear, 2 labels a class |" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out/pictures").iterdir()} == {"classes.png", "neighbours.png"}
    with pytest.raises(UserError, match="give --shots 1 or more"):
        probe(data, tmp_path / "out", commands.Asked(shots=0), quiet=True)


@pytest.mark.parametrize("bad", [("a/003.png",), ("a/000.png", "b/011.png"), ("b/005.png",)])
def test_a_map_leaves_bad_pictures_out(
    bad: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And coordinates stay with their pictures, in every network: those of a set without the bad ones."""
    data, clean = pictures(tmp_path / "data", 12, 12), pictures(tmp_path / "clean", 12, 12)
    for name in bad:
        cut(data / name)
        (clean / name).unlink()
    asked, rows = commands.TsneOptions(untrained=True, perplexity=4, k=3), {}
    for root in (data, clean):
        commands.tsne([NET, NET], str(root), tmp_path / f"{root.name}.png", asked, LOOK)
        lines = (tmp_path / f"{root.name}.csv").read_text().splitlines()[1:]
        rows[root.name] = [(line.split(",")[0], *line.replace(root.name, "").split(",")[2:]) for line in lines]
    assert len(rows["data"]) == 3 * (24 - len(bad))
    assert rows["data"] == rows["clean"]
    found = json.loads((tmp_path / "data.json").read_text())["protocol"]
    assert (found["images"], found["bad_images"], len(found["bad"])) == (24 - len(bad), len(bad), len(bad))
    assert capsys.readouterr().err.count("skipped") == len(bad)


def test_embed_and_attention_leave_bad_pictures_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pictures(tmp_path / "data", 2, 2)
    cut(data / "a/001.png")
    file = commands.embed(NET, str(data), tmp_path / "f.npz", LOOK)
    assert np.load(file)["index"].tolist() == [0, 2, 3]
    said = capsys.readouterr()
    assert "without 1 of 4 pictures" in said.out
    assert "skipped" in said.err
    commands.attention(NET, str(data), LOOK, out=tmp_path / "a.png")
    assert "a/001.png" in capsys.readouterr().err
    for name in ("a/000.png", "b/000.png", "b/001.png"):
        cut(data / name)
    with pytest.raises(UserError, match="none of 4 pictures"):
        commands.attention(NET, str(data), LOOK, out=tmp_path / "a.png")
