"""interop/export.py: what is written is timm's own, loads strictly without remask, and runs as a script."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.vit import ViT, create_vit
from remask.interop.encoders import open_encoder
from remask.interop.export import EXAMPLE, export_backbone
from remask.interop.reader import reader_text
from remask.interop.start import start

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
CASES = {
    "class token": ("vit_micro", (16, 24), 3, "sincos"),
    "learned positions": ("vit_tiny", (16, 16), 3, "learned"),
    "one channel": ("vit_micro", (16, 16), 1, "sincos"),
    "registers": ("vit_base_patch16_reg4_gap_256", (24, 16), 3, "sincos"),
    "no prefix": ("vit_base_patch16_siglip_224", (16, 16), 2, "learned"),
}


def exported(folder: Path, name: str, size: tuple[int, int], channels: int, positions: str) -> ViT:
    torch.manual_seed(0)
    mean, std = [0.4] * channels, [0.2] * channels
    backbone = create_vit(name, size, mean, std, positions=positions, overrides=SMALL).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    export_backbone(backbone, folder, size, mean, std)
    return backbone


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_timm_alone_rebuilds_the_backbone(tmp_path: Path, case: tuple[str, tuple[int, int], int, str]) -> None:
    backbone = exported(tmp_path / "export", *case)
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    model = timm.create_model(config["model"], **config["arguments"]).eval()
    model.load_state_dict(load_file(tmp_path / "export" / "backbone.safetensors"), strict=True)
    _, size, channels, _ = case
    assert config["image_size"] == list(size)
    images = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        theirs = model.forward_features((images / 255 - mean) / std)
        ours = backbone(images)
    assert torch.allclose(torch.cat([ours.prefix, ours.tokens], dim=1), theirs, atol=1e-5, rtol=1e-4)


def test_nothing_of_pre_training_is_exported(tmp_path: Path) -> None:
    backbone = exported(tmp_path, *CASES["class token"])
    stored = load_file(tmp_path / "backbone.safetensors")
    assert set(stored) == set(backbone.network.state_dict())
    assert not [key for key in stored if "mask" in key or "decoder" in key or "head" in key]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "backbone.safetensors",
        "config.json",
        "load_example.py",
        "manifest.json",
        "read_pixels.py",
    ]


def test_the_script_knows_nothing_of_remask() -> None:
    assert "remask" not in EXAMPLE
    assert not [line for line in reader_text().splitlines() if "import" in line and "remask" in line]


@pytest.mark.parametrize(("name", "tokens"), [("resnet18", "1, 2, 3, 512"), ("cmt_micro", "1, 2, 3, 192")])
def test_the_script_of_a_map_of_features(
    tmp_path: Path, name: str, tokens: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: its features are the mean of the tokens that are probed; CMT's maker is remask."""
    backbone = create_hierarchical(name, (64, 96), [0.4] * 3, [0.2] * 3).eval()
    export_backbone(backbone, tmp_path, (64, 96), [0.4] * 3, [0.2] * 3)
    assert ("import create_hierarchical" in (tmp_path / "load_example.py").read_text()) == (name == "cmt_micro")
    monkeypatch.setattr(sys, "argv", ["load_example.py"])
    made = runpy.run_path(str(tmp_path / "load_example.py"))
    assert capsys.readouterr().out == f"{name}: tokens ({tokens}), features (1, {backbone.width})\n"
    with torch.no_grad():
        ours = backbone(made["images"]).tokens.mean(1)
    assert torch.allclose(ours, made["features"], atol=1e-4)


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path) -> None:
    """On a picture of another size and mode than the network was built for; slow: a process imports timm."""
    from PIL import Image

    folder = tmp_path / "export"
    exported(folder, *CASES["class token"])
    Image.new("RGBA", (50, 30), (200, 20, 20, 255)).save(tmp_path / "picture.png")
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "load_example.py"), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "vit_tiny_patch16_224: tokens (1, 7, 16), features (1, 16)\n"


def test_several_class_tokens_come_back(tmp_path: Path) -> None:
    """timm has them as a class token and registers; here, and as a start, they are class tokens again."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    backbone = create_vit("vit_micro", (16, 16), [0.5] * 3, [0.25] * 3, overrides=sizes, class_tokens=3).eval()
    torch.nn.init.normal_(backbone.network.reg_token)
    export_backbone(backbone, tmp_path, (16, 16), [0.5] * 3, [0.25] * 3)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["class_tokens"], config["arguments"]["reg_tokens"]) == (3, 2)
    model = timm.create_model(config["model"], **config["arguments"])
    model.load_state_dict(load_file(tmp_path / "backbone.safetensors"), strict=True)
    opened: Any = open_encoder(f"run:{tmp_path}")
    started, _ = start(f"run:{tmp_path}", (16, 16))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    for found in (opened.eval(), started.eval()):
        assert (found.class_tokens, found.prefix) == (3, 3)
        with torch.no_grad():
            assert torch.equal(found(images).prefix, backbone(images).prefix)
