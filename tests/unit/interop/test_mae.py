"""Official layouts: strict loading, the way back, and files that are refused in one line."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.heads import Decoder, Projector
from remask.interop import dmjd, mae
from remask.masking import Masking
from remask.method import Method
from remask.methods import jd
from remask.methods import mae as build
from remask.targets import Pixels
from remask.tokens import take
from remask.views import Views

SIZE, PATCH = (32, 32), 8


@pytest.fixture(scope="module")
def method() -> Method:
    """A network of our own making, with a table that is not sin-cos in its decoder."""
    sizes = {"patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    backbone = create_vit("vit_base_patch16_224", SIZE, mae.MEAN, mae.STD, overrides=sizes)
    made = build(backbone, Masking(0.75), Pixels(backbone.patch, mae.MEAN, mae.STD), SIZE, 16, 1, 2, 3.0)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape))
    return made


@pytest.fixture
def state(method: Method) -> dict[str, Tensor]:
    return mae.to_official(method)


def refusal(source: object, heads: int = 3, decoder_heads: int = 2) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(UserError) as caught:
        mae.load(source, heads=heads, decoder_heads=decoder_heads)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_round_trip_is_bit_equal_and_sizes_are_read(method: Method, state: dict[str, Tensor]) -> None:
    loaded = mae.load(state, heads=3, decoder_heads=2)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in method.state_dict().items())
    images = torch.randn(2, 3, *SIZE)
    views = method.draw(images, torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images, views=views)["total"], method(images, views=views)["total"])


def test_the_stored_decoder_table_is_used(method: Method, state: dict[str, Tensor]) -> None:
    moved = {**state, "decoder_pos_embed": state["decoder_pos_embed"].clone()}
    moved["decoder_pos_embed"] *= 2
    images = torch.randn(1, 3, *SIZE)
    views = method.draw(images, torch.Generator().manual_seed(0))
    changed = mae.load(moved, heads=3, decoder_heads=2)(images, views=views)["total"]
    assert not torch.allclose(changed, method(images, views=views)["total"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    if suffix == ".pth":
        torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(model="mae", lr=1e-3)}, path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    loaded = mae.to_official(mae.load(path, heads=3, decoder_heads=2))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trap",)


def test_nothing_else_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Tensor]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "args": Trap()}, tmp_path / "trap.pth")
    assert "refused" in refusal(tmp_path / "trap.pth")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "name", ["absent.pth", "empty.pth", "noise.pth", "noise.safetensors", "tensor.pth", "text.pth"]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, name: str) -> None:
    if name.startswith("noise"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    elif name == "empty.pth":
        (tmp_path / name).touch()
    elif name == "tensor.pth":
        torch.save(torch.zeros(2), tmp_path / name)
    elif name == "text.pth":
        torch.save({"model": "mae_vit_base"}, tmp_path / name)
    assert name in refusal(tmp_path / name)


def test_what_differs_is_listed(state: dict[str, Tensor]) -> None:
    faulty = {key: value for key, value in state.items() if key not in ("norm.bias", "decoder_norm.bias")}
    faulty |= {"head.weight": torch.zeros(1), "teacher.x": torch.zeros(1), "cls_token": torch.zeros(1, 1, 5)}
    line = refusal(faulty)
    assert "missing: norm.bias, decoder_norm.bias" in line
    assert "unknown: head.weight, teacher.x" in line
    assert "cls_token [1, 1, 5], not [1, 1, 24]" in line


def test_a_missing_block_is_noticed(state: dict[str, Tensor]) -> None:
    assert "blocks.1" in refusal({key: value for key, value in state.items() if not key.startswith("blocks.1.mlp")})
    assert "missing: blocks.0.mlp.fc1.weight" in refusal({"decoder_pred.bias": torch.zeros(1)})


@pytest.mark.parametrize(("heads", "decoder_heads"), [(5, 2), (3, 7), (0, 2)])
def test_head_counts_are_never_guessed(state: dict[str, Tensor], heads: int, decoder_heads: int) -> None:
    assert "state the model's own" in refusal(state, heads, decoder_heads)


def test_a_class_row_that_is_not_zero_is_refused(state: dict[str, Tensor]) -> None:
    assert "decoder_pos_embed" in refusal({**state, "decoder_pos_embed": state["decoder_pos_embed"] + 1})


def test_tables_that_are_not_square(state: dict[str, Tensor]) -> None:
    tables = {key: state[key][:, :9] for key in ("pos_embed", "decoder_pos_embed")}
    assert "give the image size" in refusal({**state, **tables})
    wide = mae.load({**state, **tables}, heads=3, decoder_heads=2, size=(16, 32))
    assert wide.backbone.built_for == (2, 4)


def test_the_encoder_alone(state: dict[str, Tensor]) -> None:
    encoder = {key: value for key, value in state.items() if key.startswith(mae.ENCODER)}
    assert "load_backbone" in refusal(encoder)
    for source in (encoder, state):
        network = mae.load_backbone(source, heads=3).network
        assert all(torch.equal(value, encoder[key]) for key, value in network.state_dict().items())
    probed = mae.load_backbone({**encoder, "head.bias": torch.zeros(10)}, heads=3).network
    assert all(torch.equal(value, encoder[key]) for key, value in probed.state_dict().items())
    with pytest.raises(UserError, match=r"unknown: scale\.bias"):
        mae.load_backbone({**encoder, "scale.bias": torch.zeros(10)}, heads=3)


def test_jd_has_no_place_in_the_layout(method: Method) -> None:
    with pytest.raises(UserError, match=r"branches\.1"):
        mae.to_official(jd(method, Pixels((PATCH, PATCH), mae.MEAN, mae.STD), width=8))


def test_dmjd_heads_round_trip() -> None:
    heads = Projector(24, 27, 16), Decoder(24, 27, (4, 4), 16, 2, 4, 3.0)
    official = {key: tensor for head in heads for key, tensor in dmjd.to_official(head).items()}
    back = dmjd.projector(official), dmjd.decoder(official, heads=4, grid=(4, 4))
    for head, loaded in zip(heads, back, strict=True):
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in head.state_dict().items())
    with pytest.raises(UserError, match=r"missing: proj_embed\.3\.bias"):
        dmjd.projector({key: value for key, value in official.items() if key != "proj_embed.3.bias"})
    with pytest.raises(UserError, match="decoder_pos_embed"):
        dmjd.decoder(official, heads=4, grid=(5, 5))


def test_official_pairs_are_misaligned_unless_the_order_is_raster() -> None:
    targets, order = torch.randn(1, 4, 3), torch.tensor([[3, 0, 2]])
    views = Views.of(torch.tensor([[[False, True, False, False]]]), (2, 2))
    perfect = take(targets, views.visible)
    predictions, official = dmjd.official_visible_pairs(perfect, targets, views, order)
    assert torch.equal(predictions, take(targets, order))
    assert torch.equal(official, perfect)
    predictions, official = dmjd.official_visible_pairs(perfect, targets, views, order.sort(dim=1).values)
    assert torch.equal(predictions, official)
