"""MaskFeat's ViT against numbers that mmpretrain and SlowFast computed: latent, predictions, losses, block masks.

The HOG of the target is compared in test_hog_sobel.py; here it is taken as stored.
"""

import pytest
import torch
from torch import Tensor

from remask.distances import squared
from remask.interop import maskfeat as interop
from remask.method import Method
from tests.golden.replacing import block_cases, check_block_masks, encoded, loss_of, smallest_of, with_eps
from tests.golden.vectors import Folder, activations, losses

SYSTEM = "maskfeat"
LOSSES = {"hog_gauss16": "loss_mmpretrain_gauss16", "hog_nogauss": "loss_nogauss"}


def method_of(folder: Folder) -> Method:
    config = folder.config.part("vit")
    method = interop.load(folder.tensors("vit_mmpretrain_state_dict.safetensors"), heads=config["heads"]).eval()
    return with_eps(method, config["norm_eps"])


def images_of(folder: Folder, method: Method) -> Tensor:
    side = method.backbone.built_for[0] * method.backbone.patch[0]
    return folder.tensors("hog.safetensors")[f"rand{side}.images"]


def test_sizes_are_read_from_the_weights(folder: Folder) -> None:
    backbone, config = method_of(folder).backbone, folder.config.part("vit")
    assert (backbone.width, backbone.depth, backbone.patch[0]) == (config["dim"], config["depth"], config["patch_size"])
    assert backbone.built_for[0] * backbone.patch[0] == config["image_size"]
    assert method_of(folder).branches[0].target.width == config["target"]
    assert backbone.network.pos_embed.requires_grad


def test_latent_and_predictions(folder: Folder) -> None:
    method, stored = method_of(folder), folder.tensors("vit_io.safetensors")
    features = encoded(method, images_of(folder, method), stored["mask"])[-1]
    activations(torch.cat(features, dim=1), stored["latent"])
    activations(method.branches[0].head.predict(features.tokens), stored["pred"])


@pytest.mark.parametrize("target", LOSSES)
def test_loss(folder: Folder, target: str) -> None:
    method, stored = method_of(folder), folder.tensors("vit_io.safetensors")
    loss = loss_of(method, images_of(folder, method), stored["mask"], stored[target])
    losses(loss, stored[LOSSES[target]])


@pytest.mark.parametrize("target", LOSSES)
def test_loss_of_stored_predictions(folder: Folder, target: str) -> None:
    stored = folder.tensors("vit_io.safetensors")
    masked = stored["mask"].bool()
    losses(squared(stored["pred"], stored[target])[masked].mean(), stored[LOSSES[target]])


def test_both_code_bases_take_the_same_mean(folder: Folder) -> None:
    stored = folder.tensors("loss.safetensors")
    loss = squared(stored["pred"], stored["target"])[stored["mask"].bool()].mean()
    losses(loss, stored["loss_slowfast"])
    losses(loss, stored["loss_mmpretrain"])


def test_the_way_back_is_bit_equal(folder: Folder) -> None:
    stored, method = folder.tensors("vit_mmpretrain_state_dict.safetensors"), method_of(folder)
    back = interop.to_official(method, "mmpretrain")
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)
    slowfast = interop.load(interop.to_official(method, "slowfast"), heads=folder.config.part("vit")["heads"])
    assert all(torch.equal(value, slowfast.state_dict()[key]) for key, value in method.state_dict().items())


def test_block_masks(folder: Folder) -> None:
    for case in block_cases(folder):
        check_block_masks(case, smallest_of(folder, case, case.wanted // 5))  # official: a fifth of the count
