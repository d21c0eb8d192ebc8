"""Features into a file, maps of several networks, attention over pictures, and probes of what is no run."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask import commands
from remask.errors import UserError

LOOK = commands.ModelOptions(image_size=(16, 16))
NET = "untrained:vit_micro"


def test_embed(tmp_path: Path) -> None:
    found = np.load(commands.embed(NET, "digits:val", tmp_path / "features.npz", LOOK, quiet=True))
    assert found["feature"].shape == (355, 128)
    assert len(set(found["path"].tolist())) == 355
    with pytest.raises(UserError, match="parquet or"):
        commands.embed(NET, "digits:val", tmp_path / "features.csv", LOOK, quiet=True)


def test_tsne_puts_networks_side_by_side(tmp_path: Path) -> None:
    asked = commands.TsneOptions(names=("a", "b"), untrained=True, classes=4, per_class=20, perplexity=10, k=5)
    picture = commands.tsne([NET, NET], "digits", tmp_path / "maps.png", asked, LOOK, quiet=True)
    rows = (tmp_path / "maps.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 * 80
    assert Image.open(picture).size[0] > 1000
    found = json.loads((tmp_path / "maps.json").read_text())["separation"]
    assert set(found) == {"untrained", "a", "b"}
    assert found["a"] == found["b"], "the same network twice"
    with pytest.raises(UserError, match="no labels"):
        commands.tsne([NET], "photos", tmp_path / "other.png", model=LOOK, quiet=True)
    assert not (tmp_path / "other.png").exists()


def test_tsne_of_few_images_lowers_what_they_do_not_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    asked = commands.Mapped(classes=3, per_class=4)  # of perplexity 30, and 20 neighbours
    commands.tsne([NET], "digits", tmp_path / "few.png", asked, LOOK)
    line = "t-SNE: 12 images allow no more than perplexity 3.67 and 11 neighbours, which are taken"
    assert line in capsys.readouterr().err.splitlines()
    used = json.loads((tmp_path / "few.json").read_text())["protocol"]
    assert (used["perplexity"], used["k"]) == (pytest.approx(11 / 3), 11)
    commands.tsne([NET], "digits", tmp_path / "k.png", asked._replace(perplexity=5, k=99), LOOK)
    assert "perplexity 5 and 11 neighbours" in capsys.readouterr().err
    with pytest.raises(UserError, match="3 images are too few"):
        commands.tsne([NET], "digits", tmp_path / "no.png", commands.Mapped(classes=3, per_class=1), LOOK)


def test_tsne_leaves_out_what_cannot_be_used_and_takes_any_class_name(tmp_path: Path) -> None:
    """The map, its table and its summary are of the pictures that could be read."""
    numbers = np.random.default_rng(0)
    for name in ("$\\foo$", "_hidden", "$5-$10"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            pixels = numbers.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    bad = tmp_path / "pictures" / "_hidden" / "3.png"
    bad.write_bytes(bad.read_bytes()[:900])
    options = commands.TsneOptions(classes=3, per_class=8, perplexity=3, k=3)
    commands.tsne([NET, NET], str(tmp_path / "pictures"), tmp_path / "maps.png", options, LOOK, quiet=True)
    assert len((tmp_path / "maps.csv").read_text().splitlines()) == 1 + 2 * 23
    assert json.loads((tmp_path / "maps.json").read_text())["protocol"]["bad_images"] == 1


def test_attention(tmp_path: Path) -> None:
    picture = commands.attention(
        NET, "photos", commands.ModelOptions(image_size=(32, 32)), out=tmp_path / "a.png", count=2
    )
    assert Image.open(picture).size[0] > 300
    with pytest.raises(UserError, match="--out"):
        commands.attention(NET)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (commands.ProbeOptions(layers=(0, -1)), "layers"),
        (commands.ProbeOptions("mae", epochs=2), "linprobe"),
        (commands.ProbeOptions("attentive", epochs=1), "attentive"),
        (commands.ProbeOptions(fractions=(0.5,)), "probe"),
    ],
)
def test_probes_of_a_specification(asked: commands.ProbeOptions, name: str, tmp_path: Path) -> None:
    found = commands.probe(NET, "digits:train", "digits:val", asked, LOOK, limit=400, out=tmp_path, quiet=True)
    assert json.loads((tmp_path / "eval" / f"{name}.json").read_text())["protocol"]["image_size"] == [16, 16]
    assert found["protocol"]["val"] == "digits:val"
    assert (tmp_path / "pictures" / "layers.png").exists() == (name == "layers")
