"""SimMIM's, BEiT's and MaskFeat's layouts: the way there and back bit for bit, files, and mistakes in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from remask.backbones.beit import create_beit
from remask.backbones.swin import create_swin
from remask.backbones.tables import resize_table
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.interop import beit, maskfeat, simmim
from remask.masking import Masking
from remask.method import Method
from remask.methods import beit as build_beit
from remask.methods import jd
from remask.methods import maskfeat as build_maskfeat
from remask.methods import simmim as build_simmim
from remask.targets import Hog, Pixels
from remask.tokens import patchify
from remask.views import Views

MEAN, STD = simmim.MEAN, simmim.STD
SIZE, PATCH = (32, 32), (8, 8)
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
SWIN = {"patch_size": 2, "embed_dim": 8, "depths": (2, 1, 2), "num_heads": (1, 2, 4), "window_size": 4}
KEYS: dict[str, dict[str, Any]] = {
    "simmim vit": {}, "simmim swin": {"size": SIZE}, "beit": {}, "slowfast": {"heads": 3}, "mmpretrain": {"heads": 3},
}  # fmt: skip


class Words(nn.Module):
    """A tokenizer with weights of its own."""

    width = 13

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(2))

    def forward(self, images: Tensor, views: Views) -> Tensor:
        return torch.zeros(len(images), 16, 1, dtype=torch.int64)

    def describe(self) -> str:
        return "words"


def made(kind: str) -> Method:
    torch.manual_seed(0)
    pixels, masking = Pixels(PATCH, MEAN, STD, per_patch=False), Masking(0.6)
    bases: dict[str, Callable[[], Method]] = {
        "simmim vit": lambda: build_simmim(_beit(), masking, pixels),
        "simmim swin": lambda: build_simmim(_swin(), masking, pixels),
        "beit": lambda: build_beit(_beit(), masking, Words()),  # type: ignore[arg-type]
        "slowfast": lambda: build_maskfeat(_vit(), masking, Hog(PATCH, MEAN, STD, "sobel", norm="l2")),
        "mmpretrain": lambda: build_maskfeat(_vit(), masking, Hog(PATCH, MEAN, STD, "sobel", norm="l2", gaussian=True)),
    }
    method = bases[kind]()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    return method


def _beit() -> Any:
    return create_beit("beit_base_patch16_224", SIZE, MEAN, STD, overrides=VIT)


def _swin() -> Any:
    return create_swin("swin_micro", SIZE, MEAN, STD, overrides=SWIN)


def _vit() -> Any:
    return create_vit("vit_base_patch16_224", SIZE, MEAN, STD, positions="learned", overrides=VIT)


def official(kind: str, method: Method) -> dict[str, Tensor]:
    if kind == "beit":
        return beit.to_official(method)
    return simmim.to_official(method) if kind.startswith("simmim") else maskfeat.to_official(method, kind)  # type: ignore[arg-type]


def load(kind: str, source: Any, **keys: Any) -> Method:
    keys = {**KEYS[kind], **keys}
    if kind == "beit":
        return beit.load(source, Words(), **keys)  # type: ignore[arg-type]
    return simmim.load(source, **keys) if kind.startswith("simmim") else maskfeat.load(source, **keys)


def load_backbone(kind: str, source: Any) -> Any:
    module = beit if kind == "beit" else simmim if kind.startswith("simmim") else maskfeat
    return module.load_backbone(source, **KEYS[kind])  # type: ignore[attr-defined]


def refusal(kind: str, source: Any, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(kind, source, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KEYS)
def test_round_trip_is_bit_equal_and_sizes_are_read(kind: str) -> None:
    method = made(kind)
    state = official(kind, method)
    loaded = load(kind, state)
    kept = {key: value for key, value in method.state_dict().items() if ".target." not in key}
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in kept.items())
    back = official(kind, loaded)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    images = torch.randn(2, 3, *SIZE)
    views = method.draw(images, torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images, views)["total"], method(images, views)["total"])
    network = load_backbone(kind, state).network.state_dict()
    assert all(torch.equal(value, network[key]) for key, value in method.backbone.network.state_dict().items())


def test_names_are_the_official_ones() -> None:
    swin, vit = official("simmim swin", made("simmim swin")), official("simmim vit", made("simmim vit"))
    assert {"encoder.layers.0.downsample.reduction.weight", "encoder.layers.1.downsample.norm.bias"} <= set(swin)
    assert not any("layers.2.downsample" in key for key in swin)
    assert swin["encoder.layers.0.blocks.1.attn_mask"].shape == (16, 16, 16)
    assert "encoder.layers.2.blocks.1.attn_mask" not in swin  # one window, not shifted
    assert swin["encoder.layers.0.blocks.0.attn.relative_position_index"].shape == (16, 16)
    assert vit["decoder.0.weight"].shape == (192, 24, 1, 1)
    assert vit["encoder.rel_pos_bias.relative_position_index"].shape == (17, 17)
    assert "pred_head.transforms.0.0.weight" in official("slowfast", made("slowfast"))
    assert "backbone.layers.1.ffn.layers.0.0.bias" in official("mmpretrain", made("mmpretrain"))


def test_the_decoder_restores_the_pixels_of_pixel_shuffle() -> None:
    method = made("simmim vit")
    state, tokens = official("simmim vit", method), torch.randn(2, 16, 24)
    maps = torch.nn.functional.conv2d(
        tokens.mT.unflatten(2, (4, 4)), state["decoder.0.weight"], state["decoder.0.bias"]
    )
    theirs = torch.nn.functional.pixel_shuffle(maps, 8)
    ours = method.branches[0].head.predict(tokens)  # type: ignore[attr-defined]
    assert torch.allclose(ours, patchify(theirs, PATCH), atol=1e-4)


@pytest.mark.parametrize("kind", KEYS)
def test_what_differs_is_listed(kind: str) -> None:
    state = official(kind, made(kind))
    ends = ("encoder.norm.bias", "backbone.ln1.bias", "transforms.0.0.bias")
    norm = next(key for key in state if key == "norm.bias" or key.endswith(ends))
    line = refusal(kind, {key: value for key, value in state.items() if key != norm})
    assert f"missing: {norm}" in line
    known = {"beit": "blocks.0.x", "slowfast": "blocks.0.attn.x", "mmpretrain": "backbone.layers.0.attn.x"}
    stranger = known.get(kind, "encoder.x")
    assert f"unknown: {stranger}" in refusal(kind, {**state, stranger: torch.zeros(1)})
    line = refusal(kind, {**state, "x.y": torch.zeros(1)})
    assert "x.y has no counterpart" in line or "unknown: x.y" in line


@pytest.mark.parametrize("kind", ["simmim vit", "simmim swin", "beit"])
def test_buffers_may_be_absent(kind: str) -> None:
    state = official(kind, made(kind))
    assert any(key.endswith(simmim.BUFFERS) for key in state)
    bare = {key: value for key, value in state.items() if not key.endswith(simmim.BUFFERS)}
    assert official(kind, load(kind, bare)).keys() == state.keys()


def test_heads_are_told_by_a_table_or_asked_for() -> None:
    state = official("simmim vit", made("simmim vit"))
    assert load("simmim vit", state, heads=3).backbone.network.blocks[0].attn.num_heads == 3
    assert "for 3 heads, not for the 6" in refusal("simmim vit", state, heads=6)
    bare = {key: value for key, value in state.items() if "rel_pos_bias" not in key}
    assert "state the model's own" in refusal("simmim vit", bare)
    table = {"encoder.rel_pos_bias.relative_position_bias_table": torch.zeros(30, 3)}
    assert "give the image size" in refusal("simmim vit", {**bare, **table})
    for heads in (5, 0):
        assert "state the model's own" in refusal("slowfast", official("slowfast", made("slowfast")), heads=heads)


def test_a_swin_needs_its_image_size() -> None:
    state = official("simmim swin", made("simmim swin"))
    assert "do not tell the size" in refusal("simmim swin", state, size=None)
    assert "windows of 4×4 do not tile" in refusal("simmim swin", state, size=(40, 40))


def test_a_vocabulary_of_another_size() -> None:
    state = official("beit", made("beit"))
    assert "lm_head.weight [5, 24], not [13, 24]" in refusal("beit", {**state, "lm_head.weight": torch.zeros(5, 24)})


def test_checkpoints_of_other_methods() -> None:
    states = {kind: official(kind, made(kind)) for kind in KEYS}
    assert "no decoder" in refusal("simmim vit", states["beit"])
    assert "state the model's own" in refusal("beit", states["slowfast"])
    assert "has no counterpart" in refusal("slowfast", states["beit"])
    assert "has no counterpart" in refusal("mmpretrain", states["simmim swin"])
    with pytest.raises(UserError, match="holds a BEiT"):
        beit.to_official(made("slowfast"))
    with pytest.raises(UserError, match="holds a BEiT or a Swin"):
        simmim.to_official(made("slowfast"))
    with pytest.raises(UserError, match="hold a ViT"):
        maskfeat.to_official(made("beit"))
    for kind, module in (("beit", beit), ("simmim vit", simmim), ("slowfast", maskfeat)):
        with pytest.raises(UserError, match=r"branches\.1"):
            module.to_official(jd(made(kind), Pixels(PATCH, MEAN, STD), 8))  # type: ignore[attr-defined]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Official files keep settings beside the weights: SimMIM's of a class that is not installed."""
    yacs, config = ModuleType("yacs"), ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    config.CfgNode = node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", yacs)
    monkeypatch.setitem(sys.modules, "yacs.config", config)
    settings = node(MODEL=node(TYPE="vit"), EPOCHS=3)
    settings.__dict__["__immutable__"] = True
    state = official("simmim vit", made("simmim vit"))
    torch.save({"model": state, "config": settings, "epoch": 3}, tmp_path / "simmim.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    loaded = load("simmim vit", tmp_path / "simmim.pth")
    assert torch.equal(official("simmim vit", loaded)["encoder.cls_token"], state["encoder.cls_token"])
    for kind, key in (("slowfast", "model_state"), ("mmpretrain", "state_dict"), ("beit", "model")):
        torch.save({key: official(kind, made(kind)), "epoch": 3}, tmp_path / f"{kind}.pth")
        assert load(kind, tmp_path / f"{kind}.pth").sees.mask_token is not None
    torch.save({"model": "vit"}, tmp_path / "text.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    for kind in KEYS:
        for name in ("absent", "text", "tensor"):
            assert f"{name}.pth" in refusal(kind, tmp_path / f"{name}.pth")


def test_constants_of_the_target_are_passed_over() -> None:
    for kind, key in (("slowfast", "hogs.0.weight_x"), ("mmpretrain", "target_generator.weight_x")):
        state = {**official(kind, made(kind)), key: torch.zeros(3, 1, 3, 3)}
        assert load(kind, state).backbone.depth == 2


def test_what_fine_tuning_takes() -> None:
    state = official("simmim vit", made("simmim vit"))
    names = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0, "num_classes": 5}
    for side, grid in ((32, (4, 4)), (48, (6, 6))):
        network = timm.create_model("beit_base_patch16_224", img_size=side, **names)
        taken = simmim.classifier_state(state, network)
        left = network.load_state_dict(taken, strict=False)
        assert set(left.missing_keys) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
        assert not left.unexpected_keys
        shared = resize_table(state["encoder.rel_pos_bias.relative_position_bias_table"], (4, 4), grid, 3)
        for block in network.blocks:
            assert torch.equal(block.attn.relative_position_bias_table, shared)
    swin = official("simmim swin", made("simmim swin"))
    other = create_swin("swin_micro", (48, 48), MEAN, STD, overrides={**SWIN, "window_size": 6}).network
    taken = simmim.classifier_state(swin, other)
    assert not other.load_state_dict(taken, strict=False).unexpected_keys
    table = swin["encoder.layers.1.blocks.0.attn.relative_position_bias_table"]
    assert torch.equal(other.layers[1].blocks[0].attn.relative_position_bias_table, resize_table(table, (4, 4), (6, 6)))
    vit = timm.create_model("vit_base_patch16_224", img_size=48, global_pool="avg", **names)
    left = vit.load_state_dict(maskfeat.classifier_state(official("mmpretrain", made("mmpretrain")), vit), strict=False)
    assert set(left.missing_keys) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
