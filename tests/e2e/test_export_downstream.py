"""remask export of a fine-tuned run: timm's numbers are ours, remask rebuilds the rest from the folder alone."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from remask import commands
from remask.downstream.build import build_model
from remask.downstream.export import load_export
from remask.downstream.training import learned, restored
from remask.errors import UserError
from remask.runs.opening import open_task
from remask.training.run_folder import RunFolder

SETTINGS = ["runtime.threads=1", "optim.precision=fp32", "runtime.workers=0"]
NETS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit, mean": ("untrained:vit_micro", 16, {}),
    "vit, cls": ("untrained:vit_micro", 16, {"model.pool": "cls"}),
    "averaged": ("untrained:vit_micro", 16, {"optim.ema": 0.5}),
    "resnet": ("untrained:resnet18", 64, {}),
    "pvt": ("untrained:pvt_v2_b0", 64, {}),
    "convnext": ("untrained:convnext_atto", 64, {}),
}
BY_REMASK = ("convnext",)
"""timm's ConvNeXt norms the mean of the map, and our head averages the normed map: they differ beyond one cell."""


def finetuned(start: str, size: int, changed: dict[str, Any], out: Path) -> Path:
    given = {"data.source": "digits", "data.limit": 100, "data.image_size": size, "optim.epochs": 1,
             "optim.batch_size": 40, "optim.lr": 1e-2, "model.init_scale": 1.0, **changed}  # fmt: skip
    return commands.finetune(start, None, given, settings=SETTINGS, out=out, quiet=True)


def own(path: Path) -> Any:
    """The model that was tested, from its checkpoint."""
    run, recipe = open_task(path)
    model, _ = build_model(recipe, run.read("task.json"))
    return learned(restored(model, recipe, RunFolder(path))).eval()


@pytest.mark.parametrize("net", NETS)
def test_a_classifier(net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    start, size, changed = NETS[net]
    run = finetuned(start, size, changed, tmp_path / "run")
    folder = commands.export(run)
    config = json.loads((folder / "model.json").read_text())
    assert config["loader"] == ("remask" if net in BY_REMASK else "timm")
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = own(run).logits(pixels)
        if net in BY_REMASK:
            found = load_export(folder)[0].logits(pixels)
        else:
            model = timm.create_model(config["model"], **config["arguments"]).eval()
            model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
            found = model((pixels / 255 - mean) / std)
    assert wanted.std() > 0.01, "logits that are all alike tell nothing"
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    monkeypatch.setattr("sys.argv", ["load_example.py"])
    runpy.run_path(str(folder / "load_example.py"))
    assert capsys.readouterr().out.count("%") == 5
    second = commands.ModelOptions(image_size=None)
    features = commands.embed(f"run:{folder}", "digits:val", tmp_path / "x.npz", second, limit=8, quiet=True)
    assert features.exists(), "its backbone opens as any other's"


def test_what_timm_has_not_moves_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Neither the run nor what it started from need be there."""
    first = tmp_path / "first"
    commands.pretrain(
        "convmae-convit-micro-cifar", {"data.source": "digits", "data.limit": 40, "optim.max_steps": 1},
        settings=["runtime.threads=1", "optim.batch_size=16"], out=first, quiet=True,
    )  # fmt: skip
    run = finetuned(str(first), 32, {}, tmp_path / "run")
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        wanted = own(run).logits(pixels)
    folder = commands.export(run, tmp_path / "elsewhere")
    shutil.rmtree(first)
    shutil.rmtree(run)
    with torch.no_grad():
        assert torch.equal(load_export(folder)[0].logits(pixels), wanted)
    monkeypatch.setattr("sys.argv", ["load_example.py"])
    runpy.run_path(str(folder / "load_example.py"))
    assert "%" in capsys.readouterr().out
    with pytest.raises(UserError, match="no export of a downstream run"):
        load_export(tmp_path)
    with pytest.raises(UserError, match="is no run"):
        commands.export(tmp_path)
