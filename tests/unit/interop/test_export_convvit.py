"""interop/export.py for ConvViT, which timm does not have: the plain network, strictly, and a script that runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from remask.backbones.convvit import ConvViT, create_convvit
from remask.interop.export import EXAMPLE, example, export_backbone

SMALL = {"width": 32, "depth": 1, "num_heads": 2}


def exported(folder: Path, size: tuple[int, int] = (16, 24), channels: int = 3) -> ConvViT:
    torch.manual_seed(0)
    mean, std = [0.4] * channels, [0.2] * channels
    backbone = create_convvit("convvit_micro", size, mean, std, overrides=SMALL).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    export_backbone(backbone, folder, size, mean, std)
    return backbone


@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_is_rebuilt_and_loads_strictly(tmp_path: Path, channels: int) -> None:
    backbone = exported(tmp_path, (16, 24), channels)
    config = json.loads((tmp_path / "config.json").read_text())
    size = tuple(config["image_size"])
    model = create_convvit(config["model"], size, config["mean"], config["std"], overrides=config["arguments"])
    model.network.load_state_dict(load_file(tmp_path / "backbone.safetensors"), strict=True)
    images = torch.randint(0, 256, (2, channels, 16, 24), dtype=torch.uint8)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        theirs = model.network.eval()((images / 255 - mean) / std)
        torch.testing.assert_close(backbone(images).tokens, theirs, atol=1e-5, rtol=1e-4)


def test_nothing_of_pre_training_is_exported(tmp_path: Path) -> None:
    backbone = exported(tmp_path)
    stored = load_file(tmp_path / "backbone.safetensors")
    assert set(stored) == set(backbone.network.state_dict())
    assert not [key for key in stored if "fusion" in key or "stage" in key or "mask" in key or "head" in key]
    assert len(list(tmp_path.iterdir())) == 5


def test_the_script_is_timms_with_our_network() -> None:
    script = example(create_convvit("convvit_micro", (16, 16), [0.5], [0.5], overrides=SMALL))
    assert "timm" not in script
    assert "from remask.backbones.convvit import create_convvit" in script
    assert script.splitlines()[-1] == EXAMPLE.splitlines()[-1]
    compile(script, "load_example.py", "exec")


@pytest.mark.slow
def test_the_script_runs(tmp_path: Path, repo: Path) -> None:
    """On a picture of another size and mode than the network was built for; slow: a process imports timm."""
    from PIL import Image

    folder = tmp_path / "export"
    exported(folder)
    Image.new("RGBA", (50, 30), (200, 20, 20, 255)).save(tmp_path / "picture.png")
    environment = {**os.environ, "PYTHONPATH": str(repo / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "load_example.py"), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "convvit_micro: tokens (1, 24, 32), features (1, 32)\n"
