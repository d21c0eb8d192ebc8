"""DMJD's branches and losses against the official code, on stored latents: the official backbone is ConViT.

The released code pairs visible predictions with other tokens' targets; ours are aligned (docs/decisions/0001), and
both values are checked.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from remask.backbones.normalise import Normalise
from remask.distances import smooth_l1, smooth_l1_with, squared
from remask.heads import Projector
from remask.interop import dmjd as interop
from remask.masking import Masking
from remask.method import Branch, Method
from remask.methods import jd
from remask.tokens import take
from remask.training.optim import learning_rate, parameter_groups
from remask.types import Features, Grid
from remask.views import Views
from tests.golden.replacing import with_eps
from tests.golden.vectors import Entries, File, Folder, activations, gradients, losses, norms, some

SYSTEM = "dmjd"
FILES = {"forward": "jd_*.safetensors", "table": "smooth_l1_*.safetensors"}


def test_smooth_l1(table: File) -> None:
    stored, beta = table.tensors, float(table.folder.config["smooth_l1_beta"])
    actual = smooth_l1(stored["diff"][:, None], torch.zeros(len(stored["diff"]), 1), beta)
    torch.testing.assert_close(actual, stored["value"], atol=1e-6, rtol=0)


class Given(nn.Module):
    """A head that returns stored predictions of every token, for the rows of its region."""

    def __init__(self, everything: Tensor, region: str) -> None:
        super().__init__()
        self.everything, self.region = nn.Parameter(everything.clone()), region

    def forward(self, features: Features, views: Views) -> Tensor:
        return take(self.everything, views.ids(self.region))


class Latents(nn.Module):
    """A backbone that returns stored latents of the visible tokens, in raster order."""

    modes = ("drop",)

    def __init__(self, latent: Tensor, grid: Grid) -> None:
        super().__init__()
        self.latent, self.width, self.side = latent, latent.shape[-1], grid
        self.normalise = Normalise([0.5], [0.25])  # asked about the images alone, which no target here looks at

    def grid(self, size: tuple[int, int]) -> Grid:
        return self.side

    def embed(self, images: Tensor) -> Tensor:
        return images

    def encode(self, stem: Tensor, views: Views, fill: None = None, layers: tuple[int, ...] = (-1,)) -> dict:
        return {-1: Features(self.latent.new_zeros(len(self.latent), 0, self.width), self.latent)}


class StoredTarget(nn.Module):
    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target, self.width = target, target.shape[-1]

    def forward(self, images: Tensor, views: Views) -> Tensor:
        return self.target


def distance_of(name: str, folder: Folder):
    return squared if name == "l2" else smooth_l1_with(float(folder.config["smooth_l1_beta"]))


def grid_of(mask: Tensor) -> Grid:
    return (math.isqrt(mask.shape[1]),) * 2


def views_in(forward: File) -> Views:
    mask = forward.tensors["mask"]
    return interop.views_of(mask, grid_of(mask), views=len(mask) // len(forward.tensors["noise"]))


def in_raster_order(tokens: Tensor, forward: File) -> Tensor:
    return take(tokens, forward.tensors["ids_keep"].argsort(dim=1))


def state_of(folder: Folder, *needed: str) -> Entries:
    state = folder.tensors("state_dict.safetensors")
    for key in needed:
        state[key]  # skips the test where it is absent
    return state


def projector_of(folder: Folder) -> Projector:
    head = interop.projector(state_of(folder, "proj_embed.0.weight", "predictor.0.weight"))
    return with_eps(head, folder.config["norm_eps"])


def target_of(folder: Folder) -> Tensor:
    return folder.tensors("inputs.safetensors")["target"]


def joint(forward: File, masked: str = "l2", visible: str = "smooth_l1") -> Method:
    """Stored latents, a masked branch that returns the stored `pred`, and `jd` on it with the official weights."""
    folder, stored = forward.folder, forward.tensors
    target, projector = StoredTarget(target_of(folder)), projector_of(folder)
    first = Branch("masked", Given(stored["pred"], "masked"), target, distance_of(masked, folder), "masked")
    backbone = Latents(in_raster_order(stored["latent"], forward), grid_of(stored["mask"]))
    masking = Masking(float(folder.config.part(forward.stem)["mask_ratio"]))
    beta = float(folder.config["smooth_l1_beta"])
    method = jd(Method(backbone, masking, [first]), target, projector.width, beta)
    method.branches[1].head.load_state_dict(projector.state_dict())
    with_eps(method.branches[1].head, folder.config["norm_eps"])
    if visible == "l2":
        method.branches[1].distance = squared
    return method


def losses_of(method: Method, forward: File, aligned: bool) -> dict[str, Tensor]:
    """Our losses; unless `aligned`, the visible one with the official pairs instead."""
    views, images = views_in(forward), torch.zeros(1, 3, 8, 8)
    if aligned:
        return method(images, views=views)
    pairs, (_, branch) = method.pairs(images, views), method.branches
    official = interop.official_visible_pairs(
        pairs["visible"][0], target_of(forward.folder), views, forward.tensors["ids_keep"]
    )
    found = {
        "visible": branch.distance(*official).mean(),
        "masked": method.branches[0].distance(*pairs["masked"]).mean(),
    }
    return {**found, "total": found["visible"] + found["masked"]}


def test_projector(forward: File) -> None:
    head = projector_of(forward.folder)
    activations(head.project(forward.tensors["latent"]), forward.tensors["projector_out"])


def test_predictor(forward: File) -> None:
    features = Features(torch.zeros(len(forward.tensors["latent"]), 0, 1), forward.tensors["latent"])
    head, views = projector_of(forward.folder), views_in(forward)
    activations(head(features, views), forward.tensors["pred_vis"])
    raster = Features(features.prefix, in_raster_order(features.tokens, forward))
    activations(head(raster, views), in_raster_order(forward.tensors["pred_vis"], forward))


def test_masked_prediction_branch(forward: File) -> None:
    """The official decoder on the stored latents; its MLP ratio is that of the first stage, read from its shapes."""
    stored, views = forward.tensors, views_in(forward)
    state, heads = state_of(forward.folder, "decoder_embed.weight"), forward.folder.config.part("decoder")["heads"]
    latent = in_raster_order(stored["latent"], forward)
    features = Features(latent.new_zeros(len(latent), 0, latent.shape[-1]), latent)
    decoder = with_eps(interop.decoder(state, heads=heads, grid=views.grid), forward.folder.config["norm_eps"])
    activations(decoder(features, views), take(stored["pred"], views.masked))


@pytest.mark.parametrize("distance", ["l2", "smooth_l1"])
def test_masked_loss(forward: File, distance: str) -> None:
    losses(losses_of(joint(forward, masked=distance), forward, True)["masked"], forward.tensors[f"loss_mim_{distance}"])


@pytest.mark.parametrize("distance", ["l2", "smooth_l1"])
def test_visible_loss_is_aligned(forward: File, distance: str) -> None:
    stored, method = forward.tensors, joint(forward, visible=distance)
    aligned = losses_of(method, forward, aligned=True)["visible"]
    losses(aligned, stored[f"loss_vis_{distance}_ALIGNED_not_official"])


@pytest.mark.parametrize("distance", ["l2", "smooth_l1"])
def test_official_visible_loss_with_the_compatibility_switch(forward: File, distance: str) -> None:
    official = losses_of(joint(forward, visible=distance), forward, aligned=False)["visible"]
    losses(official, forward.tensors[f"loss_vis_{distance}_official_raster_target"])


@pytest.mark.parametrize("masked", ["l2", "smooth_l1"])
@pytest.mark.parametrize("visible", ["l2", "smooth_l1"])
def test_totals(forward: File, masked: str, visible: str) -> None:
    stored, method = forward.tensors, joint(forward, masked, visible)
    losses(losses_of(method, forward, False)["total"], stored[f"loss_total_mim-{masked}_vis-{visible}"])
    ours = stored[f"loss_mim_{masked}"] + stored[f"loss_vis_{visible}_ALIGNED_not_official"]
    losses(losses_of(method, forward, True)["total"], ours)


def perfect(forward: File) -> tuple[Views, Tensor, Tensor]:
    views, target = views_in(forward), target_of(forward.folder)
    return views, target, views.repeat(target)


def test_perfect_predictions_cost_nothing(forward: File) -> None:
    """Eq. (5): every visible token that predicts its own target exactly leaves a loss of 0; as do masked ones."""
    views, target, everything = perfect(forward)
    for region in ("visible", "masked"):
        branch = Branch(region, Given(everything, region), StoredTarget(target), squared, region)
        prediction, aligned = branch(Features(everything[:, :0], everything), target, views)
        assert squared(prediction, aligned).mean() == 0


def test_the_official_loss_punishes_perfect_predictions(forward: File) -> None:
    views, target, everything = perfect(forward)
    predictions, keep = take(everything, views.visible), forward.tensors["ids_keep"]
    official = squared(*interop.official_visible_pairs(predictions, target, views, keep)).mean()
    meta, kind = forward.folder.json("meta.json").part("jd"), forward.stem.removeprefix("jd_")
    losses(official, torch.tensor(meta[f"{kind}_official_loss_if_each_token_predicts_its_own_target_exactly(l2)"]))
    assert official > 1e-2


def official_gradients(forward: File) -> dict[str, Tensor]:
    """Gradients of the official total with respect to the visible branch, under official names."""
    method = joint(forward)
    losses_of(method, forward, aligned=False)["total"].backward()
    masked, visible = method.branches
    names = interop.to_official(visible.head)
    found = {name: p.grad for name, p in zip(names, visible.head.parameters(), strict=True)}
    return {**found, "decoder_pred.bias": masked.head.everything.grad.sum((0, 1))}


def test_named_gradients(forward: File) -> None:
    expected, actual = forward.tensors.below("grad."), official_gradients(forward)
    for name in some(expected.keys() & actual.keys(), "gradients of the branches"):
        gradients(actual[name], expected[name])


def test_gradient_norms_of_the_visible_branch(forward: File) -> None:
    stored, actual = forward.folder.json(f"{forward.stem}_gradnorms.json"), official_gradients(forward)
    held = {name: float(grad.norm()) for name, grad in actual.items()}
    norms(held, {name: stored[name] for name in held})


def test_pretraining_groups(folder: Folder) -> None:
    """The split knows names and shapes only, so it is checked on the official state without its backbone."""
    state, groups = state_of(folder), folder.json("pretrain_param_groups.json")
    frozen = {"pos_embed", "decoder_pos_embed"}
    named = [(name, nn.Parameter(value, requires_grad=name not in frozen)) for name, value in state.items()]
    decay = max(float(group["weight_decay"]) for group in groups)
    actual = {group["weight_decay"]: sorted(group["names"]) for group in parameter_groups(named, decay)}
    assert actual == {group["weight_decay"]: sorted(group["params"]) for group in groups}


def test_learning_rate_rule(folder: Folder) -> None:
    """The published recipe: base rate 6e-4, 512 images, prediction 1 at ratio .6 (Eq. 4)."""
    stored = folder.json("meta.json").part("lr_example_PRETRAIN.md")
    assert learning_rate(6e-4, 512, 1 / 0.6) == pytest.approx(stored["lr"], rel=1e-6)
    assert pytest.approx(stored["eff"], rel=1e-6) == 512 / 0.6
