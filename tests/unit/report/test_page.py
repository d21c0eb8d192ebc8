"""report/: the page opens offline, shows what there is and says what is not; the equation has the method's numbers."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.vit import create_vit
from remask.distances import described, smooth_l1, smooth_l1_with, squared
from remask.errors import UserError
from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import equation
from remask.methods import dm, fastmim, jd, mae
from remask.report import write_report
from remask.report.figures import averaged, curves
from remask.targets import Hog, Pixels

RECIPE = """title = "Of <b>bold</b> things"
[data]
source = "digits"
[backbone]
name = "vit_micro"
[method]
name = "mae"
[dm]
views = 2
[jd]
weight = 1.0
[optim]
epochs = 20
"""
PROBE = {
    "linear": {"top1": 54.41, "untrained": 38.2, "pixels": 37.02},
    "few_labels": {
        "per_class": 10, "top1": 28.3, "untrained": 21.2, "pixels": 20.1,
        "knn": {"top1": 25.3, "untrained": 19.9, "pixels": 17.0},
    },
    "knn": {"top1": 46.1, "untrained": 32.5, "pixels": 31.9, "k": 20},
    "protocol": {"seed": 0},
}  # fmt: skip


class Page(HTMLParser):
    """Everything a browser would fetch, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "link", "br", "hr", "input"):
            self.open.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a finished and probed run leaves it; the last metric is half-written."""
    folder = tmp_path / "my-run"
    (folder / "pictures").mkdir(parents=True)
    (folder / "eval").mkdir()
    lines = [
        {
            "step": s, "epoch": s / 10, "loss/total": 3 / s, "loss/masked": 2 / s, "loss/visible": 1 / s, "lr": 1e-3,
            "images_per_s": 100.0, "views_per_s": 200.0, "data_wait": 0.1, **({"probe/knn": 40.0 + s} if s > 8 else {}),
        }
        for s in range(1, 11)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 11, "lo')
    (folder / "eval" / "probe.json").write_text(json.dumps(PROBE))
    cost = {"images": 12345, "views": 24690, "ete": 40.0, "gpu_hours": 0.0, "cpu_hours": 0.25, "data_wait_share": 0.021}
    (folder / "cost.json").write_text(json.dumps(cost))
    (folder / "status.json").write_text(json.dumps({"state": "interrupted", "step": 5, "resume_command": "remask r"}))
    (folder / "env.json").write_text(json.dumps({"versions": {"torch": "9.8.7"}}))
    (folder / "bad_images.txt").write_text("a/<x>.jpg: truncated\n")
    (folder / "recipe.toml").write_text(RECIPE)
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(picture, "PNG")
    (folder / "pictures" / "reconstruction.png").write_bytes(picture.getvalue())
    return folder


def test_page_is_complete(run: Path) -> None:
    path = write_report(run, RECIPE, "L(x) = 1 · < 2")
    assert path == run / "report.html"
    text = path.read_text()
    for shown in (
        "54.4", "38.2", "37.0", "28.3", "17.0", "24,690", "0.25", "9.8.7", "L(x) = 1 · &lt; 2", "2.1 %", "interrupted",
        "kNN accuracy on the way", "MAE with disjoint masking (2 views) and joint distillation on vit_micro",
        "Of &lt;b&gt;bold&lt;/b&gt; things", "a/&lt;x&gt;.jpg: truncated", "remask r",
    ):  # fmt: skip
        assert shown in text, shown
    assert text.count("<svg") == 5
    assert "Not probed yet" not in text
    assert not list(run.glob("*.part"))


def test_page_fetches_nothing(run: Path) -> None:
    text = write_report(run, RECIPE, "").read_text()
    page = Page(text)
    assert page.open == []
    assert page.fetched
    assert all(address.startswith(("data:", "#")) for address in page.fetched)
    assert not re.findall(r"(?:https?:)?//\w|@import|<script|<link", text.replace("data:image/png;base64", ""))


def test_figures_take_the_colour_of_the_page(run: Path) -> None:
    text = write_report(run).read_text()
    svg = text[text.index("<svg") : text.index("</svg>")]
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "<text" in svg
    assert "prefers-color-scheme: dark" in text


def test_ids_of_figures_do_not_collide(run: Path) -> None:
    text = write_report(run).read_text()
    clips = re.findall(r'<clipPath id="([^"]+)"', text)
    assert len(clips) >= 5
    assert len(set(clips)) == len(clips)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("eval/probe.json", "Not probed yet"), ("cost.json", "No cost.json"), ("status.json", "No status.json"),
        ("env.json", "No env.json"), ("bad_images.txt", "No unusable image"), ("metrics.jsonl", "No curves"),
        ("pictures/reconstruction.png", "No pictures yet"), ("recipe.toml", "No recipe.toml"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(run: Path, missing: str, said: str) -> None:
    assert said not in write_report(run).read_text()
    (run / missing).unlink()
    text = write_report(run).read_text()
    assert said in text
    assert Page(text).open == []


def test_an_empty_folder_and_broken_files(tmp_path: Path) -> None:
    assert "No curves" in write_report(tmp_path).read_text()
    for name in ("cost.json", "status.json", "metrics.jsonl", "recipe.toml"):
        (tmp_path / name).write_text("{[")
    assert "No curves" in write_report(tmp_path).read_text()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "loss/total": 1.0}\n')
    assert write_report(tmp_path).read_text().count("<svg") == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run folder"):
        write_report(tmp_path / "absent")


def test_long_curves_are_averaged() -> None:
    x, y = averaged(list(range(6000)), [2.0] * 6000)
    assert len(x) == len(y) == 600
    assert x[0] == 4.5
    assert set(y) == {2.0}
    assert len(curves("long", {"a": (list(range(6000)), [1.0] * 6000)}, "epoch")) < 40_000


def test_equation_of_dmjd() -> None:
    mean, std = [0.5] * 3, [0.25] * 3
    backbone = create_vit("vit_micro", (32, 32), mean, std)
    hog = Hog((4, 4), mean, std, cell=4)
    method = jd(dm(mae(backbone, Masking(0.75, cell=2), hog, (32, 32), 64, 2, 4)), hog, width=32, beta=1.5, weight=0.5)
    lines = equation(method, (32, 32)).splitlines()
    assert lines[0].startswith("L(x) = 1 · mean over 2 views, 48 masked tokens each, of squared( decoder of 2 blocks,")
    assert "HOG central 4 px, LayerNorm )" in lines[0]
    assert lines[1].startswith("     + 0.5 · mean over 2 views, 16 visible tokens each, of smooth-l1 β=1.5( projector")
    text = "\n".join(lines)
    assert "width 128, depth 6, patches of 4×4 px" in text
    assert "cells of 2×2 patches" in text
    assert "m_corr 0.75; K = 2 views" in text
    assert "m_pred 1 (64 of 64 tokens)" in text


def test_equation_of_mae_and_of_independent_views() -> None:
    with torch.device("meta"):
        backbone = create_vit("vit_micro", (32, 48), [0.5], [0.25])
        pixels = Pixels((4, 4), [0.5], [0.25])
        method = mae(backbone, Masking(0.75, Blocks()), pixels, (32, 48), 64, 1, 4)
        text = equation(method, (32, 48))
        independent = equation(dm(method, 2, None), (32, 48))
    assert "1 view, 72 masked tokens, of squared(" in text
    assert "pixels, normalised per patch" in text
    assert "block-wise masking" in text
    assert "m_pred" not in text
    assert "independently: m_pred 0.9375 on average" in independent


def test_equation_of_fastmim_with_masks_finer_than_tokens() -> None:
    with torch.device("meta"):
        backbone, hog = create_hierarchical("resnet18", (64, 96), [0.5], [0.25]), Hog((16, 16), [0.5], [0.25], cell=8)
        text = equation(fastmim(backbone, Masking(0.75), hog, (16, 16), 64, 1, 4), (64, 96))
    assert "1 view, 18 masked tokens, of squared( decoder of 1 block, width 64, over all tokens ; HOG" in text
    assert "f  ResNet of width 512, depth 5, patches of 32×32 px; sees all patches, masked pixels replaced by a" in text
    assert "x  image of 64×96 px, 4×6 = 24 tokens of 16×16 px" in text


def test_equation_of_a_size_that_does_not_fit() -> None:
    backbone = create_vit("vit_micro", (32, 32), [0.5], [0.25])
    method = mae(backbone, Masking(0.75), Pixels((4, 4), [0.5], [0.25]), (32, 32), 64, 1, 4)
    with pytest.raises(UserError):
        equation(method, (33, 32))


def test_distances_are_described() -> None:
    assert described(squared) == "squared"
    assert described(smooth_l1) == "smooth-l1 β=2"
    assert described(smooth_l1_with(0.5)) == "smooth-l1 β=0.5"


def test_pictures_of_a_probe_stand_beside_its_numbers(run: Path) -> None:
    for name in ("classes", "neighbours"):
        (run / "pictures" / f"{name}.png").write_bytes((run / "pictures" / "reconstruction.png").read_bytes())
    text = write_report(run, RECIPE).read_text()
    order = ["What it learned", "What is to be told apart", "Linear, all labels", "What it takes to be alike"]
    order += ["What it sees and predicts", "reconstruction", "How it went"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert text.count("data:image/png") == 3
    assert Page(text).open == []
