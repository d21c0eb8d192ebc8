"""The demo, shortened: it learns to tell photographs apart, and its page shows what they are and what is alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from remask import commands


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of the demo's crops, for a third of its steps."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    settings = ["data.limit=1280", "optim.epochs=12", "optim.warmup_epochs=1", "runtime.threads=1"]
    commands.pretrain("demo", settings=settings, out=out, quiet=True)
    asked = commands.Asked(shots=3)
    commands.probe(out, "crops:train", "crops:val", asked, limit=1280, quiet=True)
    return out


@pytest.mark.slow
def test_it_learns(run: Path) -> None:
    """Photographs at the full length: kNN 50 and more trained, 25 untrained, 15 by pixels."""
    found = json.loads((run / "eval" / "probe.json").read_text())
    assert found["few_labels"]["per_class"] == 3
    assert found["protocol"]["few_labels"]["images_per_draw"] == 3 * 16
    for table in (found["knn"], found["linear"]):
        assert table["top1"] > table["pixels"] + 5


@pytest.mark.slow
def test_its_page_shows_photographs_neighbours_and_predictions(run: Path) -> None:
    for name in ("classes", "neighbours", "reconstruction"):
        with Image.open(run / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 400
            assert np.asarray(picture.convert("L")).std() > 10
    page = (run / "report.html").read_text()
    for said in ("What is to be told apart", "What it takes to be alike", "kNN, 3 labels a class", "crops:val"):
        assert said in page
    assert page.count("data:image/png") == 3
    assert page.index("What is to be told apart") < page.index("What it takes to be alike") < page.index("How it went")
