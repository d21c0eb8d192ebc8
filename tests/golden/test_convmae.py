"""ConvMAE against numbers that the official code computed: stage maps, latents, losses, gradients, classifiers.

Ours computes visible cells only, so it is compared there; the whole maps are compared with the dense reference of our
unit tests, which this shows to be the official form. Official visible tokens stand in the order of the noise.
"""

import math
import re

import pytest
import torch
from torch import Tensor

from remask.backbones.convvit import ConvViT, create_convvit
from remask.backbones.convvit_network import ConvViTNetwork
from remask.errors import UserError
from remask.interop import convmae as interop
from remask.interop.mae import MEAN, STD
from remask.masking import Masking
from remask.method import Method
from remask.methods.convmae import convmae
from remask.targets import Pixels
from remask.tokens import sincos_positions, take
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
from tests.golden.vectors import Entries, File, Folder, activations, gradients, losses, norms, some

SYSTEM = "convmae"
FILES = {"forward": "forward*.safetensors", "classifier": "convvit_*.safetensors"}
NORMALISED = {"pix": False, "normpix": True}


def official_state(folder: Folder) -> Entries:
    return folder.tensors("state_dict.safetensors")


def method_of(folder: Folder, per_patch: bool = True) -> Method:
    """The stored pre-training weights as our method, loaded the way a user loads them."""
    config = folder.config
    heads, decoder_heads = config.part("encoder")["heads"], config.part("decoder")["heads"]
    ratio = float(config["mask_ratio"])
    state = official_state(folder)
    method = interop.load(state, heads=heads, decoder_heads=decoder_heads, ratio=ratio, per_patch=per_patch)
    with_epsilons_of(folder, method)
    return method


def forward_method(forward: File, per_patch: bool = True) -> tuple[Method, Views]:
    """Our views from stored noise: official code keeps the lowest, ours hides the lowest."""
    method, noise = method_of(forward.folder, per_patch), forward.tensors["noise"]
    views = Masking(method.masking.ratio, lambda *_: -noise)(len(noise), method.backbone.built_for)
    return method, views


def images_in(stored: Entries) -> Tensor:
    """Normalised; the part that the project carries holds the integers they come from, a quarter of the size."""
    if "imgs_u8" not in stored:
        return stored["imgs"]
    pixels = stored["imgs_u8"]
    pixels = pixels.permute(0, 3, 1, 2) if pixels.shape[1] != len(MEAN) else pixels  # channels first, or last
    return (pixels / 255 - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def in_raster_order(forward: File, name: str) -> Tensor:
    return take(forward.tensors[name], forward.tensors["ids_keep"].argsort(dim=1))


def gradients_of(method: Method) -> dict[str, Tensor]:
    """By official name."""
    names = {name: interop.renamed(name, interop.OFFICIAL) for name, _ in method.named_parameters()}
    return {names[name]: p.grad for name, p in method.named_parameters() if p.grad is not None}


def channels_first(cut: Tensor, side: int) -> Tensor:
    """[R, N, C] as maps."""
    return cut.transpose(1, 2).unflatten(2, (side, side))


def test_masks_follow_from_the_noise(forward: File) -> None:
    method, views = forward_method(forward)
    stored = forward.tensors
    assert torch.equal(views.mask[0], stored["mask"].bool())
    assert torch.equal(views.visible, stored["ids_keep"].sort(dim=1).values)
    assert method.masking.counts(views.grid).hidden == int(stored["mask"][0].sum())


def test_first_patch_embedding(forward: File) -> None:
    method, _ = forward_method(forward)
    embedded = method.backbone.network.patch_embed1(images_in(forward.tensors).permute(0, 2, 3, 1))
    activations(embedded[0].permute(2, 0, 1), forward.tensors["patch_embed1_out_img0"])


def test_first_stage_on_visible_cells(forward: File) -> None:
    method, views = forward_method(forward)
    backbone, stored = method.backbone, forward.tensors
    first, _, _ = backbone._stages(backbone.embed(images_in(stored)), views)
    _, inner, outer = backbone.network.sizes.strides
    one = Views(views.mask[:, :1], views.grid, views.hidden)
    activations(in_rows(first, outer, inner)[:1], cells(stored["stage1_map_img0"][None], one))


def test_second_stage_on_visible_cells(forward: File) -> None:
    method, views = forward_method(forward)
    backbone, stored = method.backbone, forward.tensors
    _, second, _ = backbone._stages(backbone.embed(images_in(stored)), views)
    activations(in_rows(second, backbone.network.sizes.strides[2]), cells(stored["stage2_map"], views))


def test_third_embedding_of_visible_cells(forward: File) -> None:
    method, views = forward_method(forward)
    backbone, stored = method.backbone, forward.tensors
    _, second, third = backbone._stages(backbone.embed(images_in(stored)), views)
    expected = cells(stored["patch_embed3_out"], views).flatten(2)
    activations(backbone.network.patch_embed3.windows(second.flatten(2)), expected)
    activations(third, take(stored["patch_embed4_out"], views.visible))


def test_fused_terms(forward: File) -> None:
    method, views = forward_method(forward)
    backbone, stored = method.backbone, forward.tensors
    fused = backbone._fused(backbone._stages(backbone.embed(images_in(stored)), views))
    expected = stored["stage1_embed_visible"], stored["stage2_embed_visible"]
    order = stored["ids_keep"].argsort(dim=1)
    activations(fused, take(expected[0] + expected[1], order))
    found = dense(backbone, images_in(stored), views).fused
    for ours, theirs in zip(found, expected, strict=True):
        activations(ours, take(theirs, order))


def test_tokens_before_fusion_and_latent(forward: File) -> None:
    method, views = forward_method(forward)
    backbone = method.backbone
    features = backbone.encode(backbone.embed(images_in(forward.tensors)), views, layers=(backbone.depth - 1, -1))
    activations(features[-1].tokens, in_raster_order(forward, "latent"))
    activations(features[backbone.depth - 1].tokens, in_raster_order(forward, "stage3_tokens"))


def test_the_dense_reference_is_the_official_form(forward: File) -> None:
    method, views = forward_method(forward)
    stored = forward.tensors
    found = dense(method.backbone, images_in(stored), views, forward.folder.config["norm_eps"])
    activations(found.latent, in_raster_order(forward, "latent"))
    activations(found.tokens, in_raster_order(forward, "stage3_tokens"))
    activations(found.stage1[0], stored["stage1_map_img0"])
    activations(found.stage2, stored["stage2_map"])
    activations(found.embed3, stored["patch_embed3_out"])
    activations(found.embed4, stored["patch_embed4_out"])


def test_predictions(forward: File) -> None:
    method, views = forward_method(forward)
    prediction, _ = method.pairs(images_in(forward.tensors), views)["masked"]
    activations(prediction, take(forward.tensors["pred"], views.masked))


@pytest.mark.parametrize("kind", NORMALISED)
def test_loss(forward: File, kind: str) -> None:
    method, views = forward_method(forward, NORMALISED[kind])
    losses(method(images_in(forward.tensors), views=views)["total"], forward.tensors[f"loss_{kind}"])


@pytest.mark.parametrize("kind", NORMALISED)
def test_named_gradients(forward: File, kind: str) -> None:
    expected = forward.tensors.below(f"grad_{kind}.")
    method, views = forward_method(forward, NORMALISED[kind])
    method(images_in(forward.tensors), views=views)["total"].backward()
    actual = gradients_of(method)
    for name, gradient in expected.items():
        gradients(actual[name], gradient)


@pytest.mark.parametrize("kind", NORMALISED)
def test_every_gradient_norm(forward: File, kind: str) -> None:
    name = forward.stem.replace("forward", "gradnorms")
    expected, stored = forward.folder.json(f"{name}.json")[f"loss_{kind}"], forward.tensors
    stored[f"loss_{kind}"]  # absent where images were left out, for which the norms would not hold
    method, views = forward_method(forward, NORMALISED[kind])
    method(images_in(stored), views=views)["total"].backward()
    norms({name: float(grad.norm()) for name, grad in gradients_of(method).items()}, expected)


def test_classifier(classifier: File) -> None:
    check_classifier(classifier, images_of(classifier.folder))


def test_classifier_gradient_norms(classifier: File) -> None:
    check_classifier_norms(classifier, images_of(classifier.folder))


def images_of(folder: Folder) -> Tensor:
    path = some(sorted(folder.path.glob(FILES["forward"])), "forward pass")[0]
    return images_in(folder.tensors(path.name))


def test_the_way_back_is_bit_equal(folder: Folder) -> None:
    stored, back = official_state(folder), interop.to_official(method_of(folder))
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)


def test_encoder_alone(folder: Folder) -> None:
    stored, heads = official_state(folder), folder.config.part("encoder")["heads"]
    encoder = {key: value for key, value in stored.items() if key.startswith((*interop.ENCODER, *interop.FUSION))}
    backbone = interop.load_backbone({"model": encoder}, heads=heads)
    trunk = backbone.network.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in trunk.items())
    assert encoder.keys() - trunk.keys() == {key for key in stored if key.startswith(tuple(interop.FUSION))}
    assert torch.equal(backbone.fusions[1].bias, encoder["stage2_output_decode.bias"])
    with pytest.raises(UserError, match="no decoder"):
        interop.load(encoder, heads=heads, decoder_heads=heads)


def test_stored_tables_are_ours(folder: Folder) -> None:
    stored = official_state(folder)
    for name in ("pos_embed", "decoder_pos_embed"):
        side = math.isqrt(stored[name].shape[1])
        table = sincos_positions((side, side), stored[name].shape[2])
        torch.testing.assert_close(table[None], stored[name], atol=1e-6, rtol=0)


def test_layer_decay(folder: Folder) -> None:
    check_layer_decay(folder)


@pytest.mark.parametrize("kind", ["gap", "token0"])
def test_what_fine_tuning_loads(folder: Folder, kind: str) -> None:
    check_fine_tuning(folder, official_state(folder), kind)


def test_parameter_counts(folder: Folder) -> None:
    """All, and the encoder, count the stored tables, as the official state holds them."""
    stored = folder.json("meta.json")["param_counts"]
    with torch.device("meta"):
        backbone = create_convvit("convvit_base", (224, 224), MEAN, STD)
        target = Pixels(backbone.patch, MEAN, STD)
        method = convmae(backbone, Masking(0.75), target, (224, 224))
    whole = {name: tensor.numel() for name, tensor in interop.to_official(method).items()}
    decoder = {name: count for name, count in whole.items() if name.startswith(("decoder_", "mask_token"))}
    actual = {
        "convmae_base_all": sum(whole.values()),
        "encoder": sum(whole.values()) - sum(decoder.values()),
        "decoder": sum(decoder.values()),
    }
    for name, count in some(stored.items(), "parameter counts"):
        if found := re.fullmatch(r"convvit_base_gap_(\d+)", name):
            actual[name] = classifier_count(backbone, int(found[1]))
        assert actual[name] == count, name


def classifier_count(backbone: ConvViT, classes: int) -> int:
    with torch.device("meta"):
        network = ConvViTNetwork((224, 224), 3, backbone.network.sizes, classes=classes)
    return sum(p.numel() for p in network.parameters())
