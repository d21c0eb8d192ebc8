"""MAE's pre-training against numbers that the official code computed: masks, activations, losses, gradients, steps.

Every size comes from the folder's config.json; the official code keeps visible tokens in the order of the noise, ours
in raster order.
"""

import math
import re

import pytest
import timm
import torch
from torch import Tensor, nn

from remask.backbones.vit import create_vit
from remask.errors import UserError
from remask.interop import mae as interop
from remask.masking import Masking
from remask.method import Method
from remask.methods import mae
from remask.targets import Pixels
from remask.tokens import patchify, sincos_positions, take, unpatchify
from remask.training.optim import adamw, parameter_groups
from remask.views import Views
from tests.golden.vectors import Entries, File, Folder, activations, gradients, losses, norms, some, trajectory

SYSTEM = "mae"
FILES = {
    "forward": "forward_*.safetensors",
    "train": "train*.safetensors",
}
EPS = 1e-6  # the official models'; ours is left as it is unless the vectors were made with another
NORMALISED = {"pix": False, "normpix": True}


def official_state(folder: Folder) -> Entries:
    return folder.tensors("state_dict.safetensors")


def method_of(folder: Folder, ratio: float = 0.75, per_patch: bool = True) -> Method:
    """The stored pre-training weights as our method, loaded the way a user loads them."""
    config = folder.config
    heads, decoder_heads = config.part("encoder")["heads"], config.part("decoder")["heads"]
    method = interop.load(
        official_state(folder), heads=heads, decoder_heads=decoder_heads, ratio=ratio, per_patch=per_patch
    )
    if config["norm_eps"] != EPS:
        for module in (module for module in method.modules() if isinstance(module, nn.LayerNorm)):
            module.eps = config["norm_eps"]
    return method


def views_from(method: Method, noise: Tensor) -> Views:
    """Our views from stored noise: official code keeps the lowest, ours hides the lowest."""
    grid = method.backbone.built_for
    return Masking(method.masking.ratio, lambda *_: -noise)(len(noise), grid)


def forward_method(forward: File, per_patch: bool = True) -> tuple[Method, Views]:
    ratio = forward.folder.config.part("forward").part(forward.stem)["mask_ratio"]
    method = method_of(forward.folder, float(ratio), per_patch)
    return method, views_from(method, forward.tensors["noise"])


def official_names(folder: Folder) -> dict[str, str]:
    """Our name -> official name."""
    return {next(iter(interop.from_official({key: value}))): key for key, value in official_state(folder).items()}


def gradients_of(method: Method, folder: Folder) -> dict[str, Tensor]:
    names = official_names(folder)
    return {names[name]: p.grad for name, p in method.named_parameters() if p.grad is not None}


def patch_of(folder: Folder) -> tuple[int, int]:
    return (folder.config.part("encoder")["patch_size"],) * 2


def test_masks_follow_from_the_noise(forward: File) -> None:
    method, views = forward_method(forward)
    stored = forward.tensors
    torch.testing.assert_close(views.mask[0], stored["mask"].bool())
    torch.testing.assert_close(views.visible, stored["ids_keep"].sort(dim=1).values)
    counts = method.masking.counts(views.grid)
    assert counts.hidden == views.hidden == int(stored["mask"][0].sum())
    assert counts.tokens - counts.hidden == stored["ids_keep"].shape[1]


def test_patch_embedding(forward: File) -> None:
    method, _ = forward_method(forward)
    backbone, stored = method.backbone, forward.tensors
    activations(backbone._project(backbone.embed(stored["imgs"]).pixels), stored["patch_embed_out"])


def test_latent(forward: File) -> None:
    method, views = forward_method(forward)
    stored = forward.tensors
    features = method.backbone.encode(method.backbone.embed(stored["imgs"]), views)[-1]
    activations(features.prefix, stored["latent"][:, :1])
    activations(features.tokens, take(stored["latent"][:, 1:], stored["ids_keep"].argsort(dim=1)))


def test_predictions(forward: File) -> None:
    method, views = forward_method(forward)
    prediction, _ = method.pairs(forward.tensors["imgs"], views)["masked"]
    activations(prediction, take(forward.tensors["pred"], views.masked))


def test_patchify(forward: File) -> None:
    stored = forward.tensors
    torch.testing.assert_close(patchify(stored["imgs"], patch_of(forward.folder)), stored["patchify_target"])


def test_unpatchify(forward: File) -> None:
    stored, patch = forward.tensors, patch_of(forward.folder)
    side = math.isqrt(stored["pred"].shape[1])
    torch.testing.assert_close(unpatchify(stored["pred"], (side, side), patch), stored["unpatchify_pred"])


def test_normalised_pixel_target(forward: File) -> None:
    target = Pixels(patch_of(forward.folder), interop.MEAN, interop.STD, per_patch=True)
    activations(target(forward.tensors["imgs"]), forward.tensors["target_normpix"])


@pytest.mark.parametrize("kind", NORMALISED)
def test_loss(forward: File, kind: str) -> None:
    method, views = forward_method(forward, NORMALISED[kind])
    loss = method(forward.tensors["imgs"], views=views)
    losses(loss["total"], forward.tensors[f"loss_{kind}"])
    assert loss["masked"] == loss["total"]


@pytest.mark.parametrize("kind", NORMALISED)
def test_named_gradients(forward: File, kind: str) -> None:
    expected = forward.tensors.below(f"grad_{kind}.")
    method, views = forward_method(forward, NORMALISED[kind])
    method(forward.tensors["imgs"], views=views)["total"].backward()
    actual = gradients_of(method, forward.folder)
    for name, gradient in expected.items():
        gradients(actual[name], gradient)


@pytest.mark.parametrize("kind", NORMALISED)
def test_every_gradient_norm(forward: File, kind: str) -> None:
    expected = forward.folder.json(forward.stem.replace("forward", "gradnorms") + ".json")[f"loss_{kind}"]
    method, views = forward_method(forward, NORMALISED[kind])
    method(forward.tensors["imgs"], views=views)["total"].backward()
    norms({name: float(grad.norm()) for name, grad in gradients_of(method, forward.folder).items()}, expected)


def test_three_steps(train: File) -> None:
    config, stored = train.folder.config.part(train.stem), train.tensors
    method = method_of(train.folder, float(config["mask_ratio"]), config["norm_pix"])
    groups = parameter_groups(method.named_parameters(), float(config["weight_decay"]))
    optimizer = adamw(groups, float(config["lr"]), tuple(config["betas"]))
    found = []
    for step, noise in enumerate(stored["noise"]):
        loss = method(stored["imgs"], views=views_from(method, noise))["total"]
        found.append(loss.detach())
        if step + 1 < len(stored["noise"]):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trajectory(torch.stack(found), stored["losses"])
    after = interop.to_official(method)
    for name, parameter in stored.below("final.").items():
        trajectory(after[name], parameter)


def test_pretraining_groups(folder: Folder) -> None:
    stored, names = folder.json("pretrain_param_groups.json"), official_names(folder)
    decay = max(float(group["weight_decay"]) for group in stored["groups"])
    groups = parameter_groups(method_of(folder).named_parameters(), decay)
    actual = {group["weight_decay"]: sorted(names[name] for name in group["names"]) for group in groups}
    assert actual == {group["weight_decay"]: sorted(group["params"]) for group in stored["groups"]}
    assert {"cls_token", "mask_token"} <= set(actual[decay])


def test_the_way_back_is_bit_equal(folder: Folder) -> None:
    stored, back = official_state(folder), interop.to_official(method_of(folder))
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)


def test_encoder_alone(folder: Folder) -> None:
    """The published files hold no decoder."""
    stored, heads = official_state(folder), folder.config.part("encoder")["heads"]
    encoder = {key: value for key, value in stored.items() if key.startswith(interop.ENCODER)}
    network = interop.load_backbone({"model": encoder}, heads=heads).network
    assert all(torch.equal(value, encoder[key]) for key, value in network.state_dict().items())
    with pytest.raises(UserError, match="no decoder"):
        interop.load(encoder, heads=heads, decoder_heads=heads)


def test_stored_tables_are_ours(folder: Folder) -> None:
    stored = official_state(folder)
    side = math.isqrt(stored["pos_embed"].shape[1])
    for name in ("pos_embed", "decoder_pos_embed"):
        table = sincos_positions((side, side), stored[name].shape[2], prefix=1)
        torch.testing.assert_close(table[None], stored[name], atol=1e-6, rtol=0)


def test_position_tables(folder: Folder) -> None:
    stored = folder.tensors("pos_embed.safetensors")
    shape = re.compile(r"grid(\d+)_dim(\d+)(_cls)?(?:_rows_([\d_]+?)_(?:cols(\d+)_(\d+)|first(\d+)))?")
    for name in some(stored, "position tables"):
        found = shape.fullmatch(name)
        assert found, name
        grid, width, cls, rows, start, end, first = found.groups()
        table = sincos_positions((int(grid), int(grid)), int(width), prefix=int(bool(cls)))
        if rows:
            table = table[[int(row) for row in rows.split("_")], int(start or 0) : int(end or first)]
        torch.testing.assert_close(table, stored[name], atol=1e-6, rtol=0)


def test_position_checksums(folder: Folder) -> None:
    for name, stored in folder.json("pos_embed_checksums.json").items():
        grid, width = map(int, re.match(r"grid(\d+)_dim(\d+)", name).groups())
        table = sincos_positions((grid, grid), width, prefix=int(name.endswith("_cls"))).double()
        assert [*table.shape] == stored["shape"]
        columns = torch.arange(width, dtype=torch.float64) / width
        sums = {"sum": table.sum(), "abs_sum": table.abs().sum(), "sq_sum": table.square().sum()}
        weighted = {key: (table @ columns).sum() for key in stored if key.startswith("weighted_sum")}
        for key, value in {**sums, **weighted}.items():
            assert float(value) == pytest.approx(stored[key], rel=1e-7), key


def test_parameter_counts(folder: Folder) -> None:
    for name, count in some(folder.json("meta.json")["param_counts"].items(), "parameter counts"):
        pretraining, size, patch, classes = re.fullmatch(
            r"(mae_)?vit_(\w+)_patch(\d+)(?:_gap_(\d+)cls)?", name
        ).groups()
        timm_name = f"vit_{size}_patch{patch}_224"
        with torch.device("meta"):
            if pretraining:
                assert pretraining_counts(timm_name) == count, name
            else:
                network = timm.create_model(timm_name, num_classes=int(classes), global_pool="avg")
                assert sum(p.numel() for p in network.parameters()) == count, name


def pretraining_counts(timm_name: str) -> dict[str, int]:
    """A full-size model as recipes build it; `all` counts both stored tables, as the official state holds them."""
    backbone = create_vit(timm_name, (224, 224), interop.MEAN, interop.STD)
    method = mae(backbone, Masking(0.75), Pixels(backbone.patch, interop.MEAN, interop.STD), (224, 224))
    return {
        "all": sum(tensor.numel() for tensor in interop.to_official(method).values()),
        "trainable": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "encoder": sum(p.numel() for p in backbone.network.parameters()),
    }
