"""Fine-tuning from the command's side: it learns, resumes bit by bit, tests a finished run, and refuses in one line."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from remask import commands
from remask.errors import UserError
from remask.training.trainer import Trainer

SETTINGS = ["runtime.threads=1", "optim.precision=fp32", "runtime.log_every=3", "runtime.save_every_minutes=0.00001"]
SMALL = {"data.source": "digits", "data.limit": 300, "data.image_size": 16, "optim.epochs": 3, "optim.batch_size": 32}


def finetune(out: Path, **changed: object) -> Path:
    start = str(changed.pop("start", "untrained:vit_micro"))
    return commands.finetune(start, None, SMALL | changed, settings=SETTINGS, out=out, quiet=True)


def curve(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss/total"]) for line in map(json.loads, (run / "metrics.jsonl").open())]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with averaged weights and mixed pictures."""
    return finetune(tmp_path_factory.mktemp("finetune") / "run", **{"optim.ema": 0.9, "data.share": 0.9})


def test_it_leaves_numbers_and_a_picture(run: Path) -> None:
    found = json.loads((run / "eval" / "finetune.json").read_text())
    assert found["images"] == 60
    assert found["classes"] == 10
    assert sum(map(sum, found["confusion"])) == 60
    assert found["top1"] == pytest.approx(100 * sum(row[i] for i, row in enumerate(found["confusion"])) / 60)
    assert found["protocol"]["images"] == pytest.approx(0.9 * 240, abs=10)
    assert Image.open(run / "pictures" / "confusion.png").size[0] > 300


def test_a_killed_run_goes_on_bit_by_bit(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = Trainer._after_step

    def killed(self: Trainer, *arguments: object) -> None:
        after(self, *arguments)  # type: ignore[arg-type]
        if self.global_step == 10:
            raise MemoryError("killed")

    monkeypatch.setattr(Trainer, "_after_step", killed)
    with pytest.raises(MemoryError):
        finetune(tmp_path / "cut", **{"optim.ema": 0.9, "data.share": 0.9})
    monkeypatch.setattr(Trainer, "_after_step", after)
    assert commands.resume(tmp_path / "cut", quiet=True) == tmp_path / "cut"
    assert curve(tmp_path / "cut") == curve(run)
    last = "checkpoints/last/model.safetensors"
    assert (tmp_path / "cut" / last).read_bytes() == (run / last).read_bytes()
    same = [json.loads((path / "eval" / "finetune.json").read_text())["confusion"] for path in (run, tmp_path / "cut")]
    assert same[0] == same[1]


def test_the_average_is_tested_and_is_not_the_last_weights(run: Path) -> None:
    state = load_file(run / "checkpoints" / "last" / "model.safetensors")
    assert not torch.equal(state["model.head.weight"], state["average.module.head.weight"])


def test_a_finished_run_is_tested_again_on_other_pictures(run: Path) -> None:
    before = json.loads((run / "eval" / "finetune.json").read_text())["top1"]
    assert commands.evaluate(run, quiet=True)["top1"] == before
    assert commands.evaluate(run, {"data.val": "digits:val"}, quiet=True)["images"] != 60


def test_a_run_can_be_started_from(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no export"):
        finetune(tmp_path / "second", start=str(run))


@pytest.mark.parametrize(
    ("start", "changed", "words"),
    [
        (None, {}, "no network to start from"),
        ("nothing", {}, "nothing is no run"),
        ("untrained:vit_micro", {"data.source": None}, "no pictures to learn from"),
        ("untrained:vit_micro", {"data.source": "photos"}, "photos has no labels"),
        ("untrained:vit_micro", {"optim.epoch": 3}, "did you mean optim.epochs"),
        ("untrained:vit_micro", {"data.image_size": 18}, "18"),
        ("untrained:vit_micro", {"data.val": "photos"}, "photos has no labels"),
        ("untrained:vit_micro", {"augment.randaugment": "rand-x9"}, "rand-x9"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    start: str | None, changed: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words) as error:
        commands.finetune(start, None, SMALL | changed, settings=SETTINGS, out=tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
