"""SimMIM against numbers that the official code computed, on ViT and Swin: activations, loss, gradients, tables."""

import re

import pytest
import torch
from timm.models.beit import Beit
from torch import Tensor

from remask.backbones.beit import BeitViT
from remask.backbones.swin import Swin
from remask.backbones.tables import resize_table
from remask.interop import simmim as interop
from remask.masking import Masking
from remask.method import Method
from remask.tokens import split_tokens, unpatchify
from remask.views import Views
from tests.golden.replacing import views_of, with_eps
from tests.golden.vectors import Entries, Folder, activations, gradients, losses, some

SYSTEM = "simmim"
KINDS = ("vit", "swin")


def method_of(folder: Folder, kind: str) -> Method:
    """The stored pre-training weights as our method, loaded the way a user loads them."""
    config, side = folder.config.part(kind), folder.config.part(kind)["image_size"]
    ratio, cell = float(config["mask_ratio"]), config["mask_patch"]
    state = folder.tensors(f"{kind}_state_dict.safetensors")
    method = interop.load(state, size=(side, side), ratio=ratio, cell=cell).eval()
    return with_eps(method, config["norm_eps"])


def stored_of(folder: Folder, kind: str) -> Entries:
    return folder.tensors(f"{kind}_io.safetensors")


def stored_views(method: Method, stored: Entries) -> Views:
    return views_of(stored["mask"], method.grid(tuple(stored["images"].shape[-2:])))


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_read_from_the_weights(folder: Folder, kind: str) -> None:
    backbone, config = method_of(folder, kind).backbone, folder.config.part(kind)
    assert backbone.patch == (config["encoder_stride"],) * 2
    if isinstance(backbone, Swin):
        assert backbone.depths == config["depths"]
        assert [stage.blocks[0].attn.num_heads for stage in backbone.network.layers] == config["heads"]
        assert backbone.stem_width == config["dim"]
        assert backbone.network.layers[0].blocks[0].window_size == (config["window"],) * 2
    else:
        assert (backbone.width, backbone.depth) == (config["dim"], config["depth"])
        assert backbone.network.blocks[0].attn.num_heads == config["heads"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_mask_is_one_that_our_masking_draws(folder: Folder, kind: str) -> None:
    method, stored = method_of(folder, kind), stored_of(folder, kind)
    views = stored_views(method, stored)
    assert method.masking.counts(views.grid).hidden == views.hidden
    assert torch.equal(views.pixels(method.mask_unit)[0].long().unsqueeze(1), stored["pixel_mask"])
    cell = method.masking.cell * method.mask_unit[0], method.masking.cell * method.mask_unit[1]
    assert cell == (folder.config.part(kind)["mask_patch"],) * 2
    cells = views_of(stored["mask"], (views.grid[0] // method.masking.cell, views.grid[1] // method.masking.cell))
    assert cells.hidden == method.masking.counts(views.grid).hidden // method.masking.cell**2


def test_activations_of_the_vit(folder: Folder) -> None:
    method, stored = method_of(folder, "vit"), stored_of(folder, "vit")
    backbone, views = method.backbone, stored_views(method, stored)
    assert isinstance(backbone, BeitViT)
    stem = backbone.embed(stored["images"])
    activations(stem.tokens, stored["act.encoder.patch_embed"])
    activations(backbone.bias(backbone.network.rel_pos_bias, stem.grid), stored["rel_pos_bias"])
    numbers = {int(key): value for key, value in stored.below("act.encoder.blocks.").items() if key.isdecimal()}
    features = backbone.encode(stem, views, mask_token=method.sees.mask_token, layers=(*numbers, -1))
    for number, value in {**numbers, -1: stored["act.encoder.norm"]}.items():
        activations(torch.cat(features[number], dim=1), value)


def test_activations_of_the_swin(folder: Folder) -> None:
    method, stored = method_of(folder, "swin"), stored_of(folder, "swin")
    backbone, views = method.backbone, stored_views(method, stored)
    assert isinstance(backbone, Swin)
    stem = backbone.embed(stored["images"])
    activations(stem.tokens.flatten(1, 2), stored["act.encoder.patch_embed"])
    ends = [sum(backbone.depths[: i + 1]) - 1 for i in range(len(backbone.depths))]
    features = backbone.encode(stem, views, mask_token=method.sees.mask_token, layers=(*range(backbone.depth), -1))
    activations(features[-1].tokens, stored["act.encoder.norm"])
    for key, value in stored.below("act.encoder.layers.").items():
        match = re.fullmatch(r"(\d+)(?:\.blocks\.(\d+)|\.downsample)?", key)
        stage = int(match[1])
        number = ends[stage] if match[2] is None else ends[stage] - backbone.depths[stage] + 1 + int(match[2])
        tokens = features[number].tokens
        if match[2] is None and stage + 1 < len(ends):  # official: a stage ends with the merging of its patches
            rows = stem.grid[0] // 2**stage
            tokens = backbone.network.layers[stage + 1].downsample(tokens.unflatten(1, (rows, -1))).flatten(1, 2)
        activations(tokens, value)


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction(folder: Folder, kind: str) -> None:
    method, stored = method_of(folder, kind), stored_of(folder, kind)
    backbone, views = method.backbone, stored_views(method, stored)
    tokens = backbone.encode(backbone.embed(stored["images"]), views, mask_token=method.sees.mask_token)[-1].tokens
    grid = backbone.grid(tuple(stored["images"].shape[-2:]))
    activations(tokens.mT.unflatten(2, grid), stored["encoder_out"])
    restored = split_tokens(method.branches[0].head.predict(tokens), grid, method.cells_per_token)
    activations(unpatchify(restored, views.grid, method.mask_unit), stored["reconstruction"])


@pytest.mark.parametrize("kind", KINDS)
def test_loss(folder: Folder, kind: str) -> None:
    method, stored = method_of(folder, kind), stored_of(folder, kind)
    losses(method(stored["images"], stored_views(method, stored))["total"], stored["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_named_gradients(folder: Folder, kind: str) -> None:
    method, stored = method_of(folder, kind), stored_of(folder, kind)
    method(stored["images"], stored_views(method, stored))["total"].backward()
    actual = dict(method.named_parameters())
    expected = interop.from_official(stored.below("grad."), method.backbone.channels, method.cells_per_token)
    for name, gradient in expected.items():
        gradients(actual[name].grad, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_the_way_back_is_bit_equal(folder: Folder, kind: str) -> None:
    stored, back = folder.tensors(f"{kind}_state_dict.safetensors"), interop.to_official(method_of(folder, kind))
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)


def test_masks_have_the_official_count_and_form(folder: Folder) -> None:
    stored, settings = folder.tensors("masks.safetensors"), folder.config.part("masks")
    for key, masks in some(stored.items(), "masks"):
        setting = settings[key.split(".")[0]]
        side, cell = setting["input"] // setting["model_patch"], setting["mask_patch"] // setting["model_patch"]
        assert masks.shape[1:] == (side, side)
        masking = Masking(float(setting["ratio"]), cell=cell, count="simmim")
        ours = masking(len(masks), (side, side), torch.Generator().manual_seed(0))
        for found in (masks, ours.mask[0].unflatten(1, (side, side)).long()):
            cells = found.unfold(1, cell, cell).unfold(2, cell, cell).flatten(3)
            assert (cells == cells[..., :1]).all(), key
            assert (found.flatten(1).sum(1) == ours.hidden).all(), key


def test_tables_of_other_windows(folder: Folder) -> None:
    stored = folder.tensors("geo_rpb.safetensors")
    matches = some((m for key in stored if (m := re.fullmatch(r"(table_w(\d+))_to_w(\d+)", key))), "resized tables")
    for match in matches:
        old, new = int(match[2]), int(match[3])
        resized = resize_table(stored[match[1]], (old, old), (new, new))
        torch.testing.assert_close(resized, stored[match[0]], atol=1e-4, rtol=0)


def test_pixel_shuffle(folder: Folder) -> None:
    """Its channels, read as the decoder's rows, are our patch vectors."""
    stored = folder.tensors("pixelshuffle.safetensors")
    (batch, rows, high, wide), side = stored["inp"].shape, stored["out"].shape[-1] // stored["inp"].shape[-1]
    columns: list[Tensor] = []
    for column in stored["inp"].permute(0, 2, 3, 1).reshape(-1, rows):
        columns += interop.from_official({"decoder.0.bias": column}, rows // side**2).values()
    patches = torch.stack(columns).view(batch, high * wide, rows)
    assert torch.equal(unpatchify(patches, (high, wide), (side, side)), stored["out"])


def classifier(folder: Folder, state: Entries) -> Beit:
    config = folder.config.part("vit")
    keys = ("patch_size", "depth", "mlp_ratio")
    network = Beit(
        img_size=config["image_size"], embed_dim=config["dim"], num_heads=config["heads"],
        num_classes=len(state["head.weight"]), use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1,
        **{key: config[key] for key in keys},
    )  # fmt: skip
    return with_eps(network.eval(), config["norm_eps"])


def test_the_classifier(folder: Folder) -> None:
    """timm's own BEiT with a table in every block, read through our backbone."""
    state, stored = folder.tensors("vit_finetune_state_dict.safetensors"), stored_of(folder, "vit_finetune")
    network = classifier(folder, state)
    network.load_state_dict({key: value for key, value in state.items() if not key.endswith(interop.BUFFERS)})
    tokens = BeitViT(network, interop.MEAN, interop.STD)(stored["images"]).tokens
    pooled = network.fc_norm(tokens.mean(1))
    activations(pooled, stored["pooled"])
    activations(network.head(pooled), stored["logits"])
    activations(network(stored["images"]), stored["logits"])


def test_what_fine_tuning_loads(folder: Folder) -> None:
    """The official remap: the shared table in every block, `norm` and the mask token left out, the rest as it is."""
    state = folder.tensors("vit_finetune_state_dict.safetensors")
    network = classifier(folder, state)
    taken = interop.classifier_state(folder.tensors("vit_state_dict.safetensors"), network)
    left = network.load_state_dict(taken, strict=False)
    assert {key.split(".")[0] for key in left.missing_keys} == {"fc_norm", "head"}
    assert not left.unexpected_keys
    assert all(torch.equal(tensor, state[key]) for key, tensor in taken.items())
