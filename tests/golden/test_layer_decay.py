"""Layer decay and weight decay of every parameter of a `Classifier`, against the official groups: MAE, ConvMAE, DMJD.

Real sizes (ViT-B and L, ConViT-B and L) without memory: the networks are built from the stored shapes.
"""

import math
from typing import Any

import pytest
import torch

from remask.backbones import Backbone
from remask.backbones.convvit import create_convvit
from remask.backbones.vit import create_vit
from remask.downstream.finetune.classifier import Classifier
from remask.interop.mae import MEAN, STD
from remask.training.optim import parameter_groups
from tests.golden.vectors import Folder, layer_decay_of, roots

FOLDERS = [
    pytest.param(Folder(root / system), id=f"{system}-{name}")
    for name, root in roots().items()
    for system in ("mae", "convmae", "dmjd")
    if (root / system / "lr_decay_groups.json").is_file()
]
ABSENT = [pytest.param(None, marks=pytest.mark.skip("no lr_decay_groups.json"))]
Shapes = dict[str, list[int]]


def classifier_of(shapes: Shapes) -> Classifier:
    """Heads do not matter here: a width that any number of them divides is all that is asked."""
    with torch.device("meta"):
        backbone = vit_of(shapes) if "cls_token" in shapes else convvit_of(shapes)
        pool = "mean" if "fc_norm.weight" in shapes else "cls"
        return Classifier(backbone, shapes["head.weight"][0], pool=pool)


def vit_of(shapes: Shapes) -> Backbone:
    patch, side = shapes["patch_embed.proj.weight"][-1], math.isqrt(shapes["pos_embed"][1] - 1)
    hidden, width = shapes["blocks.0.mlp.fc1.weight"]
    overrides = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth_of(shapes, "blocks"),
        "num_heads": 1,
        "mlp_ratio": hidden / width,
    }
    return create_vit("vit_base_patch16_224", (side * patch, side * patch), MEAN, STD, overrides=overrides)


def convvit_of(shapes: Shapes) -> Backbone:
    kernels = [shapes[f"patch_embed{stage}.proj.weight"] for stage in (1, 2, 3)]
    hidden = [shapes[f"blocks{stage}.0.mlp.fc1.weight"][:2] for stage in (1, 2, 3)]
    overrides: dict[str, Any] = {
        "strides": [kernel[-1] for kernel in kernels],
        "dims": [kernel[0] for kernel in kernels],
        "depths": [depth_of(shapes, f"blocks{stage}") for stage in (1, 2, 3)],
        "mlp_ratios": [out / width for out, width in hidden],
        "num_heads": 1,
    }
    side = math.isqrt(shapes["pos_embed"][1]) * math.prod(overrides["strides"])
    return create_convvit("convvit_base", (side, side), MEAN, STD, overrides=overrides)


def depth_of(shapes: Shapes, blocks: str) -> int:
    return len({key.split(".")[1] for key in shapes if key.startswith(f"{blocks}.")})


@pytest.mark.parametrize("groups_folder", FOLDERS or ABSENT)
def test_rate_and_decay_of_every_parameter(groups_folder: Folder) -> None:
    for name, stored in groups_folder.json("lr_decay_groups.json").items():
        expected = stored["params"]
        shapes = {key: value["shape"] for key, value in expected.items()}
        classifier = classifier_of(shapes)
        groups = parameter_groups(
            classifier.named_parameters(),
            max(value["weight_decay"] for value in expected.values()),
            no_decay=classifier.no_decay(),
            depth_of=classifier.param_depth,
            depth=classifier.depth,
            layer_decay=layer_decay_of(expected),
        )
        found = {
            key.removeprefix("backbone.network."): (group["lr_scale"], group["weight_decay"], [*parameter.shape])
            for group in groups
            for key, parameter in zip(group["names"], group["params"], strict=True)
        }
        assert found.keys() == expected.keys(), name  # trained are what official code trains, positions among them
        assert len(groups) == stored["n_groups"], name
        for key, value in expected.items():
            scale, decay, shape = found[key]
            assert shape == value["shape"], (name, key)
            assert (scale, decay) == pytest.approx((value["lr_scale"], value["weight_decay"]), rel=1e-9), (name, key)
