"""Fine-tuning, segmentation, detection, probes and features in two processes: the numbers of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remask import commands
from tests.e2e.test_dense import drawn, of_boxes, of_masks

pytestmark = [pytest.mark.skipif(os.name != "posix", reason="needs POSIX"), pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "runtime.threads": 1,
    "runtime.workers": 0,
    "runtime.log_every": 1,
    "runtime.device": "cpu",
    "runtime.tensorboard": False,
    "optim.precision": "fp32",
    "optim.batch_size": 7,
    "optim.epochs": 3,
    "optim.lr": 1e-3,
    "optim.clip": 0.5,
}
"""Batches of 7, which two processes share as 4 and 3."""
FINETUNE = {
    "data.source": "digits",
    "data.limit": 60,
    "data.image_size": 16,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
}


def of_one(task: str, given: dict[str, Any], out: Path) -> Path:
    return getattr(commands, task)("untrained:vit_micro", None, SETTINGS | given, out=out, quiet=True)


def torchrun(*arguments: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "remask"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    return subprocess.run(
        [sys.executable, "-m", *launch, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def remask(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "remask", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)


def of_two(task: str, given: dict[str, Any], out: Path, processes: int = 2) -> Path:
    options = [text for key, value in (SETTINGS | given).items() for text in ("--set", f"{key}={json.dumps(value)}")]
    done = torchrun(task, "untrained:vit_micro", "--out", out, *options, processes=processes)
    assert done.returncode == 0, done.stderr
    return out


def losses(run: Path) -> dict[int, dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: {k: v for k, v in line.items() if k.startswith(("loss/", "val/", "grad"))} for line in lines}


def assert_same(one: Path, two: Path, task: str, exact: int = 100) -> None:
    """Losses of the first `exact` steps to 1e-6, then to 1e-4; gradients of the first steps; every number of the test.

    Where a gradient is nothing but rounding, Adam moves a weight by a whole rate all the same: norms drift apart later.
    """
    expected, found = losses(one), losses(two)
    assert list(found) == list(expected)
    assert len(expected) >= 4
    for step, values in expected.items():
        norm, tolerance = values.pop("grad_norm"), 1e-6 if step <= exact else 1e-4
        assert found[step].pop("grad_norm") == pytest.approx(norm, rel=1e-6 if step <= 3 else 1e-3), f"step {step}"
        assert found[step] == pytest.approx(values, abs=tolerance), f"step {step}"
    results = [json.loads((run / "eval" / f"{task}.json").read_text()) for run in (one, two)]
    for result in results:
        result.pop("cost")
    assert numbers(results[1]) == pytest.approx(numbers(results[0]), abs=1e-4)
    status = json.loads((two / "status.json").read_text())
    assert status["state"] == "finished"


def numbers(value: Any, name: str = "") -> dict[str, float]:
    """All numbers of a JSON file, by their place."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in numbers(inner, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in numbers(inner, f"{name}.{i}").items()}
    return {name: value} if isinstance(value, int | float) else {}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("dense")
    return drawn(root / "train", 15), drawn(root / "val", 5)


def test_finetune(tmp_path: Path) -> None:
    """Pictures are mixed with those of the other process; the average of the weights is what is tested."""
    given = FINETUNE | {"optim.ema": 0.9, "model.drop_path": 0.3, "model.dropout": 0.2}
    one, two = of_one("finetune", given, tmp_path / "one"), of_two("finetune", given, tmp_path / "two")
    assert_same(one, two, "finetune")


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=pytest.mark.soak)])
def test_segment(sets: tuple[Path, Path], tmp_path: Path, norm: str) -> None:
    """Batch norms take their statistics from all processes; the mean is over the labelled pixels of the whole batch."""
    given = of_masks(sets) | {"data.classes": 2, "data.image_size": 32, "model.width": 16}
    given |= {"model.norm": norm}
    one, two = of_one("segment", given, tmp_path / "one"), of_two("segment", given, tmp_path / "two")
    assert_same(one, two, "segment")


def test_detect(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """Anchors and regions are drawn by each picture's own seed, and counted over all processes."""
    given = of_boxes(sets) | {"data.image_size": 64, "model.width": 16, "test.detections": 10}
    one, two = of_one("detect", given, tmp_path / "one"), of_two("detect", given, tmp_path / "two")
    assert_same(one, two, "detect", exact=3)  # later a rounded number may choose another region


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-one pictures of three classes, of which one is not a picture: the second half of a batch lacks one."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(61):
        (folder / "abc"[i % 3]).mkdir(exist_ok=True)
        pixels = random.integers(0, 200, (20, 24, 3), dtype=np.uint8)
        pixels[..., i % 3] += 50
        Image.fromarray(pixels).save(folder / "abc"[i % 3] / f"{i:02d}.png")
    (folder / "b" / "40.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("probe", ["--shots", "3"]),
        pytest.param("layers", ["--layers", "0,-1"], marks=pytest.mark.soak),
        ("linprobe", ["--protocol", "mae", "--epochs", "3"]),
        pytest.param("attentive", ["--protocol", "attentive", "--epochs", "2"], marks=pytest.mark.soak),
    ],
)
def test_probe(pictures: Path, tmp_path: Path, name: str, options: list[str]) -> None:
    """Accuracies are those of one process: features are taken of shares, and classifiers learn on all."""
    command = ["probe", "untrained:vit_micro", "--data", pictures, "--image-size", "16", "--device", "cpu", *options]
    found = []
    for out, run in ((tmp_path / "one", remask), (tmp_path / "two", torchrun)):
        done = run(*command, "--out", out)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("40.png") == 1, "the process that found it tells the first, which says it"
        found.append(json.loads((out / "eval" / f"{name}.json").read_text()))
    assert numbers(found[1]) == pytest.approx(numbers(found[0]), abs=1e-3)
    assert found[1]["protocol"]["pictures"] == found[0]["protocol"]["pictures"]


def test_embed(pictures: Path, tmp_path: Path) -> None:
    """One row for each picture that can be used, in the source's order."""
    tables = []
    for out, run in ((tmp_path / "one.npz", remask), (tmp_path / "two.npz", torchrun)):
        done = run("embed", "untrained:vit_micro", "--data", pictures, "--image-size", "16", "--out", out)
        assert done.returncode == 0, done.stderr
        tables.append(dict(np.load(out)))
    assert tables[0]["index"].tolist() == tables[1]["index"].tolist()
    assert len(tables[0]["index"]) == 60
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    assert np.allclose(tables[0]["feature"], tables[1]["feature"], atol=1e-6)


def test_other_commands_say_that_they_are_for_one_process(pictures: Path, tmp_path: Path) -> None:
    done = torchrun("attention", "untrained:vit_micro", "--images", pictures, "--out", tmp_path / "a.png")
    assert done.returncode != 0
    assert "this command runs in a single process: start it without torchrun" in done.stderr
