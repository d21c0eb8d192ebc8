"""DMAE against numbers that the official code computed: features of both networks, projections, losses, gradients.

Every size comes from the folder's config.json. The official code keeps visible tokens in the order of the noise, ours
in raster order; a mean over them is the same.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.backbones.vit import create_vit
from remask.interop import dmae as interop
from remask.interop import mae
from remask.masking import Masking
from remask.method import Method
from remask.methods import dmae
from remask.targets import Pixels, TokenTeacher
from remask.tokens import take
from remask.types import Features
from remask.views import Views
from tests.golden.replacing import with_eps_of
from tests.golden.vectors import Entries, Folder, activations, gradients, losses, some

SYSTEM = "dmae"
STATE = "student_state_dict.safetensors"
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "variant_L2": {"distance": "squared", "per_patch": True},
    "variant_mlp1": {
        "state": "student_mlp1_state_dict.safetensors", "part": "variant_mlp1", "head": "mlp",
    },
}  # fmt: skip
"""How the names of a variant's tensors begin, and what it is; the rest of the name says sizes."""


def teachers_of(folder: Folder, blocks: list[int]) -> list[TokenTeacher]:
    config = folder.config.part("teacher")
    state = folder.tensors("teacher_state_dict.safetensors")
    network, patch = mae.load_backbone(state, heads=config["heads"]), (config["patch_size"],) * 2
    with_eps_of({**folder.config, **config}, network)
    shared = {"sees": "view", "norm": "none", "name": "the official teacher"}
    return [TokenTeacher(network, patch, mae.MEAN, mae.STD, layer=block, **shared) for block in blocks]  # type: ignore[arg-type]


def method_of(
    folder: Folder, *, state: str = STATE, part: str | None = None, per_patch: bool = False, **options: Any
) -> Method:
    """The stored student and teacher as our method, its weights loaded strictly."""
    student, decoder = folder.config.part("student"), folder.config.part("decoder")
    setting = folder.config.part(part) if part else folder.config
    size, patch = (student["image_size"],) * 2, (student["patch_size"],) * 2
    sizes = {"patch_size": patch[0], "embed_dim": student["dim"], "depth": student["depth"]}
    sizes |= {"num_heads": student["heads"], "mlp_ratio": student["mlp_ratio"]}
    backbone = create_vit("vit_base_patch16_224", size, mae.MEAN, mae.STD, overrides=sizes)
    hidden, width = folder.tensors(state)["decoder_blocks.0.mlp.fc1.weight"].shape
    method = dmae(
        backbone, Masking(float(setting["mask_ratio"])), Pixels(patch, mae.MEAN, mae.STD, per_patch),
        teachers_of(folder, [theirs for _, theirs in setting["aligned"]]), size, [own for own, _ in setting["aligned"]],
        width=decoder["dim"], depth=decoder["depth"], heads=decoder["heads"],
        mlp_ratio=hidden / width, **options,
    )  # fmt: skip
    method.load_state_dict(interop.from_official(folder.tensors(state)))
    return with_eps_of({**folder.config, **student}, method)


def views_of(method: Method, images: Tensor, ids_keep: Tensor) -> Views:
    grid = method.grid((images.shape[-2], images.shape[-1]))
    mask = torch.ones(len(images), grid[0] * grid[1], dtype=torch.bool).scatter(1, ids_keep, False)
    return Views.of(mask[None], grid)


def stored_of(folder: Folder) -> Entries:
    return folder.tensors("io.safetensors")


def prefix_of(stored: Entries, variant: str) -> str:
    """All of a variant's name, up to the tensor's own."""
    matches = (re.match(rf"{variant}.*?\.(?=ids_keep|loss_)", key) for key in stored) if variant else ()
    return next((match[0] for match in matches if match), f"{variant}." if variant else "")


def case(folder: Folder, variant: str = "") -> tuple[Method, Entries, Views]:
    """A variant, and its numbers; what it does not store is that of the plain one."""
    method, stored = method_of(folder, **VARIANTS[variant]), stored_of(folder)
    own = prefix_of(stored, variant) + "ids_keep"
    return method, stored, views_of(method, stored["images"], stored[own if own in stored else "ids_keep"])


def in_raster_order(rows: Tensor, ids_keep: Tensor) -> Tensor:
    """The class token, and the others where ours stand."""
    return torch.cat([rows[:, :1], take(rows[:, 1:], ids_keep.argsort(dim=1))], dim=1)


def test_masks_follow_from_the_noise(folder: Folder) -> None:
    method, stored, views = case(folder)
    noise = stored["noise"]
    ours = Masking(method.masking.ratio, lambda *_: -noise)(len(noise), views.grid)  # they keep the lowest
    assert torch.equal(ours.mask, views.mask)
    torch.testing.assert_close(ours.mask[0], stored["mask"].bool())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_ratio_leaves_as_many_tokens(folder: Folder, variant: str) -> None:
    method, _, views = case(folder, variant)
    assert method.masking.counts(views.grid).hidden == views.hidden


def test_features_of_the_teacher(folder: Folder) -> None:
    method, stored, views = case(folder)
    target = method.branches[1].target
    expected = in_raster_order(stored["teacher_feature_aligned"], stored["ids_keep"])
    activations(target(stored["images"], views), expected)
    network = target.network.networks[0]  # type: ignore[attr-defined]
    latent = network.encode(network.embed(stored["images"]), views)[-1]
    activations(torch.cat(latent, dim=1), in_raster_order(stored["teacher_latent_normed"], stored["ids_keep"]))


def test_features_of_the_student(folder: Folder) -> None:
    method, stored, views = case(folder)
    align = method.branches[1]
    features: dict[int, Features] = method.encode(stored["images"], views, (align.layer, -1))
    for layer, name in ((align.layer, "student_feature_aligned"), (-1, "student_latent_normed")):
        activations(torch.cat(features[layer], dim=1), in_raster_order(stored[name], stored["ids_keep"]))
    projected, _ = method.pairs(stored["images"], views)[align.name]
    activations(projected, in_raster_order(stored["student_projected"], stored["ids_keep"]))


def test_predictions(folder: Folder) -> None:
    method, stored, views = case(folder)
    prediction, _ = method.pairs(stored["images"], views)["masked"]
    activations(prediction, take(stored["pred"], views.masked))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stored_loss(folder: Folder, variant: str) -> None:
    method, stored, views = case(folder, variant)
    found = method(stored["images"], views)
    names = {"reconstruction": "masked", "total": "total", "align": "align"}
    names |= {f"align_block{b.layer}": b.name for b in method.branches[1:]}
    expected = stored.below(prefix_of(stored, variant) + "loss_")
    assert len(expected) > 1
    for name, loss in expected.items():
        losses(found[names[name]], loss)


def test_named_gradients(folder: Folder) -> None:
    method, stored, views = case(folder)
    method(stored["images"], views)["total"].backward()
    actual = dict(method.named_parameters())
    for name, gradient in interop.from_official(stored.below("grad.")).items():
        gradients(actual[name].grad, gradient)


def test_the_state_is_all_of_it_and_no_teacher(folder: Folder) -> None:
    for variant in VARIANTS.values():
        name = variant.get("state", STATE)
        state = folder.tensors(name)
        assert len(some((key for key in state if re.match(r"aligned_feature_projection_heads\.", key)), "heads")) >= 2
        back = interop.to_official(method_of(folder, **variant))
        assert back.keys() == state.keys()
        assert all(torch.equal(back[key], state[key]) for key in state)
