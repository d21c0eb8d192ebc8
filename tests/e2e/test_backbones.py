"""FastMIM with any network: families of timm from their names alone, to a run folder, and no weight left untouched."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from remask import commands
from remask.build.pretraining import build_method
from remask.cli.main import app
from remask.recipe import choose
from remask.runs.progressive import at_size
from tests.rounding import reached

FAMILIES = (
    "pvt_v2_b0", "convnext_atto", "resnet18", "edgenext_xx_small", "xcit_nano_12_p16_224", "mobilenetv3_small_100",
    "regnety_002", "cmt_micro", "deit3_small_patch16_224", "swin_tiny_patch4_window7_224", "poolformer_s12",
    "mobilevit_xxs",
)  # fmt: skip
SLOW = ("efficientnet_b0", "swinv2_cr_tiny_ns_224", "twins_svt_small")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "report", lambda path: path)  # the same for every network, and half of the time
    out = tmp_path / "run"
    command = f"pretrain --recipe fastmim-vit-micro --model {name} --smoke --data photos --out {out} --quiet"
    quick = ["--limit", "8", "--set", "runtime.tensorboard=false"]
    done = CliRunner().invoke(app, [*command.split(), *quick], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.tensor(line["loss/total"]).isfinite() for line in lines)
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    config = json.loads((out / "export" / "config.json").read_text())
    state = load_file(out / "export" / "backbone.safetensors")
    if config["model"] != "cmt_micro":
        timm.create_model(config["model"], **config["arguments"]).load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", [*FAMILIES, *SLOW])
def test_two_steps_reach_every_parameter(name: str) -> None:
    """The second, for branches that start at zero pass nothing on in the first."""
    recipe = choose("fastmim-vit-micro", {"backbone.name": name}, smoke=True)
    side = min(64, recipe.data.image_size[0])
    method = build_method(at_size(recipe, (side, side)))
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trainable: dict[str, Any] = {name: p for name, p in method.named_parameters() if p.requires_grad}
    found = set[str]()
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        method(images)["total"].backward()
        found |= reached(method)
        optimizer.step()
    assert found == set(trainable)
