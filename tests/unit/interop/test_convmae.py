"""interop/convmae.py and the whole-checkpoint part of interop/dmjd.py: strict both ways, and refusals in one line."""

from typing import Any

import pytest
import torch
from torch import Tensor

from remask.backbones.convvit import create_convvit
from remask.backbones.convvit_network import ConvViTNetwork
from remask.errors import UserError
from remask.interop import convmae, dmjd, mae
from remask.masking import Masking
from remask.method import Method
from remask.methods.convmae import convmae as build
from remask.methods.dmjd import dm, jd
from remask.targets import Hog, Pixels

SIZE = (32, 32)
OVERRIDES: dict[str, Any] = {
    "strides": (2, 2, 2), "dims": (8, 12, 24), "depths": (2, 1, 2), "num_heads": 3, "mlp_ratios": (3, 2, 4),
}  # fmt: skip
LOADERS = {"convmae": convmae, "dmjd": dmjd}


def filled(method: Method) -> Method:
    """Weights of our own making, tables that are not sin-cos among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in method.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return method


@pytest.fixture(scope="module")
def methods() -> dict[str, Method]:
    backbone = create_convvit("convvit_base", SIZE, mae.MEAN, mae.STD, overrides=OVERRIDES)
    pixels, hog = Pixels(backbone.patch, mae.MEAN, mae.STD), Hog(backbone.patch, mae.MEAN, mae.STD)
    plain = build(backbone, Masking(0.75), pixels, SIZE, 16, 1, 2, 3.0)
    joint = jd(dm(build(backbone, Masking(0.5, cell=2), hog, SIZE, 16, 1, 2, 3.0)), hog, 20)
    return {"convmae": filled(plain), "dmjd": filled(joint)}


@pytest.fixture
def state(methods: dict[str, Method]) -> dict[str, Tensor]:
    return convmae.to_official(methods["convmae"])


def refusal(source: object, heads: int = 3, decoder_heads: int = 2, loader: Any = convmae) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(UserError) as caught:
        loader.load(source, heads=heads, decoder_heads=decoder_heads)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("system", LOADERS)
def test_round_trip_is_bit_equal_and_sizes_are_read(methods: dict[str, Method], system: str) -> None:
    method, interop = methods[system], LOADERS[system]
    official = interop.to_official(method)
    loaded = interop.load({"model": official}, heads=3, decoder_heads=2)
    assert loaded.backbone.network.sizes == method.backbone.network.sizes
    assert loaded.state_dict().keys() == method.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in method.state_dict().items())
    again = interop.from_official(official)
    assert all(torch.equal(value, again[key]) for key, value in method.state_dict().items())
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    views = method.draw(images, torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images, views)["total"], method(images, views)["total"])


def test_official_names(methods: dict[str, Method]) -> None:
    official = dmjd.to_official(methods["dmjd"])
    shapes = {key: tuple(tensor.shape) for key, tensor in official.items()}
    assert shapes["stage1_output_decode.weight"] == (24, 8, 4, 4)
    assert shapes["stage2_output_decode.weight"] == (24, 12, 2, 2)
    assert shapes["pos_embed"] == (1, 16, 24)
    assert shapes["decoder_pos_embed"] == (1, 16, 16)
    assert shapes["blocks1.1.attn.weight"] == (8, 1, 5, 5)
    assert shapes["proj_embed.6.weight"] == (20, 20)
    assert shapes["predictor.0.weight"] == (27, 20)
    assert len(official) == len(methods["dmjd"].state_dict())


def test_a_dmjd_checkpoint_goes_on_as_dmjd(methods: dict[str, Method]) -> None:
    official = dmjd.to_official(methods["dmjd"])
    loaded = dmjd.load(official, heads=3, decoder_heads=2, ratio=0.75, cell=1, prediction=0.9)
    masking = loaded.masking
    assert (masking.ratio, masking.cell, masking.views, masking.prediction) == (0.75, 1, 2, 0.9)
    assert [branch.region for branch in loaded.branches] == ["masked", "visible"]
    assert loaded.branches[0].target is loaded.branches[1].target


def test_what_differs_is_listed(state: dict[str, Tensor]) -> None:
    faulty = {key: value for key, value in state.items() if key not in ("norm.bias", "blocks1.0.conv1.weight")}
    faulty |= {"head.weight": torch.zeros(1), "mask_token": torch.zeros(1, 1, 5)}
    line = refusal(faulty)
    assert "missing:" in line
    assert "norm.bias" in line
    assert "blocks1.0.conv1.weight" in line
    assert "unknown: head.weight" in line
    assert "mask_token [1, 1, 5], not [1, 1, 16]" in line
    assert "missing: blocks2.0.mlp.fc1.weight" in refusal(
        {key: value for key, value in state.items() if not key.startswith("blocks2")}
    )


def test_each_system_refuses_the_others_checkpoint(methods: dict[str, Method], state: dict[str, Tensor]) -> None:
    assert "unknown: proj_embed.0.weight" in refusal(dmjd.to_official(methods["dmjd"]))
    assert "missing: proj_embed.0.weight" in refusal(state, loader=dmjd)
    with pytest.raises(UserError, match="not the checkpoint that was asked for"):
        mae.load(state, heads=3, decoder_heads=2)


@pytest.mark.parametrize(("heads", "decoder_heads"), [(5, 2), (3, 7), (0, 2)])
@pytest.mark.parametrize("system", LOADERS)
def test_head_counts_are_never_guessed(methods: dict[str, Method], system: str, heads: int, decoder_heads: int) -> None:
    official = LOADERS[system].to_official(methods[system])
    assert "state the model's own" in refusal(official, heads, decoder_heads, LOADERS[system])


def test_the_encoder_alone_with_or_without_fusion(methods: dict[str, Method], state: dict[str, Tensor]) -> None:
    own = methods["convmae"].backbone
    encoder = {key: value for key, value in state.items() if not key.startswith(tuple(mae.DECODER))}
    trunk = {key: value for key, value in encoder.items() if not key.startswith("stage")}
    assert "load_backbone" in refusal(encoder)
    for source in (state, encoder, trunk):
        loaded = convmae.load_backbone(source, heads=3)
        assert all(torch.equal(v, loaded.network.state_dict()[k]) for k, v in own.network.state_dict().items())
        assert torch.equal(loaded.fusions[0].weight, own.fusions[0].weight) == (source is not trunk)
    convmae.load_backbone({**trunk, "head.bias": torch.zeros(10)}, heads=3)
    with pytest.raises(UserError, match=r"unknown: scale\.bias"):
        convmae.load_backbone({**trunk, "scale.bias": torch.zeros(10)}, heads=3)
    with pytest.raises(UserError, match=r"missing: stage2_output_decode\.bias"):
        convmae.load_backbone({k: v for k, v in encoder.items() if k != "stage2_output_decode.bias"}, heads=3)


def test_a_dmjd_backbone_is_loaded_without_its_branches(methods: dict[str, Method]) -> None:
    loaded = dmjd.load_backbone(dmjd.to_official(methods["dmjd"]), heads=3)
    own = methods["dmjd"].backbone.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())


def test_tables_that_are_not_square(state: dict[str, Tensor]) -> None:
    tables = {key: state[key][:, :8] for key in ("pos_embed", "decoder_pos_embed")}
    assert "give the image size" in refusal({**state, **tables})
    wide = convmae.load({**state, **tables}, heads=3, decoder_heads=2, size=(16, 32))
    assert wide.backbone.built_for == (2, 4)


def test_a_classifier_takes_the_trunk_and_resizes_the_table(state: dict[str, Tensor]) -> None:
    sizes = create_convvit("convvit_base", SIZE, mae.MEAN, mae.STD, overrides=OVERRIDES).network.sizes
    network = ConvViTNetwork((48, 24), 3, sizes, classes=5)
    taken = convmae.classifier_state({**state, "head.weight": torch.zeros(9, 24)}, network)
    messages = network.load_state_dict(taken, strict=False)
    assert not messages.unexpected_keys
    assert sorted(messages.missing_keys) == ["fc_norm.bias", "fc_norm.weight", "head.bias", "head.weight"]
    assert network.pos_embed.shape == (1, 18, 24)
    assert torch.equal(network.blocks3[1].attn.proj.weight, state["blocks3.1.attn.proj.weight"])
