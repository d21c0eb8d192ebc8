"""backbones/checkpointing.py and runtime.checkpointing: the same losses and gradients, and less that is kept."""

from typing import Any

import pytest
import torch
from torch import Tensor

from remask.backbones.checkpointing import set_checkpointing
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.makers import creator_of
from remask.build.pretraining import build_method, checkpoint_blocks
from remask.downstream.segment.segmenter import PixelLabels, Segmenter
from remask.errors import UserError
from remask.method import Method
from remask.recipe import Recipe, choose
from remask.seeds import generator, seeded

RECIPES: dict[str, dict[str, Any]] = {
    "dmjd-vit-micro-cifar": {},
    "beit-vit-micro-cifar": {},
    "simmim-swin-b": {"data.image_size": (32, 32), "backbone.name": "swin_micro"},
    "convmae-convit-micro-cifar": {},
    "fastmim-vit-micro": {},
    "fastmim-pvtv2-b2": {"data.image_size": (64, 64), "backbone.name": "pvt_v2_b0"},
    "fastmim-swin-b": {"data.image_size": (64, 64), "backbone.name": "swin_tiny_patch4_window7_224"},
}


def recipe(name: str) -> Recipe:
    decoder = {} if name.startswith(("beit", "simmim")) else {"method.decoder_depth": 3}
    changed = {"backbone.drop_path": 0.3, **decoder, **RECIPES[name]}
    return choose(name, changed)


def learned(method: Method, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Losses, gradients and bytes kept for the backward pass, of a step whose random draws are always the same."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    method.train()
    views = method.draw(images, generator(0, "draw"))
    own = {p.untyped_storage().data_ptr() for p in method.parameters()}
    with seeded(0, "step"):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = method(images, views)
        held = sum(tensor.untyped_storage().nbytes() for where, tensor in kept.items() if where not in own)
        kept.clear()
        losses["total"].backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    method.zero_grad(set_to_none=True)
    return losses, gradients, held


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_is_the_same_and_keeps_less(name: str) -> None:
    chosen = recipe(name)
    method = build_method(chosen)
    images = torch.randint(0, 256, (4, 3, *chosen.data.image_size), dtype=torch.uint8, generator=generator(1))
    plain, slopes, kept = learned(method, images)
    checkpoint_blocks(method)
    again, same, less = learned(method, images)
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    assert slopes.keys() == same.keys()
    assert all(torch.allclose(slopes[key], same[key], rtol=1e-5, atol=1e-7) for key in slopes)
    assert less < 0.65 * kept, f"{less} of {kept} bytes"


def test_drop_path_draws_matter_here() -> None:
    """Else the test above would not notice that a recomputed block draws anew."""
    method = build_method(recipe("dmjd-vit-micro-cifar")).train()
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator(1))
    views, found = method.draw(images, generator(0)), []
    for seed in (0, 1):
        with seeded(seed, "step"):
            found.append(method(images, views)["total"])
    assert not torch.equal(*found)


def test_a_decoder_is_checkpointed_too() -> None:
    """A decoder of three blocks keeps less when only the decoder is asked to."""
    chosen = recipe("dmjd-vit-micro-cifar")
    method = build_method(chosen)
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    _, _, kept = learned(method, images)
    method.branches[0].head.checkpointing = True  # type: ignore[attr-defined]
    assert learned(method, images)[2] < 0.8 * kept


@pytest.mark.parametrize("name", ["vit_micro", "beit_micro", "convvit_micro", "swin_micro"])
@pytest.mark.parametrize("head", ["upernet", "linear"])
def test_a_segmenter_of_a_network_with_drop_path(name: str, head: str) -> None:
    """It is tried out on an empty image to see its maps, and its blocks are computed again there too; it then learns
    the same with and without."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator(1))
    masks = torch.randint(0, 3, (2, 32, 32), dtype=torch.uint8, generator=generator(2))
    found = []
    for checkpointing in (False, True):
        with seeded(0, "weights"):
            backbone: Any = creator_of(name)(name, (32, 32), [0.5] * 3, [0.5] * 3, drop_path=0.5, overrides={})
            set_checkpointing(backbone, checkpointing)
            segmenter = Segmenter(backbone, 3, head=head, width=16, aux=0.4, norm="group").train()  # type: ignore[arg-type]
        assert all(module.training for module in segmenter.modules())
        with seeded(0, "step"):
            loss = segmenter(images, PixelLabels(masks.long()))["total"]
            loss.backward()
        found.append((loss, {key: p.grad for key, p in segmenter.named_parameters() if p.grad is not None}))
    (plain, slopes), (again, same) = found
    assert torch.equal(plain, again)
    assert slopes.keys() == same.keys()
    assert any(key.startswith("backbone.") for key in slopes)
    assert all(torch.allclose(slopes[key], same[key], rtol=1e-5, atol=1e-6) for key in slopes)


@pytest.mark.parametrize("name", ["cmt_micro", "resnet18"])
def test_networks_that_cannot(name: str) -> None:
    """A recomputed BatchNorm would count the batch twice."""
    chosen = choose("fastmim-vit-micro", {"backbone.name": name, "data.image_size": (64, 64)})
    method = build_method(chosen)
    assert type(method.backbone) is type(create_hierarchical(name, (64, 64), [0.5] * 3, [0.5] * 3))
    with pytest.raises(UserError, match=r"has no gradient checkpointing.* set runtime.checkpointing to false"):
        checkpoint_blocks(method)
