"""Masks as data: disjoint masking in a model that is not ours."""

import pytest
import torch

import remask

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("ratio", "side"), [(0.75, 8), (0.6, 7), (0.5, 6)])
def test_disjoint_masking_of_hugging_faces_vitmae(ratio: float, side: int) -> None:
    """It hides just the tokens of each view, and the views together hide all that can be hidden."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = transformers.ViTMAEConfig(image_size=4 * side, patch_size=4, mask_ratio=ratio, **sizes, **decoder)
    model, images = transformers.ViTMAEForPreTraining(config), torch.randn(3, 3, 4 * side, 4 * side)
    views = remask.Masking(ratio, views=2)(len(images), (side, side))
    found = model(views.repeat(images), noise=views.mask.flatten(0, 1).float())
    assert torch.equal(found.mask.bool(), views.mask.flatten(0, 1))
    assert views.mask.any(0).all()
    assert found.loss.isfinite()
