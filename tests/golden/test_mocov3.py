"""MoCo v3's encoders against numbers that the official code computed: activations, class feature, tables, and loss.

Projector, predictor and loss are no part of the library; here they show that both encoders and the heads that are left
out were told apart rightly.
"""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.backbones.vit import ViT
from remask.errors import UserError
from remask.interop import mocov3 as interop
from remask.tokens import sincos_positions
from tests.golden.vectors import Entries, Folder, activations, size_unless_square, some, trajectory

SYSTEM = "mocov3"
EPS = 1e-6  # the official models'; ours is left as it is unless the vectors were made with another
BASE, MOMENTUM, PREDICTOR = "module.base_encoder.", "module.momentum_encoder.", "module.predictor."
HEAD = "head."


def official_state(folder: Folder) -> Entries:
    return folder.tensors("checkpoint_state_dict.safetensors")


def backbone_of(
    folder: Folder, momentum: bool = False, state: dict[str, Tensor] | None = None, heads: int | None = None
) -> ViT:
    """An encoder as a user loads it, from what a released file holds."""
    vit = folder.config.part("vit")
    size = size_unless_square(vit["image_size"])
    source = {"epoch": 1, "arch": "vit_small", "state_dict": state or official_state(folder)}
    backbone = interop.load_backbone(source, heads=heads or vit["heads"], momentum=momentum, size=size)
    if vit["norm_eps"] != EPS:
        for module in (module for module in backbone.modules() if isinstance(module, nn.LayerNorm)):
            module.eps = vit["norm_eps"]
    return backbone


def class_feature(backbone: ViT, images: Tensor) -> Tensor:
    return backbone(images).prefix[:, 0]


def mlp(x: Tensor, layers: dict[str, Tensor], training: bool = False) -> Tensor:
    """Linear layers and batch norms by their numbers; a number without weights is a ReLU."""
    for number in range(1 + max(int(key.split(".")[0]) for key in layers)):
        weight, bias = layers.get(f"{number}.weight"), layers.get(f"{number}.bias")
        if f"{number}.running_mean" in layers:
            mean, var = (layers[f"{number}.running_{name}"].clone() for name in ("mean", "var"))
            x = F.batch_norm(x, mean, var, weight, bias, training)
        else:
            x = x.relu() if weight is None else F.linear(x, weight, bias)
    return x


@pytest.mark.parametrize("momentum", [False, True])
def test_the_encoder_is_taken_as_it_is_stored(folder: Folder, momentum: bool) -> None:
    stored = official_state(folder).below(MOMENTUM if momentum else BASE)
    encoder = {key: tensor for key, tensor in stored.items() if not key.startswith(HEAD)}
    own = backbone_of(folder, momentum).network.state_dict()
    assert own.keys() == encoder.keys()
    assert all(torch.equal(own[key], encoder[key]) for key in own)


def test_loading_is_strict(folder: Folder) -> None:
    state = dict(official_state(folder))
    for key in (f"{BASE}norm.bias", f"{BASE}blocks.0.attn.qkv.weight", f"{BASE}pos_embed"):
        with pytest.raises(UserError, match=re.escape(key.removeprefix(BASE))):
            backbone_of(folder, state={name: tensor for name, tensor in state.items() if name != key})
    with pytest.raises(UserError, match=r"unknown: head\.2\.weight"):
        backbone_of(folder, state={**state, f"{BASE}head.2.weight": torch.zeros(1)})


def test_activations(folder: Folder) -> None:
    stored, backbone = folder.tensors("io.safetensors"), backbone_of(folder)
    patches, depth = backbone.embed(stored["images"]), folder.config.part("vit")["depth"]
    assert backbone.depth == depth
    activations(backbone._project(patches.pixels), stored["act.patch_embed"])
    features = backbone.encode(patches, layers=(*range(depth), -1))
    for layer, name in {**{i: f"blocks.{i}" for i in range(depth)}, -1: "norm"}.items():
        found = torch.cat([features[layer].prefix, features[layer].tokens], dim=1)
        activations(found, stored[f"act.{name}"])


def test_class_feature_depends_on_the_heads(folder: Folder) -> None:
    stored, vit = folder.tensors("io.safetensors"), folder.config.part("vit")
    activations(class_feature(backbone_of(folder), stored["images"]), stored["cls_feature"])
    other = next(n for n in range(1, vit["dim"] + 1) if n != vit["heads"] and vit["dim"] % n == 0)
    wrong = class_feature(backbone_of(folder, heads=other), stored["images"])
    assert not torch.allclose(wrong, stored["cls_feature"], atol=1e-4, rtol=1e-3)


def test_projector_and_predictor(folder: Folder) -> None:
    state, stored = official_state(folder), folder.tensors("io.safetensors")
    projected = mlp(class_feature(backbone_of(folder), stored["images"]), state.below(BASE + HEAD))
    activations(projected, stored["projector_out"])
    activations(mlp(projected, state.below(PREDICTOR)), stored["predictor_out"])
    feature = class_feature(backbone_of(folder, momentum=True), stored["images"])
    activations(mlp(feature, state.below(MOMENTUM + HEAD)), stored["momentum_projector_out"])


def test_loss_of_two_views(folder: Folder) -> None:
    """After one step of the momentum encoder towards the base encoder; batch norms see their batch."""
    state, stored = dict(official_state(folder)), folder.tensors("loss_trainmode.safetensors")
    kept, heat = stored["momentum"], stored["T"]
    for key in (key for key in state if key.startswith(MOMENTUM) and state[key].is_floating_point()):
        if "running" not in key:
            state[key] = kept * state[key] + (1 - kept) * state[BASE + key.removeprefix(MOMENTUM)]
    moved, base = Entries(state, "state"), backbone_of(folder)
    momentum = backbone_of(folder, momentum=True, state=moved)

    def query(images: Tensor) -> Tensor:
        projected = mlp(class_feature(base, images), moved.below(BASE + HEAD), training=True)
        return F.normalize(mlp(projected, moved.below(PREDICTOR), training=True))

    def key_of(images: Tensor) -> Tensor:
        return F.normalize(mlp(class_feature(momentum, images), moved.below(MOMENTUM + HEAD), training=True))

    views = stored["view1"], stored["view2"]
    pairs = zip(map(query, views), map(key_of, reversed(views)), strict=True)
    found = sum(2 * heat * F.cross_entropy(q @ k.T / heat, torch.arange(len(q))) for q, k in pairs)
    trajectory(found, stored["loss"])


def transposed(table: Tensor, rows: int, cols: int) -> Tensor:
    """A table [1 + N, D] with rows and columns exchanged; the class row stays."""
    grid = table[1:].unflatten(0, (rows, cols)).transpose(0, 1).flatten(0, 1)
    return torch.cat([table[:1], grid])


def test_position_tables_are_transposed(folder: Folder) -> None:
    for name, stored in some(folder.tensors("pos_embed.safetensors").items(), "position tables"):
        kind, rows, cols, width = re.fullmatch(r"(mae|moco)_pos_embed_(\d+)x(\d+)_d(\d+)", name).groups()
        table = sincos_positions((int(rows), int(cols)), int(width), prefix=1)
        expected = transposed(table, int(rows), int(cols)) if kind == "moco" else table
        torch.testing.assert_close(expected, stored, atol=1e-5, rtol=0)


def test_the_stored_table_is_the_one_that_is_used(folder: Folder) -> None:
    """A table of MAE's kind in its place would change every feature but the diagonal's."""
    backbone = backbone_of(folder)
    table, (rows, cols) = backbone.network.pos_embed[0], backbone.built_for
    mae = sincos_positions((rows, cols), backbone.width, prefix=1)
    torch.testing.assert_close(table, transposed(mae, rows, cols), atol=1e-5, rtol=0)
    assert not torch.allclose(table, mae, atol=0.1)
    positions, _ = backbone._positions((rows, cols))
    assert torch.equal(positions, table[1:])
