"""FastMIM's layouts, of four networks: the way there and back bit for bit, other image sizes, mistakes in one line."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.backbones.beit import create_beit
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.swin import create_swin
from remask.backbones.tables import resize_table
from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.interop import fastmim as interop
from remask.masking import Masking
from remask.method import Method
from remask.methods import fastmim, jd
from remask.targets import Hog, Pixels

MEAN, STD, SIZE = interop.MEAN, interop.STD, (64, 64)
VIT = {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
SWIN = {"patch_size": 4, "embed_dim": 8, "depths": (2, 1, 2), "num_heads": (1, 2, 4), "window_size": 4}
PVT = {
    "embed_dims": (8, 8, 16, 16), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 2), "mlp_ratios": (2, 2, 4, 1),
    "sr_ratios": (8, 4, 2, 1),
}  # fmt: skip
CMT = {
    "stem_width": 4, "embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 2), "num_heads": (1, 2, 4, 4), "mlp_ratio": 2.0,
    "sr_ratios": (8, 4, 2, 1),
}  # fmt: skip
NETWORKS: dict[str, Any] = {
    "vit": lambda size: create_vit("vit_base_patch16_224", size, MEAN, STD, overrides=VIT),
    "swin": lambda size: create_swin(
        "swin_micro", size, MEAN, STD, overrides={**SWIN, "window_size": 4 if size == SIZE else size[0] // 16}
    ),
    "pvt": lambda size: create_hierarchical("pvt_v2_b0", size, MEAN, STD, overrides=PVT),
    "cmt": lambda size: create_hierarchical("cmt_micro", size, MEAN, STD, overrides=CMT),
}
KEYS: dict[str, dict[str, Any]] = {
    "vit": {"heads": 3}, "swin": {"size": SIZE}, "pvt": {"heads": (1, 2, 4, 2)}, "cmt": {},
}  # fmt: skip
FINER: dict[str, dict[str, Any]] = {
    "vit": {"cell_pixels": 8}, "swin": {"cell_pixels": 32}, "pvt": {"cell_pixels": 16, "target": "pixels"}, "cmt": {},
}  # fmt: skip


def made(kind: str) -> Method:
    """With weights, colour and tables of which no two are alike."""
    torch.manual_seed(0)
    backbone, keys = NETWORKS[kind](SIZE), FINER[kind]
    side = min(keys.get("cell_pixels", 32), backbone.patch[0])
    target = Pixels((side, side), MEAN, STD) if "target" in keys else Hog((side, side), MEAN, STD, "sobel", norm="l2")
    cell = max(keys.get("cell_pixels", side) // backbone.patch[0], 1)
    method = fastmim(backbone, Masking(0.5, cell=cell), target, (side, side), 32, 2, 2)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.1)
    return method.eval()


def load(kind: str, source: Any, **keys: Any) -> Method:
    return interop.load(source, **{"decoder_heads": 2, "ratio": 0.5, **KEYS[kind], **FINER[kind], **keys}).eval()


def refusal(kind: str, source: Any, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(kind, source, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", KEYS)
def test_round_trip_is_bit_equal_and_sizes_are_read(kind: str) -> None:
    method = made(kind)
    state = interop.to_official(method)
    loaded = load(kind, state)
    assert same(loaded.state_dict(), method.state_dict())
    assert same(interop.to_official(loaded), state)
    images = torch.randn(2, 3, *SIZE)
    views = method.draw(images, torch.Generator().manual_seed(0))
    assert torch.equal(loaded.draw(images, torch.Generator().manual_seed(0)).mask, views.mask)
    assert torch.equal(loaded(images, views)["total"], method(images, views)["total"])
    network = interop.load_backbone(state, **KEYS[kind]).network.state_dict()
    assert same(network, method.backbone.network.state_dict())


def test_names_are_the_official_ones() -> None:
    states = {kind: interop.to_official(made(kind)) for kind in KEYS}
    assert all(state["mask_token"].shape == (1, 3, 1, 1) for state in states.values())
    assert {"cls_token", "blocks.1.attn.qkv.bias", "decoder_blocks.1.norm1.bias"} <= set(states["vit"])
    assert {"encoder.layers.1.downsample.norm.bias", "encoder.layers.0.blocks.1.attn_mask"} <= set(states["swin"])
    assert {"encoder.patch_embed1.proj.weight", "encoder.patch_embed4.norm.bias"} <= set(states["pvt"])
    assert {"encoder.block2.1.mlp.dwconv.dwconv.weight", "encoder.norm4.bias"} <= set(states["pvt"])
    assert "encoder.blocks_a.0.mlp.proj_bn.num_batches_tracked" in states["cmt"]
    assert not any("stages" in key or "network" in key for state in states.values() for key in state)


def test_rows_of_a_token_that_is_cut_into_parts() -> None:
    whole = torch.randn(5, 27, 4, 4)  # channel and bin, cell row, cell column
    parts = whole.flatten(1)[:, interop.rows(432, (2, 2), "hog")].unflatten(1, (2, 2, 27, 2, 2))
    assert torch.equal(parts[:, 1, 0], whole[:, :, 2:, :2])
    vectors = torch.randn(5, 192, 2, 2)  # a part's vector, part row, part column
    parts = vectors.flatten(1)[:, interop.rows(768, (2, 2), "pixels")].unflatten(1, (2, 2, 192))
    assert torch.equal(parts[:, 1, 0], vectors[:, :, 1, 0])
    assert torch.equal(interop.rows(7, (1, 1), "hog"), torch.arange(7))
    for count, target in ((432, "pixels"), (428, "hog"), (27, "hog")):
        with pytest.raises(UserError, match=f"{count} numbers a token"):
            interop.rows(count, (5, 5), target)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KEYS)
def test_what_differs_is_listed(kind: str) -> None:
    state = interop.to_official(made(kind))
    norm = {"vit": "norm.bias", "pvt": "encoder.norm4.bias"}.get(kind, "encoder.norm.bias")
    assert f"missing: {norm}" in refusal(kind, {key: value for key, value in state.items() if key != norm})
    stranger = "blocks.0.x" if kind == "vit" else "encoder.x"
    assert f"unknown: {stranger}" in refusal(kind, {**state, stranger: torch.zeros(1)})
    assert "unknown: x.y" in refusal(kind, {**state, "x.y": torch.zeros(1)})
    with pytest.raises(UserError, match=r"x\.y has no counterpart"):
        interop.from_official({"x.y": torch.zeros(1)})
    assert "of another shape: decoder_pred.weight" in refusal(
        kind, state, target="pixels" if "target" not in FINER[kind] else "hog", cell_pixels=None
    )
    bare = {key: value for key, value in state.items() if not key.startswith("decoder_")}
    assert "no decoder" in refusal(kind, bare)
    assert same(
        interop.load_backbone(bare, **KEYS[kind]).network.state_dict(), load(kind, state).backbone.network.state_dict()
    )


def test_heads_are_told_by_tables_or_asked_for() -> None:
    states = {kind: interop.to_official(made(kind)) for kind in KEYS}
    assert "pre-trained ViT-B with 6 and fine-tuned it with 12" in refusal("vit", states["vit"], heads=None)
    assert "do not divide the width 24" in refusal("vit", states["vit"], heads=5)
    for heads in (None, 2, (1, 2, 4)):
        assert "one number for each of its 4 stages" in refusal("pvt", states["pvt"], heads=heads)
    for kind in ("swin", "cmt"):
        assert load(kind, states[kind], heads=(1, 2, 4, 4)[: 3 if kind == "swin" else 4]).sees.mask_pixel is not None
        assert "stated" in refusal(kind, states[kind], heads=(2, 2, 4))
    assert load("swin", states["swin"], heads=1).sees.mask_pixel is not None
    assert len(load("cmt", states["cmt"], decoder_heads=None).branches[0].head.blocks) == 2  # type: ignore[attr-defined]
    assert "3 heads do not divide the width 32 of decoder_blocks" in refusal("vit", states["vit"], decoder_heads=3)


def test_sizes_are_told_by_tables_or_asked_for() -> None:
    states = {kind: interop.to_official(made(kind)) for kind in KEYS}
    assert "do not tell the size" in refusal("swin", states["swin"], size=None)
    state = {**states["vit"], "pos_embed": torch.zeros(1, 9, 24)}
    assert "8 tokens, which are no square" in refusal("vit", state)
    assert load("vit", state, size=(32, 64)).backbone.network.pos_embed.shape == (1, 9, 24)
    assert "neither whole tokens" in refusal("cmt", states["cmt"], cell_pixels=24)


@pytest.mark.parametrize("kind", KEYS)
def test_another_image_size(kind: str) -> None:
    """Tables are resized, the rest is taken as it is; the result is what a network of that size would load."""
    state = interop.to_official(made(kind))
    other = interop.load_backbone(state, **{**KEYS[kind], "size": (96, 96)})
    fresh, network = NETWORKS[kind]((96, 96)).network.state_dict(), other.network.state_dict()
    assert {key: value.shape for key, value in network.items()} == {key: value.shape for key, value in fresh.items()}
    before = made(kind).backbone.network.state_dict()
    changed = {key for key in before if not torch.equal(before[key], network[key])}
    assert all("pos" in key for key in changed)
    assert bool(changed) == (kind != "pvt")
    assert other(torch.randn(1, 3, 96, 96)).tokens.shape[1] == (96 // other.patch[0]) ** 2
    method = load(kind, state, size=(96, 96), cell_pixels=None if kind != "pvt" else 16)
    assert method(torch.randn(2, 3, 96, 96))["total"].isfinite()


def test_windows_that_do_not_tile_give_way() -> None:
    """Stages of 64 px have 16, 8 and 4 tokens a side, of 112 px 28, 14 and 7: windows of 4 become windows of 7."""
    state = interop.to_official(made("swin"))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    kept = interop.load_backbone(state, size=(128, 128)).network
    assert torch.equal(kept.get_parameter(name), state[f"encoder.{name}"])
    wider = interop.load_backbone(state, size=(112, 112)).network
    assert torch.equal(wider.get_parameter(name), resize_table(state[f"encoder.{name}"], (4, 4), (7, 7)))


def test_what_the_layout_has_no_place_for() -> None:
    beit = create_beit("beit_base_patch16_224", SIZE, MEAN, STD, overrides=VIT)
    for backbone in (beit, create_hierarchical("resnet18", SIZE, MEAN, STD)):
        target = Hog(backbone.patch, MEAN, STD, "sobel", norm="l2")
        with pytest.raises(UserError, match="holds a ViT with one class token"):
            interop.to_official(fastmim(backbone, Masking(0.5), target))
    central = fastmim(NETWORKS["vit"](SIZE), Masking(0.5), Hog((16, 16), MEAN, STD))
    with pytest.raises(UserError, match="sobel, 9 bins"):
        interop.to_official(central)
    with pytest.raises(UserError, match=r"branches\.1"):
        interop.to_official(jd(made("vit"), Pixels((8, 8), MEAN, STD), 8))
    assert "none of FastMIM's encoders" in refusal("vit", {"decoder_pred.bias": torch.zeros(1)})


def test_files(tmp_path: Path) -> None:
    state = interop.to_official(made("cmt"))
    torch.save({"model": state, "args": Namespace(block_size=32), "epoch": 3}, tmp_path / "fastmim.pth")
    assert same(interop.to_official(load("cmt", tmp_path / "fastmim.pth")), state)
    assert "absent.pth" in refusal("cmt", tmp_path / "absent.pth")
