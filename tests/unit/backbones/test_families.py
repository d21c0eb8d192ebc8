"""Every family of networks in timm: a method takes one, or says in one line why not; nothing ends in a traceback."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from remask.backbones.beit import BeitViT
from remask.backbones.hierarchical import Hierarchical
from remask.backbones.swin import Swin
from remask.backbones.vit import ViT
from remask.build.pretraining import build_method
from remask.errors import UserError
from remask.interop.start import start
from remask.recipe import choose

FAMILIES = (
    "beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "cpubone_nano", "crossvit_tiny_240",
    "cs3darknet_s", "cspnext_tiny", "deit_tiny_distilled_patch16_224", "efficientvim_m1",
    "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "halonet26t", "hgnet_tiny",
    "inception_v3", "legacy_seresnet18", "legacy_xception", "mixer_s16_224", "pit_xs_224",
    "pvt_v2_b0", "resnest14d", "resnet18", "resnetv2_18", "rexnet_100", "selecsls42", "shvit_s1",
    "skresnet18",
    "swin_tiny_patch4_window7_224", "test_byobnet", "test_convnext2", "test_efficientnet", "test_mambaout",
    "test_nfnet", "test_vit", "test_vit4", "vgg11", "vit_betwixt_patch16_rope_reg4_gap_256",
    "vit_pwee_patch16_reg1_gap_256", "vit_relpos_small_patch16_224", "vit_small_patch16_rope_224",
    "vit_tiny_r_s16_p8_224", "volo_d1_224", "xcit_nano_12_p8_224",
)  # fmt: skip
"""One small network or two of a file of timm's; absent ones of an older timm are passed over."""

METHODS: dict[str, dict[str, Any]] = {
    "mae": {},
    "simmim": {"method.name": "simmim"},
    "maskfeat": {"method.name": "maskfeat", "method.target": "hog"},
    "beit": {"method.name": "beit", "method.target": {"kind": "tokens", "tokenizer": "codebook"}},
    "fastmim": {"method.name": "fastmim", "method.target": "hog"},
}


def recipe(name: str, method: str, side: int) -> Any:
    keys = {"backbone.name": name, "data.image_size": side, "masking.cell": 1, **METHODS[method]}
    return choose("fastmim-vit-b" if method == "fastmim" else "mae-vit-b", keys)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_taken_or_refused_in_one_line(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    cfg = timm.get_pretrained_cfg(name)
    side = int(cfg.input_size[1]) if cfg else 224
    said: dict[str, str] = {}
    for method in METHODS:
        try:
            with torch.device("meta"):
                build_method(recipe(name, method, side))(torch.zeros(2, 3, side, side, dtype=torch.uint8))
        except UserError as error:
            said[method] = str(error)
    try:
        backbone: Any = start(f"untrained:{name}")[0].eval()  # type: ignore[attr-defined]
        with torch.no_grad():
            assert backbone(torch.zeros(1, 3, side, side, dtype=torch.uint8)).tokens.isfinite().all()
    except UserError as error:
        said["untrained"] = str(error)
    assert not [line for line in said.values() if "\n" in line or len(line) > 420]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_small_patch16_rope_224", "it turns queries and keys by rotary positions"),
        ("eva02_tiny_patch14_224", "it turns queries and keys by rotary positions"),
        ("cait_xxs24_224", "its last blocks are class attention"),
        ("vit_relpos_small_patch16_224", "it has relative positions"),
        ("vit_tiny_r_s16_p8_224", "its stem is another network"),
        ("resnet18", "it has no patch_embed and no blocks"),
    ],
)
def test_the_reason_is_named(name: str, reason: str) -> None:
    for method in ("mae", "simmim"):
        with pytest.raises(UserError) as caught:
            build_method(recipe(name, method, 224))
        assert f"and {name} can do neither; choose method fastmim" in str(caught.value)
        assert f"({name}: {reason}" in str(caught.value)


class Own(nn.Module):
    """A network of a user's, which none of the wrappers knows."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images


HALF = [0.5] * 3
OWN: dict[str, Any] = {
    "nothing": Own(),
    "with a patch_embed": Own(patch_embed=nn.Conv2d(3, 8, 4, 4)),
    "with blocks": Own(blocks=nn.ModuleList([nn.Identity()])),
    "with no stages": Own(feature_info=[], forward_intermediates=None),
    "empty": nn.Sequential(),
}


@pytest.mark.parametrize("kind", OWN)
def test_own_modules(kind: str) -> None:
    wrappers: dict[str, Any] = {
        "ViT": lambda: ViT(OWN[kind], HALF, HALF),
        "BeitViT": lambda: BeitViT(OWN[kind], HALF, HALF),
        "Swin": lambda: Swin(OWN[kind], HALF, HALF),
        "Hierarchical": lambda: Hierarchical(OWN[kind], (32, 32), HALF, HALF),
    }
    for name, wrap in wrappers.items():
        with pytest.raises(UserError, match=r"returns no map of features|cannot be masked token by token") as caught:
            wrap()
        assert type(OWN[kind]).__name__ in str(caught.value), name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_small_patch16_rope_224", "rotary positions"),
        ("cait_xxs24_224", "class attention"),
        ("beit_base_patch16_224", "relative positions"),
        ("deit_tiny_distilled_patch16_224", "distillation token"),
    ],
)
def test_a_wrapper_does_not_run_another_network_without_what_makes_it_another(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=reason):
        ViT(timm.create_model(name), HALF, HALF)


def test_blocks_without_one_attention_take_the_other_first_weights() -> None:
    name = "vit_pwee_patch16_reg1_gap_256"
    keys = {**METHODS["simmim"], "backbone.name": name, "data.image_size": 64}
    with pytest.raises(UserError, match=r"ParallelScalingBlocks, without an attn and an mlp.*method.initial to xavier"):
        build_method(choose("simmim-vit-b", keys | {"method.initial": "published"}))
    build_method(choose("simmim-vit-b", keys | {"method.initial": "xavier"}))
