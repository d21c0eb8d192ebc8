"""interop/dmae.py: MAE's layout and a head for each aligned pair, bit for bit both ways, and refusals in one line."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.interop import dmae as interop
from remask.interop import mae
from remask.masking import Masking
from remask.method import Method
from remask.methods import jd
from remask.methods import mae as build_mae
from remask.methods.dmae import dmae as build
from remask.targets import Pixels
from remask.targets.token_teacher import TokenTeacher

SIZE, PATCH = (32, 32), 8
SIZES = {"patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
NAMES = {"linear": ("weight", "bias"), "mlp": ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
LAYERS = 0, 1


def filled(method: Method) -> Method:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in method.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return method


def teachers() -> list[TokenTeacher]:
    """Two blocks of one network, which sees what the student sees."""
    generator = torch.random.get_rng_state()
    torch.manual_seed(1)
    wide = {**SIZES, "embed_dim": 48}
    network = create_vit("vit_base_patch16_224", SIZE, mae.MEAN, mae.STD, overrides=wide)
    torch.random.set_rng_state(generator)
    patch = network.patch
    return [
        TokenTeacher(network, patch, mae.MEAN, mae.STD, layer=n, sees="view", norm="unit", name="it") for n in LAYERS
    ]


def made(kind: str) -> Method:
    """A student of two aligned blocks, no two of its tensors alike."""
    backbone = create_vit("vit_base_patch16_224", SIZE, mae.MEAN, mae.STD, overrides=SIZES)
    target = Pixels(backbone.patch, mae.MEAN, mae.STD, per_patch=False)
    sizes = {"width": 16, "depth": 1, "heads": 2, "mlp_ratio": 3.0}
    return filled(build(backbone, Masking(0.75), target, teachers(), SIZE, LAYERS, head=kind, **sizes))


def alone() -> Method:
    """MAE without alignment, of the same sizes."""
    backbone = create_vit("vit_base_patch16_224", SIZE, mae.MEAN, mae.STD, overrides=SIZES)
    return build_mae(backbone, Masking(0.75), Pixels(backbone.patch, mae.MEAN, mae.STD), SIZE, 16, 1, 2, 3.0)


@pytest.mark.parametrize("kind", NAMES)
def test_round_trip_is_bit_equal(kind: str) -> None:
    method = made(kind)
    official, state = interop.to_official(method), method.state_dict()
    added = {f"aligned_feature_projection_heads.{n}.{name}" for n in (0, 1) for name in NAMES[kind]}
    assert {key for key in official if key.startswith("aligned")} == added
    assert official.keys() - added == mae.to_official(alone()).keys()
    assert official["decoder_pos_embed"].shape == (1, 17, 16)
    back = interop.from_official(official)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    first = "weight" if kind == "linear" else "fc1.weight"
    projected = official[f"aligned_feature_projection_heads.1.{first}"]
    assert torch.equal(projected, state[f"branches.2.head.project.{first}"])


@pytest.mark.parametrize("kind", NAMES)
def test_a_checkpoint_goes_on_training(kind: str) -> None:
    method = made(kind)
    keys = {"layers": LAYERS, "heads": 3, "decoder_heads": 2}
    loaded = interop.load(interop.to_official(method), teachers(), **keys)
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    views = method.draw(images, torch.Generator().manual_seed(0))
    found, expected = loaded(images, views), method(images, views)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    with pytest.raises(UserError, match=r"unknown: aligned_feature_projection_heads\.1"):
        interop.load(interop.to_official(method), teachers()[:1], **{**keys, "layers": LAYERS[:1]})
    narrow = {key: t[:5] if "projection_heads" in key else t for key, t in interop.to_official(method).items()}
    with pytest.raises(UserError, match=r"weight \[5, 24\], not \[48, 24\]"):
        interop.load(narrow, teachers(), **keys)
    with pytest.raises(UserError, match="no decoder"):
        interop.load(method.backbone.network.state_dict(), teachers(), **keys)


@pytest.mark.parametrize("kind", NAMES)
def test_a_backbone_is_loaded_without_decoder_and_heads(tmp_path: Path, kind: str) -> None:
    method, path = made(kind), tmp_path / "checkpoint-99.pth"
    torch.save({"model": interop.to_official(method), "epoch": 99, "args": Namespace(lr=1.0)}, path)
    backbone = interop.load_backbone(path, heads=3)
    own = method.backbone.network.state_dict()
    assert backbone.network.state_dict().keys() == own.keys()
    assert all(torch.equal(tensor, own[key]) for key, tensor in backbone.network.state_dict().items())
    images = torch.randn(1, 3, *SIZE)
    assert torch.equal(backbone(images).tokens, method.backbone(images).tokens)


def test_published_files_hold_the_encoder_alone() -> None:
    method = made("linear")
    backbone = interop.load_backbone(method.backbone.network.state_dict(), heads=3)
    assert torch.equal(backbone.network.norm.weight, method.backbone.network.norm.weight)


def test_what_differs_is_listed() -> None:
    state = interop.to_official(made("linear"))
    cases: list[tuple[dict[str, Tensor], int, str]] = [
        ({key: tensor for key, tensor in state.items() if key != "norm.bias"}, 3, "missing: norm.bias"),
        ({**state, "teacher.norm.bias": torch.zeros(1)}, 3, "unknown: teacher.norm.bias"),
        ({**state, "cls_token": torch.zeros(1, 1, 5)}, 3, r"cls_token \[1, 1, 5\], not \[1, 1, 24\]"),
        (state, 5, "state the model's own"),
    ]
    for faulty, heads, complaint in cases:
        with pytest.raises(UserError, match=complaint) as caught:
            interop.load_backbone(faulty, heads=heads)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["0.fc3.weight", "x.weight", "0.weight.extra", "0.running_mean"])
def test_unknown_heads_have_no_counterpart(key: str) -> None:
    with pytest.raises(UserError, match="has no counterpart"):
        interop.from_official({f"aligned_feature_projection_heads.{key}": torch.zeros(1)})


def test_what_the_layout_has_no_place_for() -> None:
    method = alone()
    with pytest.raises(UserError, match=r"branches\.1\.head\.project\.0\.weight has no counterpart"):
        interop.to_official(jd(method, method.branches[0].target, width=8))
    registers = create_vit("vit_base_patch16_reg4_gap_256", SIZE, mae.MEAN, mae.STD, overrides=SIZES)
    target = Pixels(registers.patch, mae.MEAN, mae.STD)
    with pytest.raises(UserError, match="one class token"):
        interop.to_official(build_mae(registers, Masking(0.75), target, SIZE, 16, 1, 2, 3.0))
