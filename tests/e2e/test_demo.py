"""The demo, shortened: photographs are told apart, and its page shows what they are and what is alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask import commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo on a tenth of its crops, for a thirtieth of its steps, and its probe."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    settings = ["data.limit=640", "optim.epochs=2", "optim.warmup_epochs=0.2", "runtime.threads=1"]
    commands.pretrain("demo", settings=settings, out=out, quiet=True)
    commands.probe(out, "crops:train", "crops:test", commands.Asked(shots=3), limit=640, quiet=True)
    return out


@pytest.mark.slow
def test_photographs_are_told_apart(run: Path) -> None:
    """Far better than by pixels and by chance; what training adds takes the whole demo (docs/results/demo.md)."""
    found = json.loads((run / "eval" / "probe.json").read_text())
    assert found["few_labels"]["per_class"] == 3
    assert found["protocol"]["few_labels"]["images_per_draw"] == 3 * 16
    assert found["protocol"]["images"] == {"train": 640, "val": 1280}
    for table in (found["knn"], found["linear"]):
        assert table["top1"] > table["pixels"] + 4
        assert table["top1"] > 3 * 100 / 16


@pytest.mark.slow
def test_its_page_shows_photographs_neighbours_and_predictions(run: Path) -> None:
    for name in ("classes", "neighbours", "reconstruction"):
        with Image.open(run / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 400
            assert np.asarray(picture.convert("L")).std() > 10
    page = (run / "report.html").read_text()
    for said in ("What is to be told apart", "What it takes to be alike", "kNN, 3 labels a class", "crops:test"):
        assert said in page
    assert page.count("data:image/png") == 3
    assert page.index("What is to be told apart") < page.index("What it takes to be alike") < page.index("How it went")
