"""interop/mocov3.py: either encoder, strictly, from what a file holds; and files that are refused in one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.interop import mocov3 as interop

SIZE, PATCH = (32, 32), 8
BASE, MOMENTUM = "module.base_encoder.", "module.momentum_encoder."


def encoder(seed: int, size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    """An encoder's tensors, no two alike, its table among them."""
    sizes = {"patch_size": PATCH, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    network = create_vit("vit_base_patch16_224", size, interop.MEAN, interop.STD, overrides=sizes).network
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(tensor.shape, generator=generator) for key, tensor in network.state_dict().items()}


def checkpoint(size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    state = {f"module.predictor.{key}": torch.zeros(2) for key in ("0.weight", "1.running_mean", "4.running_var")}
    for seed, prefix in enumerate((BASE, MOMENTUM)):
        state |= {prefix + key: tensor for key, tensor in encoder(seed, size).items()}
        state |= {f"{prefix}head.{layer}.weight": torch.zeros(2) for layer in (0, 1, 3, 4, 6)}
        state |= {f"{prefix}head.7.num_batches_tracked": torch.zeros((), dtype=torch.int64)}
    return state


@pytest.fixture
def state() -> dict[str, Tensor]:
    return checkpoint()


def holds(backbone: ViT, expected: dict[str, Tensor]) -> bool:
    own = backbone.network.state_dict()
    return own.keys() == expected.keys() and all(torch.equal(own[key], expected[key]) for key in own)


def refusal(source: object, **keys: object) -> str:
    with pytest.raises(UserError) as caught:
        interop.load_backbone(source, **{"heads": 3, **keys})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["released", "tensors", "unwrapped"])
def test_files_hold_both_encoders(tmp_path: Path, state: dict[str, Tensor], form: str) -> None:
    path = tmp_path / ("vit.safetensors" if form == "tensors" else "vit-s-300ep.pth.tar")
    if form == "tensors":
        save_file(state, path)
    else:
        own = {key.removeprefix("module."): tensor for key, tensor in state.items()} if form == "unwrapped" else state
        torch.save({"epoch": 300, "arch": "vit_small", "state_dict": own}, path)
    assert holds(interop.load_backbone(path, heads=3), encoder(0))
    assert holds(interop.load_backbone(path, heads=3, momentum=True), encoder(1))


def test_the_patch_embedding_is_trained_and_the_table_is_not(state: dict[str, Tensor]) -> None:
    network = interop.load_backbone(state, heads=3).network
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pos_embed"}


def test_heads_are_the_stated_ones(state: dict[str, Tensor]) -> None:
    images = torch.randn(1, 3, *SIZE)
    features = {heads: interop.load_backbone(state, heads=heads)(images).tokens for heads in (3, 6)}
    assert not torch.allclose(features[3], features[6])
    assert "state the model's own" in refusal(state, heads=5)


def test_a_table_that_is_not_square() -> None:
    wide = checkpoint((16, 64))
    assert interop.load_backbone(wide, heads=3).built_for == (4, 4)  # as many tokens as a square has
    assert interop.load_backbone(wide, heads=3, size=(16, 64)).built_for == (2, 8)
    assert "give the image size" in refusal(checkpoint((16, 32)))
    assert "pos_embed" in refusal(wide, size=(16, 32))


def test_what_differs_is_listed(tmp_path: Path, state: dict[str, Tensor]) -> None:
    faulty = {key: tensor for key, tensor in state.items() if key != f"{BASE}blocks.1.norm1.bias"}
    faulty |= {f"{BASE}head.2.weight": torch.zeros(1), f"{BASE}cls_token": torch.zeros(1, 1, 5)}
    torch.save({"state_dict": faulty}, tmp_path / "vit.pth.tar")
    line = refusal(tmp_path / "vit.pth.tar")
    assert "vit.pth.tar" in line
    assert "missing: blocks.1.norm1.bias" in line
    assert "unknown: head.2.weight" in line
    assert "cls_token [1, 1, 5], not [1, 1, 24]" in line
    assert "module.queue" not in refusal({**state, "module.queue": torch.zeros(1)})
    assert "queue has no counterpart: MoCo v3's layout" in refusal({**state, "module.queue": torch.zeros(1)})


def test_an_absent_encoder(state: dict[str, Tensor]) -> None:
    alone = {key: tensor for key, tensor in state.items() if not key.startswith(MOMENTUM)}
    assert holds(interop.load_backbone(alone, heads=3), encoder(0))
    assert "holds no momentum_encoder." in refusal(alone, momentum=True)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_linear_probe_is_recognised(tmp_path: Path, prefix: str) -> None:
    probe = {prefix + key: tensor for key, tensor in encoder(0).items()}
    probe |= {f"{prefix}head.weight": torch.zeros(10, 24), f"{prefix}head.bias": torch.zeros(10)}
    torch.save({"epoch": 90, "state_dict": probe}, tmp_path / "linear-vit-s-300ep.pth.tar")
    assert holds(interop.load_backbone(tmp_path / "linear-vit-s-300ep.pth.tar", heads=3), encoder(0))
    line = refusal(tmp_path / "linear-vit-s-300ep.pth.tar", momentum=True)
    assert "linear-vit-s-300ep.pth.tar holds one encoder under plain names, as MoCo v3's linear probes do" in line


def test_convolutional_stems_and_other_networks_are_refused(state: dict[str, Tensor]) -> None:
    plain = {key: tensor for key, tensor in state.items() if "patch_embed" not in key}
    stem = {f"{BASE}patch_embed.proj.{layer}.weight": torch.zeros(3) for layer in (0, 1, 3, 4, 12)}
    assert "convolutional stem (vit_conv_*)" in refusal({**plain, **stem})
    assert "missing: blocks.0" in refusal({f"{BASE}layer1.0.conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("content", [{"state_dict": [1]}, {"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1}}])
def test_files_without_weights(tmp_path: Path, content: dict[str, object]) -> None:
    torch.save(content, tmp_path / "x.pth.tar")
    assert "x.pth.tar holds no weights" in refusal(tmp_path / "x.pth.tar")
