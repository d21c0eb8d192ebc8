"""evaluation/timm_classifier.py: BEiT, Swin and ViT with a head are timm's own; what timm has not is none."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from remask.backbones.beit import create_beit
from remask.backbones.convvit import create_convvit
from remask.backbones.swin import create_swin
from remask.backbones.vit import create_vit
from remask.downstream.finetune.classifier import Classifier
from remask.downstream.finetune.timm_classifier import as_timm

SIZE, CONSTANTS = (32, 48), ([0.4] * 3, [0.2] * 3)
VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
NETS: dict[str, Any] = {
    "vit": (lambda: create_vit("vit_base_patch16_224", SIZE, *CONSTANTS, overrides=VIT), ("mean", "cls")),
    "registers": (lambda: create_vit("vit_base_patch16_reg4_gap_256", SIZE, *CONSTANTS, overrides=VIT), ("mean",)),
    "beit": (lambda: create_beit("beit_base_patch16_224", SIZE, *CONSTANTS, overrides=VIT), ("mean", "cls")),
    "swin": (lambda: create_swin("swin_micro", (32, 32), *CONSTANTS), ("mean",)),
}


@pytest.mark.parametrize(("net", "pool"), [(net, pool) for net, (_, pools) in NETS.items() for pool in pools])
def test_timm_computes_the_same(net: str, pool: Any) -> None:
    torch.manual_seed(0)
    size = (32, 32) if net == "swin" else SIZE
    classifier = Classifier(NETS[net][0](), 7, pool=pool).eval()
    for name, parameter in classifier.named_parameters():
        if not name.endswith(("norm1.weight", "norm2.weight")):
            nn.init.normal_(parameter, std=0.2)
    found = as_timm(classifier, size)
    assert found is not None
    model = timm.create_model(found.name, **found.arguments).eval()
    model.load_state_dict(found.state, strict=True)
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        wanted = classifier.logits(pixels)
        assert torch.allclose(model((pixels / 255 - 0.4) / 0.2), wanted, atol=1e-4 * float(wanted.abs().max()))
    assert wanted.shape == (2, 7)


def test_none_where_timm_has_no_such_network() -> None:
    assert as_timm(Classifier(create_convvit("convvit_micro", (32, 32), *CONSTANTS), 3), (32, 32)) is None
