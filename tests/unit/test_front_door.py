"""`import remask`: its names, each loaded when it is first used."""

import subprocess
import sys

import pytest
import torch

import remask
from remask import commands


@pytest.mark.parametrize("name", [name for name in remask.__all__ if name != "__version__"])
def test_every_name_is_there(name: str) -> None:
    assert getattr(remask, name).__name__ == name
    assert name in dir(remask)


@pytest.mark.parametrize("name", commands.__all__)
def test_every_verb_is_there(name: str) -> None:
    assert getattr(commands, name).__name__ == name


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="module 'remask' has no attribute 'maee'"):
        _ = remask.maee


def test_nothing_heavy_is_loaded_before_it_is_used() -> None:
    code = "import sys, remask; remask.UserError; print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["vit_micro", "swin_micro", "resnet18", "beit_micro", "convvit_micro"])
def test_one_function_makes_a_backbone_of_any_kind(name: str) -> None:
    backbone = remask.create_backbone(name, 64)
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, columns = backbone.grid((64, 64))
    assert backbone(images).tokens.shape == (2, rows * columns, backbone.width)


def test_a_backbone_of_other_sizes_and_channels() -> None:
    backbone = remask.create_backbone("vit_micro", (32, 64), [0.5] * 5, [0.2] * 5)
    assert backbone(torch.zeros(1, 5, 32, 64, dtype=torch.uint8)).tokens.shape[1] == 8 * 16


def test_a_name_of_trained_weights_is_refused() -> None:
    with pytest.raises(remask.UserError, match="names trained weights"):
        remask.create_backbone("vit_tiny_patch16_224.augreg_in21k", 224)
