"""benchmarks/: what `make bench` and `make bench-gpu` make of what they find; that entrants run. No time is tested."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import average, entrants, gpu, gpu_steps, results, step
from benchmarks.apart import Maker, apart
from benchmarks.entrants import Seconds
from remask.errors import UserError
from remask.recipe import load_recipe

VIT = {"backbone.name": "vit_micro", "backbone.width": 32, "backbone.depth": 1, "backbone.heads": 2}
SMALL = {**VIT, "data.image_size": 32, "method.decoder_width": 32, "method.decoder_depth": 2, "method.decoder_heads": 4}
MET = {"name": "one", "ratio": 2.0, "spread": (1.5, 2.5), "bar": 1.5, "unit": "x"}
LIMIT = {"name": "two", "ratio": 0.9, "bar": -0.8, "unit": "x"}
NONE = {"name": "three", "bar": 2.0, "unit": "x", "unmeasured": "no such CPU"}


def parts(monkeypatch: pytest.MonkeyPatch, **runs: Any) -> None:
    """In place of the benchmarks."""
    monkeypatch.setattr(bench, "PARTS", tuple(runs))
    monkeypatch.setattr(bench, "run", lambda part: runs[part]())


def test_rows_say_whether_their_bars_are_met() -> None:
    assert [results.verdict(row) for row in (MET, LIMIT, NONE)] == ["met", "MISSED", "not measured: no such CPU"]
    assert results.line(MET) == "| one | 2.00 x | 1.50 to 2.50 | ≥ 1.5 | met |"
    assert results.line(LIMIT) == "| two | 0.90 x | – | ≤ 0.8 | MISSED |"
    assert results.line(NONE) == "| three | – | – | ≥ 2 | not measured: no such CPU |"


def test_a_part_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield NONE
        raise RuntimeError("no luck")

    parts(monkeypatch, broken=broken, good=lambda: [MET])
    assert bench.main(["--out", str(tmp_path)]) == 1
    assert "part broken failed: RuntimeError: no luck" in capsys.readouterr().err
    stored = json.loads((tmp_path / "performance.json").read_text())["parts"]
    assert [row["name"] for name in ("broken", "good") for row in stored[name]["rows"]] == ["three", "one"]
    text = (tmp_path / "performance.md").read_text()
    assert "1 bars met, 0 missed, 1 not measured" in text
    assert "**Failed**: RuntimeError: no luck" in text
    assert (tmp_path / "performance.png").stat().st_size > 5000


def test_parts_that_are_not_chosen_keep_their_rows_and_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts(monkeypatch, first=lambda: [MET], second=lambda: [MET])
    assert bench.main(["--out", str(tmp_path)]) == 0
    file = tmp_path / "performance.json"
    file.write_text(file.read_text().replace('"measured": "', '"measured": "once '))
    assert bench.main(["second", "--out", str(tmp_path)]) == 0
    stored = json.loads(file.read_text())["parts"]
    assert stored["first"]["measured"].startswith("once")
    assert not stored["second"]["measured"].startswith("once")
    assert stored["second"]["command"] == "python -m benchmarks second"
    before = file.read_text()
    parts(monkeypatch, first=lambda: [LIMIT])
    assert bench.main(["--no-write"]) == 1
    assert file.read_text() == before


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["stop"])
    assert "there is no part stop: choose from startup, step, cross, masks, alike, hog" in capsys.readouterr().err


@pytest.mark.parametrize("part", bench.PARTS)
def test_every_part_can_begin(part: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{part}").run)


def test_dmjd_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and the textbook's, each in a process, in times and bytes; what this CPU cannot do is said, or done."""
    monkeypatch.setattr(step, "bf16", lambda: False)
    monkeypatch.setattr(step, "amx", lambda: True)
    rows = list(step.dmjd(step.Case("micro", "mae-dmjd-vit-b", SMALL, 2, 1, 1.1, 0.8, 2.8)))
    assert [row["bar"] for row in rows] == [1.1, -0.8, 1.1, 2.8]
    assert 0 < rows[0]["ratio"] < 100
    assert 0 < rows[1]["ratio"] < 1
    assert [row.get("unmeasured") for row in rows[2:]] == [step.NO_BF16] * 2


def test_forms_of_a_comparison() -> None:
    """As each runs, ours has the fused AdamW and the other its own; alike, first its own and then the fused one."""
    times = [{"ours": Seconds(1, 2, 1), "it": Seconds(3, 2, 1)}]
    rows = [row for alike in (False, True) for row in step.compared("a", times, "it", 1.1, alike=alike)]
    assert [(row["ratio"], row["bar"]) for row in rows] == [(2.5, 1.1), (2.5, 1.1), (2.0, 1.0)]
    assert [row["name"].rpartition(", ")[2] for row in rows] == [
        "as each runs",
        "memory alike",
        "memory and AdamW alike",
    ]


def test_rows_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that has it: the other's step over ours, and ours in fp32."""
    case = step.Case("micro", "mae-dmjd-vit-b", SMALL, 2, 1, 1.1, 0.8, 2.8)
    times = [{"ours": Seconds(5, 2, 1), "ours, bf16": Seconds(1, 2, 1), "the textbook, bf16": Seconds(2, 2, 1)}]
    monkeypatch.setattr(step, "bf16", lambda: True)
    for tiles, bar in ((True, 2.8), (False, step.GAIN_WITHOUT_AMX)):
        monkeypatch.setattr(step, "amx", lambda tiles=tiles: tiles)
        assert [(row["ratio"], row["bar"]) for row in step.half("name", case, times)] == [(2.0, 1.1), (3.0, bar)]
    assert len(list(step.half("name", case._replace(gain=None), times))) == 1


def test_a_process_that_fails_says_why() -> None:
    creator_of = Maker(partial(step.trained, entrants.ours, "x", {}, 1), keep=True)
    with pytest.raises(UserError, match='unknown recipe "x"'), apart({"one": creator_of}):
        pass


def test_entrants_train() -> None:
    """Each learns from its pictures; the optimizer is its own again after the fused step."""
    for peer in ("transformers", "lightly"):
        pytest.importorskip(peer)
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    made = [
        entrants.hugging_face(pixels, image_size=32, decoder_intermediate_size=64, **sizes, **decoder),
        entrants.lightly(pixels, 32, 1, 2, (32, 1, 2)),
    ]
    for one in made:
        before = [p.clone() for p in one.model.parameters()]
        assert min(one.seconds()) >= 0
        assert any(not torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True))
        assert not any(group["fused"] for group in one.optimizer.param_groups)
        assert torch.isfinite(one.loss())


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "bench-gpu: torch sees no CUDA device here, so nothing was measured\n"


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs(tmp_path: Path, repo: Path) -> None:
    """On a CPU at toy sizes, in a process of its own: here every call's shapes are checked, which no compiler likes."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{repo / 'src'}{os.pathsep}{repo}"}
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # toy sizes meet no bar
    record = json.loads((tmp_path / "performance-gpu.json").read_text())["parts"]["gpu"]
    rows = {row["name"]: row for row in record["rows"]}
    assert not [row for row in rows.values() if row.get("failed")]
    assert {row["unmeasured"] for row in rows.values() if "unmeasured" in row} == {"no CUDA device"}
    assert len(rows) == 4 * len(gpu_steps.CASES) + 2 + 1 + 1 + 1
    assert all(row["ratio"] == 0 for name, row in rows.items() if "compilations after" in name)
    assert all(row["ratio"] > 0 for row in rows.values() if row["unit"] in ("x", "%") and "unmeasured" not in row)
    two = next(row for name, row in rows.items() if name.startswith("DMJD ViT-B") and "MFU" in name)
    assert two["views_per_s"] == pytest.approx(2 * two["images_per_s"])


def test_gpu_rows_are_written_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that fails is a row, and so is one for which there is no time."""
    seen = []

    def found() -> Iterator[dict[str, Any]]:
        yield MET
        seen.append(json.loads((tmp_path / "performance-gpu.json").read_text())["parts"]["gpu"]["rows"])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "parts", lambda session, data: iter([("first", found), ("second", found)]))
    clock = iter([0.0, 0.0, 0.0, 1.0, 999.0, 999.0, 999.0])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(clock))
    assert gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 1
    assert [row["name"] for row in seen[0]] == ["one"]
    text = (tmp_path / "performance-gpu.md").read_text()
    assert "not measured: RuntimeError: out of memory" in text
    assert "not measured: no time left after 460 s" in text


def test_every_case_is_a_recipe() -> None:
    assert [load_recipe(case.recipe, {}, environment={}).name for case in gpu_steps.CASES]
    assert all(case.faster is None or case.faster > 1 for case in gpu_steps.CASES)


def test_a_supervised_step_is_one_of_the_whole_network() -> None:
    """What a refiner's step is measured against."""
    entrant = average.supervised("refiner-vit-micro-cifar", 2)
    entrant.loss().backward()
    assert all(p.grad is not None for p in entrant.model.parameters() if p.requires_grad)
    blocks = [p for name, p in entrant.model.named_parameters() if "blocks.0." in name]
    assert blocks
    assert all(p.requires_grad for p in blocks)


def test_what_follows_an_update_is_in_the_step() -> None:
    """The moving average and the queue of a refiner."""
    entrant = step.trained(entrants.ours, "refiner-vit-micro-cifar", {"refine.queue": 32}, 4)
    entrant.model.train()
    entrant.seconds()
    assert all(int(branch.target.written) == 4 for branch in entrant.model.branches)  # type: ignore[attr-defined,union-attr]
