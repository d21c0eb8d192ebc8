"""What the ConvMAE and the DMJD vectors ask of the same network: classifiers, layer decay, fine-tuning, stage maps."""

import math
import re
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.backbones.convvit import ConvViT
from remask.backbones.convvit_network import ConvViTNetwork, Sizes
from remask.interop import mae
from remask.tokens import take
from remask.training.optim import parameter_groups
from remask.views import Views
from tests.golden.vectors import Entries, File, Folder, activations, gradients, layer_decay_of, losses, norms, some

EPS = {"norm_eps": 1e-6, "conv_norm_eps": 1e-5}  # the official models'; ours are left alone unless the vectors differ
CONV = re.compile(r"(?:^|\.)(?:patch_embed|blocks[12]\.)")


def sizes_of(folder: Folder) -> Sizes:
    encoder = folder.config.part("encoder")
    return Sizes(
        tuple(encoder["patch_size"]),
        tuple(encoder["dim"]),
        tuple(encoder["depth"]),
        encoder["heads"],
        tuple(encoder["mlp_ratio"]),
    )


def image_size(folder: Folder) -> tuple[int, int]:
    return (folder.config.part("encoder")["image_size"][0],) * 2


def with_epsilons_of(folder: Folder, module: nn.Module) -> nn.Module:
    for name, layer in module.named_modules():
        key = "conv_norm_eps" if CONV.search(name) else "norm_eps"
        if isinstance(layer, nn.LayerNorm) and folder.config[key] != EPS[key]:
            layer.eps = folder.config[key]
    return module


def cells(maps: Tensor, views: Views) -> Tensor:
    """The visible cells of maps [R, C, h, w] as [R, K, row of a cell, column of a cell, C], cut the plain way."""
    (rows, cols), (_, _, h, w) = views.grid, maps.shape
    tiles = maps.unfold(2, h // rows, h // rows).unfold(3, w // cols, w // cols).permute(0, 2, 3, 4, 5, 1)
    tokens = tiles.reshape(len(maps), rows * cols, -1)
    return take(tokens, views.visible).unflatten(2, tiles.shape[3:])


def in_rows(stage: Tensor, *factors: int) -> Tensor:
    """[R, K, positions in nested order, C] as [R, K, row, column, C]."""
    nested = stage.unflatten(2, [factor for factor in factors for _ in range(2)])
    half = range(len(factors))
    rows, cols = [2 + 2 * i for i in half], [3 + 2 * i for i in half]
    side = math.prod(factors)
    return nested.permute(0, 1, *rows, *cols, nested.ndim - 1).reshape(*stage.shape[:2], side, side, stage.shape[-1])


class Classified(NamedTuple):
    network: ConvViTNetwork
    features: Tensor
    logits: Tensor
    loss: Tensor


def classified(file: File, images: Tensor) -> Classified:
    """The stored classifier, loaded strictly, on `images`, its features by way of our backbone."""
    stored, folder = file.tensors, file.folder
    state = stored.below("sd.")
    pool = "mean" if "fc_norm.weight" in state else "first"
    network = ConvViTNetwork(image_size(folder), 3, sizes_of(folder), 0.0, folder.config["classes"], pool)
    with_epsilons_of(folder, network).load_state_dict(state, strict=True)
    tokens = ConvViT(network, mae.MEAN, mae.STD)(images).tokens
    features = network.fc_norm(tokens.mean(1)) if pool == "mean" else tokens[:, 0]
    logits = network(images)
    activations(network.head(features), logits.detach())
    return Classified(network, features, logits, F.cross_entropy(logits, stored["labels"]))


def check_classifier(file: File, images: Tensor) -> None:
    stored, found = file.tensors, classified(file, images)
    activations(found.features, stored["features"])
    activations(found.logits, stored["logits"])
    losses(found.loss, stored["ce_loss"])
    found.loss.backward()
    actual = dict(found.network.named_parameters())
    for name, gradient in stored.below("grad.").items():
        gradients(actual[name].grad, gradient)


def check_classifier_norms(file: File, images: Tensor) -> None:
    expected, found = file.folder.json(f"{file.stem}_gradnorms.json"), classified(file, images)
    found.loss.backward()
    norms({name: float(p.grad.norm()) for name, p in found.network.named_parameters()}, dict(expected))


def check_layer_decay(folder: Folder) -> None:
    for name, stored in some(folder.json("lr_decay_groups.json").items(), "layer decay"):
        expected = stored["params"]
        network = network_of_shapes({key: value["shape"] for key, value in expected.items()})
        backbone = ConvViT(network, mae.MEAN, mae.STD)
        groups = parameter_groups(
            network.named_parameters(),
            max(value["weight_decay"] for value in expected.values()),
            no_decay=("pos_embed",),
            depth_of=backbone.param_depth,
            depth=backbone.depth,
            layer_decay=layer_decay_of(expected),
        )
        actual = {key: (group["lr_scale"], group["weight_decay"]) for group in groups for key in group["names"]}
        assert len(groups) == stored["n_groups"], name
        assert actual.keys() == expected.keys(), name
        for key, value in expected.items():
            assert actual[key] == pytest.approx((value["lr_scale"], value["weight_decay"]), rel=1e-9), (name, key)


def network_of_shapes(shapes: dict[str, list[int]]) -> ConvViTNetwork:
    """A classifier whose parameters have these names and shapes, without memory. Heads do not matter here."""
    kernels = [shapes[f"patch_embed{stage}.proj.weight"] for stage in (1, 2, 3)]
    depths = [len({key.split(".")[1] for key in shapes if key.startswith(f"blocks{stage}.")}) for stage in (1, 2, 3)]
    hidden = [shapes[f"blocks{stage}.0.mlp.fc1.weight"][:2] for stage in (1, 2, 3)]
    strides = tuple(kernel[-1] for kernel in kernels)
    sizes = Sizes(strides, tuple(k[0] for k in kernels), tuple(depths), 1, tuple(out / width for out, width in hidden))
    side = math.isqrt(shapes["pos_embed"][1]) * sizes.patch
    pool = "mean" if "fc_norm.weight" in shapes else "first"
    with torch.device("meta"):
        network = ConvViTNetwork((side, side), kernels[0][1], sizes, 0.0, shapes["head.weight"][0], pool)
    assert {name: [*p.shape] for name, p in network.named_parameters()} == shapes
    return network


def check_fine_tuning(folder: Folder, state: Entries, kind: str) -> None:
    """What a classifier finds in the pre-training state, and the drop-path rates of its blocks."""
    from remask.interop.convmae import classifier_state

    stored = folder.json("finetune_load_msgs.json").part(kind)
    rates = stored.get("drop_path_rates", [0.0])
    pool = "mean" if kind == "gap" else "first"
    network = ConvViTNetwork(image_size(folder), 3, sizes_of(folder), rates[-1], folder.config["classes"], pool)
    whole = network.load_state_dict(state, strict=False)
    assert sorted(whole.missing_keys) == sorted(stored["missing"])
    assert sorted(whole.unexpected_keys) == sorted(stored["unexpected"])
    ours = network.load_state_dict(classifier_state(state, network), strict=False)
    assert sorted(ours.missing_keys) == sorted(stored["missing"])
    assert not ours.unexpected_keys
    if "drop_path_rates" in stored:
        conv = [getattr(block.drop_path, "drop_prob", 0.0) for block in (*network.blocks1, *network.blocks2)]
        rest = [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.blocks3]
        assert conv + rest == pytest.approx(rates, abs=1e-7)
