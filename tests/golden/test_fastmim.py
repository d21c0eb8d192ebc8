"""FastMIM against numbers that the official code computed, on ViT, Swin, PVTv2 and CMT: activations, loss, gradients.

Also its HOG. Losses and gradients agree to the rounding of fp32: HOG is taken of the normalised image as it is given.
"""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.backbones.swin import Swin
from remask.interop import fastmim as interop
from remask.interop.mae import MEAN, STD
from remask.method import Method
from remask.targets import Hog
from remask.views import Views
from tests.golden.vectors import Entries, File, Folder, some

SYSTEM = "fastmim"
FILES = {"io": "*_io.safetensors"}
LOSS, GRADIENT, COLOUR = 1e-6, 1e-5, 5e-5
"""Relative, gradients to a tensor's largest entry. Measured on four instruction sets are 3e-7, 3e-6, and 1.1e-5 for the
learned colour, whose three numbers are sums of terms of both signs over all hidden pixels."""
TORCH = 1e-5
OWN = {"vit": 1e-6, "swin": TORCH, "pvtv2": 1e-6, "cmt": 1e-6}
"""The ε of a network's blocks in the official code."""
NAME = re.compile(r"(?P<kind>[a-z0-9]+)_(?P<target>hog|pixel)_block(?P<block>\d+)_io")


def close(actual: Tensor, expected: Tensor, atol: float = 1e-4, rtol: float = 1e-4) -> None:
    """Maps with channels last are compared as rows of tokens."""
    rows = actual.flatten(1, -2) if actual.ndim > expected.ndim else actual
    torch.testing.assert_close(rows.detach(), expected, atol=atol, rtol=rtol)


def state_of(io: File) -> Entries:
    """The weights of a file's own name, or those that files of other blocks share with it."""
    own, shared = (re.sub(part, "_state_dict.safetensors", io.name) for part in (r"_io\..*", r"_block\d+_io\..*"))
    return io.folder.tensors(own if (io.folder.path / own).is_file() else shared)


def settings(io: File) -> tuple[re.Match[str], Entries]:
    match = NAME.fullmatch(io.stem)
    if match is None:
        pytest.skip(f"{io.name} names no network, target and block")
    return match, io.folder.config.part(match["kind"])


def ratio_of(io: File) -> float:
    ratios = io.folder.config["mask_ratio"]
    return float(ratios.get(io.stem.removesuffix("_io"), ratios["default"]))


def method_of(io: File) -> Method:
    """The stored pre-training weights as our method, loaded the way a user loads them."""
    (match, part), side = settings(io), io.folder.config["image_size"]
    method = interop.load(
        state_of(io),
        heads=part["heads"],
        decoder_heads=part.get("decoder", {}).get("heads"),
        size=(side, side),
        cell_pixels=int(match["block"]),
        target="hog" if match["target"] == "hog" else "pixels",
        ratio=ratio_of(io),
    )
    return with_epsilons_of(part, match["kind"], method).eval()


def with_epsilons_of(part: Entries, kind: str, method: Method) -> Method:
    """The same with the ε that settings state: of the blocks' norms, and of the decoder's, which a ViT's share.

    Other norms of a PVTv2 and a CMT, of patches and of reduced maps, have PyTorch's own in the official code.
    """
    stated = part.get("norm_eps", OWN[kind])
    decoder = part.get("decoder_norm_eps", stated if kind == "vit" else TORCH)
    for name, norm in method.named_modules():
        if isinstance(norm, nn.LayerNorm):
            norm.eps = decoder if name.startswith("branches.") else stated if norm.eps == OWN[kind] else norm.eps
    return method


def views_of(stored: Entries) -> Views:
    mask = stored["loss_mask"][:, 0].bool()
    return Views.of(mask.flatten(1)[None], (mask.shape[1], mask.shape[2]))


def place_of(name: str, method: Method) -> str:
    """Our name of an official module; a Swin's stages end with the merging of patches, in timm they begin with it."""
    (ours,) = interop.from_official({f"{name}.weight": torch.empty(0)})
    ours = ours.removesuffix(".weight")
    if isinstance(method.backbone, Swin) and (stage := re.fullmatch(r"(.*\.layers\.)(\d+)", ours)):
        number, last = int(stage[2]), len(method.backbone.depths) - 1
        return (
            f"{stage[1]}{number + 1}.downsample" if number < last else f"{ours}.blocks.{method.backbone.depths[-1] - 1}"
        )
    return ours


def run(method: Method, stored: Entries, names: dict[str, str]) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of our modules by official name, and the loss."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, given, output: seen.__setitem__(name, output)

    hooks = [method.get_submodule(place).register_forward_hook(keep(name)) for name, place in names.items()]
    loss = method(stored["images"], views_of(stored))["total"]
    for hook in hooks:
        hook.remove()
    return seen, loss


def predictions(method: Method, stored: Entries) -> tuple[Tensor, Tensor]:
    """Of every token, in official order; and the loss."""
    seen, loss = run(method, stored, {"norm": "branches.0.head.norm"})
    head: Any = method.branches[0].head
    ours = head.predict(seen["norm"])
    order = interop.rows(
        ours.shape[-1], method.cells_per_token, "hog" if isinstance(method.branches[0].target, Hog) else "pixels"
    )
    return ours[..., order.argsort()], loss


def test_sizes_are_read_from_the_weights(io: File) -> None:
    method, (match, part) = method_of(io), settings(io)
    network: Any = method.backbone.network
    head: Any = method.branches[0].head
    if match["kind"] == "vit":
        assert (method.backbone.width, method.backbone.depth) == (part["dim"], part["depth"])
    else:
        dims = part.get("dims") or [part["dim"] * 2**i for i in range(len(part["depths"]))]
        dims = part.get("pixel_variant_dims", dims) if match["target"] == "pixel" else dims
        stages = getattr(method.backbone, "depths", None) or getattr(network, "depths", None)
        assert [*stages] == part["depths"]
        assert method.backbone.width == dims[-1]
    assert head.width == (part.get("decoder") or {"dim": part.get("decoder_dim")})["dim"]
    assert min(method.mask_unit) == min(int(match["block"]), min(method.backbone.patch))


def test_the_stored_mask_is_that_of_the_noise(io: File) -> None:
    method, stored = method_of(io), io.tensors
    views, noise = views_of(stored), stored["noise"]
    assert method.grid(tuple(stored["images"].shape[-2:])) == views.grid
    assert method.masking.counts(views.grid).hidden == views.hidden
    assert torch.equal(views.pixels(method.mask_unit)[0].long().unsqueeze(1), stored["pixel_mask"])
    cells = views.grid[0] // method.masking.cell, views.grid[1] // method.masking.cell
    hidden = noise.argsort(1).argsort(1) >= int(noise.shape[1] * (1 - ratio_of(io)))
    hidden = hidden.unflatten(1, cells).repeat_interleave(method.masking.cell, 1)
    assert torch.equal(hidden.repeat_interleave(method.masking.cell, 2).flatten(1), views.mask[0])


def test_activations(io: File) -> None:
    method, stored = method_of(io), io.tensors
    expected = stored.below("act.")
    stems = {name for name in expected if name.endswith("patch_embed")}  # ours embeds by a matrix product, without them
    seen, _ = run(method, stored, {name: place_of(name, method) for name in expected if name not in stems})
    hidden = method.sees.hide(method.backbone, stored["images"], views_of(stored))
    network: Any = method.backbone.network
    for name, value in expected.items():
        actual = network.patch_embed(hidden) if name in stems else seen[name]
        # official: the decoder's norm takes the class token too
        close(actual, value[:, -actual.shape[1] :] if name == "decoder_norm" else value)


def test_predictions_and_loss(io: File) -> None:
    method, stored = method_of(io), io.tensors
    predicted, loss = predictions(method, stored)
    close(predicted, stored["pred"])
    close(loss, stored["loss"], atol=0, rtol=LOSS)


def test_named_gradients(io: File) -> None:
    method, stored = method_of(io), io.tensors
    method(stored["images"], views_of(stored))["total"].backward()
    actual = dict(method.named_parameters())
    target = "hog" if isinstance(method.branches[0].target, Hog) else "pixels"
    for name, gradient in interop.from_official(stored.below("grad."), method.cells_per_token, target).items():
        share = COLOUR if name == interop.MASK_PIXEL else GRADIENT
        close(actual[name].grad, gradient, atol=share * float(gradient.abs().max()), rtol=0)


def test_training_mode(io: File) -> None:
    """Where there is BatchNorm."""
    expected = io.tensors.below("train_mode.")
    predicted, loss = predictions(method_of(io).train(), io.tensors)
    close(predicted, expected["pred"])
    close(loss, expected["loss"], atol=0, rtol=LOSS)


def test_the_way_back_is_bit_equal(io: File) -> None:
    stored, back = state_of(io), interop.to_official(method_of(io))
    assert back.keys() == stored.keys()
    assert all(torch.equal(back[key], stored[key]) for key in stored)


def cells_of(hog: Hog, images: Tensor) -> Tensor:
    """[B, C · bins, h, w], as official code lays them out."""
    return hog(images).mT.unflatten(2, (images.shape[-2] // hog.cell, images.shape[-1] // hog.cell))


def sides(stored: Entries, pattern: str) -> list[str]:
    """The sizes of images that names state."""
    return some((found[1] for key in stored if (found := re.fullmatch(pattern, key))), pattern)


def hog_of(patch: int = 8) -> Hog:
    return Hog((patch, patch), MEAN, STD, "sobel", norm="l2")


def test_hog_of_noise(folder: Folder) -> None:
    stored = folder.tensors("hog.safetensors")
    for side in sides(stored, r"random(\d+)_hog_l2"):
        same(cells_of(hog_of(), stored[f"random{side}_images"]), stored[f"random{side}_hog_l2"])


def test_hog_of_the_images_of_the_networks(folder: Folder) -> None:
    """Scaled to pixel values, and in the scale of the normalised image as official code has it."""
    first = some(sorted(folder.path.glob("*_io.safetensors")), "images")[0].name
    images, stored = folder.tensors(first)["images"], folder.tensors("hog.safetensors")
    (side,) = sides(stored, r"model_images(\d+)_hog_l2")
    expected = stored[f"model_images{side}_hog_l2"]
    same(cells_of(hog_of(), images), expected)
    same(F.normalize(hog_of().histogram(images), dim=2).flatten(1, 2), expected)


def same(actual: Tensor, expected: Tensor) -> None:
    """To the rounding of fp32: no gradient, of 0 neither, falls into another bin."""
    close(actual, expected, atol=1e-6 * max(1.0, float(expected.abs().max())), rtol=0)


def test_hog_of_real_pictures(folder: Folder) -> None:
    stored, hog = folder.tensors("hog.safetensors"), hog_of()
    same(cells_of(hog, stored["images"]), stored["hog_l2"])
    same(hog.histogram(stored["images"]).flatten(1, 2), stored["hog_raw"])


def test_hog_in_tokens(folder: Folder) -> None:
    stored = folder.tensors("hog.safetensors")
    for key in some((key for key in stored if re.fullmatch(r"patch\d+_targets", key)), "tokens"):
        patch = int(key.removeprefix("patch").removesuffix("_targets"))
        same(hog_of(patch)(stored["images"]), stored[key])
