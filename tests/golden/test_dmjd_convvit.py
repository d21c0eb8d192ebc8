"""DMJD on ConViT, the whole method, against the official code: trunk, both branches, losses, gradients, three steps.

The released visible branch is misaligned (docs/decisions/0001): its values come by the compatibility switch, and ours
are compared with the stored aligned ones.
"""

import math
import re

import pytest
import torch
from torch import Tensor

from remask.backbones.convvit import create_convvit
from remask.backbones.convvit_network import ConvViTNetwork
from remask.distances import squared
from remask.interop import dmjd as interop
from remask.interop.mae import MEAN, STD
from remask.masking import Masking
from remask.method import Method
from remask.methods import dm, jd
from remask.methods.convmae import convmae
from remask.targets import Hog
from remask.tokens import take
from remask.training.optim import adamw, parameter_groups
from remask.types import Grid
from remask.views import Views
from tests.dense_convvit import dense
from tests.golden.convvit import (
    cells,
    check_classifier,
    check_classifier_norms,
    check_fine_tuning,
    check_layer_decay,
    in_rows,
    with_epsilons_of,
)
from tests.golden.test_dmjd import StoredTarget, distance_of, in_raster_order, state_of, target_of, views_in
from tests.golden.vectors import Entries, File, Folder, activations, gradients, losses, norms, some, trajectory

SYSTEM = "dmjd"
FILES = {
    "forward": "jd_*.safetensors",
    "classifier": "convit_*.safetensors",
    "train": "train*.safetensors",
}


def whole_state(folder: Folder) -> Entries:
    return state_of(folder, "patch_embed1.proj.weight", "blocks3.0.attn.qkv.weight", "decoder_pred.weight")


def method_of(folder: Folder, masked: str = "l2", visible: str = "smooth_l1") -> Method:
    """The stored pre-training weights as our method, loaded the way a user loads them, with the stored target."""
    config = folder.config
    heads, decoder_heads = config.part("encoder")["heads"], config.part("decoder")["heads"]
    method = interop.load(whole_state(folder), heads=heads, decoder_heads=decoder_heads)
    target = StoredTarget(target_of(folder))
    for branch, distance in zip(method.branches, (masked, visible), strict=True):
        branch.target, branch.distance = target, distance_of(distance, folder)
    with_epsilons_of(folder, method)
    return method


def images_of(folder: Folder) -> Tensor:
    return folder.tensors("inputs.safetensors")["imgs_norm"]


def official_losses(method: Method, images: Tensor, views: Views, keep: Tensor) -> dict[str, Tensor]:
    """Losses whose visible pairs are those of the released code."""
    pairs, (first, second) = method.pairs(images, views), method.branches
    misaligned = interop.official_visible_pairs(pairs["visible"][0], second.target.target, views, keep)
    found = {"masked": first.distance(*pairs["masked"]).mean(), "visible": second.distance(*misaligned).mean()}
    return {**found, "total": found["masked"] + found["visible"]}


def official_gradients(forward: File) -> dict[str, Tensor]:
    method = method_of(forward.folder)
    images, keep = images_of(forward.folder), forward.tensors["ids_keep"]
    official_losses(method, images, views_in(forward), keep)["total"].backward()
    names = {**interop.convmae.OFFICIAL, **{ours: key for key, ours in interop.VISIBLE.items()}}
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {interop.renamed(name, names): grad for name, grad in found.items()}


def test_stage_maps_on_visible_cells(forward: File) -> None:
    method, views, stored = method_of(forward.folder), views_in(forward), forward.tensors
    backbone = method.backbone
    first, second, _ = backbone._stages(backbone.embed(images_of(forward.folder)), views)
    _, inner, outer = backbone.network.sizes.strides
    for key in some((key for key in stored if re.fullmatch(r"stage[12]_map_view\d_img\d", key)), "stage maps"):
        stage, view, image = (int(number) for number in re.findall(r"\d", key))
        row = (view - 1) * views.mask.shape[1] + image
        ours = in_rows(first, outer, inner) if stage == 1 else in_rows(second, outer)
        alone = Views(views.mask[view - 1 : view, image : image + 1], views.grid, views.hidden)
        activations(ours[row : row + 1], cells(stored[key][None], alone))


def test_the_dense_reference_is_the_official_form(forward: File) -> None:
    views, stored = views_in(forward), forward.tensors
    backbone, eps = method_of(forward.folder).backbone, forward.folder.config["norm_eps"]
    found = dense(backbone, images_of(forward.folder), views, eps)
    activations(found.latent, in_raster_order(stored["latent"], forward))
    activations(found.stage1[0], stored["stage1_map_view1_img0"])
    activations(found.stage2[views.mask.shape[1] + 1], stored["stage2_map_view2_img1"])
    for ours, key in ((found.stage1, "stage1_map_sum_abs"), (found.stage2, "stage2_map_sum_abs")):
        torch.testing.assert_close(ours.detach().abs().sum(), stored[key], rtol=1e-4, atol=0)


def test_tokens_before_fusion_and_latent(forward: File) -> None:
    backbone, stored = method_of(forward.folder).backbone, forward.tensors
    stem, views = backbone.embed(images_of(forward.folder)), views_in(forward)
    features = backbone.encode(stem, views, layers=(backbone.depth - 1, -1))
    activations(features[-1].tokens, in_raster_order(stored["latent"], forward))
    activations(features[backbone.depth - 1].tokens, in_raster_order(stored["stage3_tokens"], forward))


def test_predictions_of_both_branches(forward: File) -> None:
    method, views, stored = method_of(forward.folder), views_in(forward), forward.tensors
    images = images_of(forward.folder)
    pairs = method.pairs(images, views)
    activations(pairs["visible"][0], in_raster_order(stored["pred_vis"], forward))
    activations(pairs["masked"][0], take(stored["pred"], views.masked))
    latent = method.backbone.encode(method.backbone.embed(images), views)[-1].tokens
    projected = method.branches[1].head.project(latent)
    activations(projected, in_raster_order(stored["projector_out"], forward))


@pytest.mark.parametrize("masked", ["l2", "smooth_l1"])
@pytest.mark.parametrize("visible", ["l2", "smooth_l1"])
def test_losses(forward: File, masked: str, visible: str) -> None:
    method, images, views = method_of(forward.folder, masked, visible), images_of(forward.folder), views_in(forward)
    stored = forward.tensors
    aligned, official = method(images, views), official_losses(method, images, views, stored["ids_keep"])
    for found in (aligned, official):
        losses(found["masked"], stored[f"loss_mim_{masked}"])
    losses(aligned["visible"], stored[f"loss_vis_{visible}_ALIGNED_not_official"])
    losses(official["visible"], stored[f"loss_vis_{visible}_official_raster_target"])
    losses(official["total"], stored[f"loss_total_mim-{masked}_vis-{visible}"])
    losses(aligned["total"], aligned["masked"].detach() + stored[f"loss_vis_{visible}_ALIGNED_not_official"])


def test_named_gradients(forward: File) -> None:
    expected, actual = forward.tensors.below("grad."), official_gradients(forward)
    for name, gradient in expected.items():
        gradients(actual[name], gradient)


def test_every_gradient_norm(forward: File) -> None:
    expected, actual = forward.folder.json(f"{forward.stem}_gradnorms.json"), official_gradients(forward)
    norms({name: float(grad.norm()) for name, grad in actual.items()}, dict(expected))


def drawn_officially(noise: Tensor, alone: Tensor, both: Tensor, rates: dict, side: int) -> Tensor:
    """Visible ids [2B, K] in the official order: from noise, a permutation of what view 1 sees and one of the rest.

    View 2 hides the first `fresh` of what view 1 saw, and shows as many of the rest.
    """
    order, seen = noise.argsort(dim=1), len(alone)
    units, ratio, cell = order.shape[1], float(rates["mask_ratio"]), math.isqrt(side**2 // order.shape[1])
    fresh = int(min(float(rates.get("prediction", 1.0)) - ratio, ratio) * units)
    second = [order[:, :seen][:, alone[fresh:]], order[:, seen:][:, both[units - seen - fresh :]]]
    kept = torch.cat([order[:, :seen], torch.cat(second, dim=1)])
    if cell == 1:
        return kept
    corner = kept // (side // cell) * cell * side + kept % (side // cell) * cell
    offsets = [down * side + right for down in range(cell) for right in range(cell)]
    return torch.cat([corner + offset for offset in offsets], dim=1)


def views_of(keep: Tensor, grid: Grid) -> Views:
    mask = torch.ones(len(keep), grid[0] * grid[1]).scatter(1, keep, 0.0)
    return interop.views_of(mask, grid)


def test_the_official_draw_is_understood(forward: File) -> None:
    config, stored = forward.folder.config.part(forward.stem), forward.tensors
    draws = (stored[key] for key in ("noise", "perm_disj", "perm_joint"))
    side = views_in(forward).grid[0]
    keep = drawn_officially(*draws, config, side)
    assert torch.equal(keep, stored["ids_keep"])
    assert torch.equal(views_of(keep, (side, side)).mask, views_in(forward).mask)


def test_three_steps(train: File) -> None:
    config, stored = train.folder.config.part("train3").part(train.stem), train.tensors
    method, images = method_of(train.folder), images_of(train.folder)
    grid = method.backbone.built_for
    groups = parameter_groups(method.named_parameters(), float(config["weight_decay"]))
    optimizer, found = adamw(groups, float(config["lr"]), tuple(config["betas"])), []
    for draw in zip(stored["noise"], stored["perm_disj"], stored["perm_joint"], strict=True):
        keep = drawn_officially(*draw, config, grid[0])
        loss = official_losses(method, images, views_of(keep, grid), keep)["total"]
        found.append(loss.detach())
        if len(found) < len(stored["noise"]):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trajectory(torch.stack(found), stored["losses"])
    after = interop.to_official(method)
    for name, parameter in stored.below("final.").items():
        trajectory(after[name], parameter)


def test_classifier(classifier: File) -> None:
    check_classifier(classifier, images_of(classifier.folder))


def test_classifier_gradient_norms(classifier: File) -> None:
    check_classifier_norms(classifier, images_of(classifier.folder))


def test_the_way_back_is_bit_equal(folder: Folder) -> None:
    stored, back = whole_state(folder), interop.to_official(method_of(folder))
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)


def test_encoder_alone(folder: Folder) -> None:
    stored, heads = whole_state(folder), folder.config.part("encoder")["heads"]
    trunk = interop.load_backbone(stored, heads=heads).network.state_dict()
    assert all(torch.equal(value, stored[key]) for key, value in trunk.items())


@pytest.mark.parametrize("kind", ["gap", "token0"])
def test_what_fine_tuning_loads(folder: Folder, kind: str) -> None:
    check_fine_tuning(folder, whole_state(folder), kind)


def test_layer_decay(folder: Folder) -> None:
    check_layer_decay(folder)


SIZES = {"base": "convvit_base_wide", "large": "convvit_large"}


def test_parameter_counts(folder: Folder) -> None:
    named = re.compile(r"(?:dmjd_)?convit_(base|large)_patch(\d+)_(?:dec(\d+)d(\d+)b_hog|gap_(\d+))")
    for name, stored in some(folder.json("meta.json")["param_counts"].items(), "parameter counts"):
        size, patch, width, depth, classes = named.fullmatch(name).groups()
        with torch.device("meta"):
            backbone = create_convvit(SIZES[size], (224, 224), MEAN, STD, overrides={"patch_size": int(patch)})
            if classes:
                network = ConvViTNetwork((224, 224), 3, backbone.network.sizes, classes=int(classes))
                assert sum(p.numel() for p in network.parameters()) == stored, name
                continue
            target = Hog(backbone.patch, MEAN, STD)
            heads, ratio = 16, stored["decoder_mlp_hidden"] / int(width)
            single = convmae(backbone, Masking(0.6), target, (224, 224), int(width), int(depth), heads, ratio)
            method = jd(dm(single), target)
        counts = {key: tensor.numel() for key, tensor in interop.to_official(method).items()}
        parts = {"decoder_MPB": ("decoder_", "mask_token"), "VDB": ("proj_embed.", "predictor.")}
        actual = {part: sum(n for key, n in counts.items() if key.startswith(names)) for part, names in parts.items()}
        actual |= {"all": sum(counts.values()), "encoder": sum(counts.values()) - sum(actual.values())}
        assert actual == {key: stored[key] for key in actual}, name
        assert method.branches[0].distance is squared
