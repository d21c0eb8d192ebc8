"""What every method keeps, whatever is composed: each base that build.py knows × DM, JD × backbones × targets."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from remask.backbones.cmt_network import Cmt
from remask.backbones.convvit import create_convvit
from remask.backbones.convvit_network import ConvViTNetwork
from remask.backbones.hierarchical import create_hierarchical
from remask.backbones.makers import NETWORKS
from remask.backbones.masked_input import Dropped
from remask.build.pretraining import GUIDES, PATTERNS, build_method
from remask.interop.export import export_backbone
from remask.method import Method
from remask.recipe import METHODS, Recipe, load_recipe, method_overrides
from remask.recipe.sections import DISTILLING
from remask.recipe.used import ATTENDING, CHOOSING, DECODING
from remask.targets import per_view, prefix
from remask.targets.loss_of import LossOf
from remask.targets.nothing import Nothing
from remask.targets.tokens import Codebook
from remask.types import END
from remask.views import Views
from tests.rounding import reached

PLUGINS = ("", "+dm", "+jd", "+dmjd")
REPLACING = ("vit_micro", "beit_micro", "swin_micro")
BACKBONES = {
    "mae": ("vit_micro",), "convmae": ("convvit_micro",), "simmim": REPLACING, "maskfeat": REPLACING, "beit": REPLACING,
    "fastmim": (*REPLACING, "convvit_micro", "pvt_v2_b0", "cmt_micro"),
    "dmae": ("vit_micro",), "moma": ("vit_micro", "convvit_micro"), "crossmae": ("vit_micro",),
    "data2vec": ("vit_micro",), "localmim": ("vit_micro",),
}  # fmt: skip
STRIDES = {"swin": 8, "pvt": 32, "cmt": 32}
"""Of networks whose tokens are what they are; the others' are made 4 pixels."""
TEACHER = {"kind": "features", "norm": "layer", "teacher": "untrained:test_vit"}
VECTORS = {"pixels": "pixels", "pixels-norm": "pixels-norm", "hog": "hog", "hog-l2": "hog-l2", "teacher": TEACHER}
AVERAGE = {"average": {"kind": "average", "norm": "layer", "outputs": "block"}}
HOGS = {name: name for name in ("hog", "hog-l2")}
WORDS = {"words": {"kind": "tokens", "norm": "none", "vocabulary": 8}}
SMALL: dict[str, Any] = {
    "data.image_size": "24x16", "masking.ratio": 0.6, "method.decoder_width": 16, "method.decoder_heads": 2,
    "method.decoder_depth": 1,
}  # fmt: skip
UNGUIDED = {"moma": {"loss"}, "convmae": {"attention"}}
"""What no guide comes from: a method without a masked branch, a network without a class token."""
TOY = {"backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2}


class Combination(NamedTuple):
    base: str
    plugin: str
    backbone: str
    target: str
    pattern: str
    finer: int = 1
    """Masking cells along a side of a token."""
    decoder: str = ""
    predicted: str | float = "all"
    uniformity: str = ""


def combinations() -> list[Combination]:
    """Every base × backbone × plug-in; on the first backbone every target, and under DMJD every pattern."""
    found = []
    for base, backbones in BACKBONES.items():
        targets = list({"beit": WORDS, "data2vec": AVERAGE, "localmim": HOGS}.get(base, VECTORS))
        found += [Combination(base, *pair, targets[-2:][0], "random") for pair in product(PLUGINS, backbones)]
        found += [Combination(base, "+jd", backbones[0], target, "random") for target in targets]
        patterns = {*PATTERNS, *GUIDES} - UNGUIDED.get(base, set())
        found += [Combination(base, "+dmjd", backbones[0], targets[0], pattern) for pattern in sorted(patterns)]
    found += [
        Combination(base, "+jd", BACKBONES[base][0], "average", "random")
        for base in ("mae", "simmim", "convmae", "fastmim")
    ]
    for base, plugin in product(CHOOSING, PLUGINS):
        predicted = "once" if "dm" in plugin.removesuffix("jd") else 0.25
        found.append(Combination(base, plugin, BACKBONES[base][0], "hog", "random", 1, "cross", predicted))
    found.append(Combination("crossmae", "+dmjd", "vit_micro", "hog", "cells", predicted="once"))
    found.append(Combination("fastmim", "+dmjd", "swin_micro", "hog", "random", finer=2))
    found += [
        Combination(base, "+dmjd", "beit_micro", "hog", pattern) for base in ("simmim", "fastmim") for pattern in GUIDES
    ]
    found += [Combination("fastmim", "", name, "hog", "loss") for name in ("swin_micro", "pvt_v2_b0")]
    found.append(Combination("crossmae", "+dm", "vit_micro", "hog", "loss", predicted="once"))
    for base, of in (("mae", "class"), ("simmim", "mean"), ("data2vec", "mean")):
        target = "average" if base == "data2vec" else "hog"
        found.append(Combination(base, "+dmjd", "vit_micro", target, "random", uniformity=of))
    found.append(Combination("fastmim", "+dm", "swin_micro", "hog", "random", finer=2, uniformity="mean"))
    return list(dict.fromkeys(found))


CASES = combinations()
OURS: dict[type, Callable[..., Any]] = {ConvViTNetwork: create_convvit, Cmt: create_hierarchical}
"""Networks that timm does not have, and who makes them."""


class Case(NamedTuple):
    recipe: Recipe
    method: Method
    images: Tensor
    views: Views

    @property
    def grid(self) -> tuple[int, int]:
        return self.views.grid


def settings(case: Combination) -> dict[str, Any]:
    stride = STRIDES.get(case.backbone.split("_")[0])
    keys = {**SMALL, **method_overrides(case.base + case.plugin), "backbone.name": case.backbone}
    keys = {key: value for key, value in keys.items() if case.base in DECODING or not key.startswith("method.decoder")}
    keys = {key: value for key, value in keys.items() if case.base in ATTENDING or key != "method.decoder_heads"}
    keys |= {**TOY, "backbone.patch_size": 4} if stride is None else {}
    rows, columns = (side * (stride or 4) // case.finer for side in (6, 4))
    keys |= {"data.image_size": f"{rows}x{columns}"}
    keys |= {"masking.cell_pixels": (stride or 4) // case.finer} if case.finer > 1 else {}
    keys |= {"distill": {"teachers": ["untrained:vit_micro"]}} if case.base in DISTILLING else {}
    keys |= {"masking.pattern": case.pattern}
    keys |= {"method.decoder": case.decoder} if case.decoder else {}
    keys |= {"uniformity": {"of": case.uniformity, "weight": 0.3}} if case.uniformity else {}
    keys |= {"masking.predicted": case.predicted} if case.predicted != "all" else {}
    keys |= {"method.target": {**VECTORS, **WORDS, **AVERAGE}[case.target]} if case.base != "moma" else {}
    if "jd" in case.plugin:
        keys["jd"] = {
            "width": 8,
            "weight": 0.5,
            "target": "hog" if case.base == "beit" else {**VECTORS, **AVERAGE}[case.target],
        }
    return keys


def built(recipe: Recipe) -> Method:
    """A codebook that a run would fit first gets words at random."""
    method = build_method(recipe)
    for branch in method.branches:
        if isinstance(branch.target, Codebook):
            branch.target.centres.normal_(generator=Generator().manual_seed(3))
    return method


@pytest.fixture(params=CASES, ids=["-".join(map(str, (c.base + c.plugin, *c[2:]))) for c in CASES], scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    recipe = load_recipe(
        "mae-vit-micro-cifar", {"backbone.patch_size": None, **settings(request.param)}, environment={}
    )
    size = recipe.data.image_size
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=Generator().manual_seed(1))
    method = built(recipe)
    return Case(recipe, method, images, method.draw(images, Generator().manual_seed(2)))


def test_the_cases_are_all_there_are() -> None:
    assert set(BACKBONES) == set(METHODS) - {"refiner"}, "which hides nothing: unit/methods/test_refiner.py"
    used = {name for names in BACKBONES.values() for name in names}
    assert {next(start for start in NETWORKS if name.startswith(start)) for name in used} == {*NETWORKS} - {"deit"}


def test_every_row_hides_exactly_m_and_the_union_is_the_promised_one(case: Case) -> None:
    counts = case.method.masking.counts(case.grid)
    assert case.grid == (6, 4)
    assert case.views.mask.shape == (2 if case.recipe.dm else 1, 3, 24)
    assert (case.views.mask.sum(-1) == counts.hidden).all()
    single = 14 if case.recipe.method.name == "maskfeat" else 15  # round(.6 · 24), and 24 - int(.4 · 24)
    assert counts.hidden == {1: single, 2: 16}[case.recipe.masking.cell]
    assert (case.views.mask.any(0).sum(-1) == (24 if case.recipe.dm else counts.hidden)).all()
    predict = case.views.mask if case.views.predict is None else case.views.predict
    assert (predict.any(0).sum(-1) == round(counts.predicted)).all()
    share = case.recipe.masking.predicted
    every = 24 if case.recipe.dm else counts.hidden
    assert counts.predicted == pytest.approx(every if isinstance(share, str) else round(share * 24))


def test_losses_are_named_finite_and_add_up(case: Case) -> None:
    losses = {name: loss.item() for name, loss in case.method(case.images, case.views).items()}
    own = {
        "dmae": {"masked": 1.0, "align": 1.0},
        "moma": {"teacher0": 1.0},
        "data2vec": {"masked": 1.0, "class": 0.01},
        "localmim": {"end": 1.0},
    }.get(case.recipe.method.name, {"masked": 1.0})
    weights = {branch.name: branch.weight for branch in case.method.branches}
    own |= {"difficulty": 1.0} if case.recipe.masking.pattern == "loss" else {}
    own |= {"visible": 0.5} if case.recipe.jd else {}
    assert weights == own | ({"uniformity": 0.3} if case.recipe.uniformity else {})
    assert list(losses) == [*weights, "total"]
    assert all(0 < loss < float("inf") for loss in losses.values())
    assert losses["total"] == pytest.approx(sum(weight * losses[name] for name, weight in weights.items()))


def test_every_trainable_parameter_receives_a_gradient(case: Case) -> None:
    case.method.zero_grad(set_to_none=True)
    case.method(case.images, case.views)["total"].backward()
    named = dict(case.method.named_parameters())
    trainable = {name for name, parameter in named.items() if parameter.requires_grad}
    silent = set()
    if not any(END in branch.layers for branch in case.method.branches):  # CrossMAE fuses layers before the last norm
        silent = {name for name in trainable if name.startswith("backbone.network.norm.")}
    assert reached(case.method) == trainable - silent
    frozen = {name for name in named if name.startswith("backbone.fusions.") and case.recipe.method.name == "fastmim"}
    frozen |= {name for name in named if name.startswith(("average.", "guide."))}
    assert set(named) - trainable <= {"backbone.network.pos_embed", *frozen}
    assert all(bool(torch.isfinite(named[name].grad).all()) for name in trainable - silent)  # type: ignore[arg-type]


def test_the_state_dict_goes_round(case: Case) -> None:
    other = built(case.recipe.model_copy(update={"seed": 1}))
    before = other(case.images, case.views)["total"]
    other.load_state_dict(case.method.state_dict(), strict=True)
    torch.manual_seed(0)  # data2vec's decoder draws noise
    expected = case.method(case.images, case.views)
    torch.manual_seed(0)
    assert all(torch.equal(loss, expected[name]) for name, loss in other(case.images, case.views).items())
    assert not torch.equal(before, expected["total"])


def test_masked_pixels_reach_no_visible_token(case: Case) -> None:
    """One view at a time, for what one view hides another sees; where no token is dropped, they reach no token."""
    for v in range(len(case.views.mask)):
        views = Views(case.views.mask[v : v + 1], case.views.grid, case.views.hidden)
        changed = torch.where(views.pixels(case.method.mask_unit)[0].unsqueeze(1), 255 - case.images, case.images)
        before, after = (case.method.encode(images, views)[-1] for images in (case.images, changed))
        assert not torch.equal(changed, case.images)
        assert torch.equal(before.tokens, after.tokens)
        assert torch.equal(before.prefix, after.prefix)
        dropped = case.views.hidden if isinstance(case.method.sees, Dropped) else 0
        fine = case.method.cells_per_token[0] * case.method.cells_per_token[1]
        assert before.tokens.shape[1] == (24 - dropped) // fine


def test_predictions_and_targets_meet_token_by_token(case: Case) -> None:
    pairs = case.method.pairs(case.images, case.views)
    for branch in case.method.branches:
        prediction, wanted = pairs[branch.name]
        if isinstance(branch.target, LossOf):
            other = next(b for b in case.method.branches if b.name == branch.target.name)
            assert torch.equal(wanted[..., 0], other.distance(*pairs[other.name]))
            assert prediction.shape == wanted.shape
            continue
        everything = branch.target(case.images, case.views)
        if isinstance(branch.target, Nothing):
            assert (prediction.shape[1], wanted.shape) == (1, (len(prediction), 1, 0))
            continue
        if branch.region == "pooled":
            assert torch.equal(wanted, everything.mean(1, keepdim=True).repeat(len(case.views.mask), 1, 1))
            assert prediction.shape == wanted.shape
            continue
        if branch.region == "encoded":
            assert prediction.shape[1] == 24 - case.views.hidden + case.method.backbone.prefix
        if not per_view(branch.target):
            everything = everything[:, prefix(branch.target) :]
        assert prediction.shape[:-1] == wanted.shape[:-1]
        assert wanted.shape[-1] == (1 if isinstance(branch.target, Codebook) else branch.target.width)
        assert prediction.shape[-1] == branch.target.width
        for v in range(len(case.views.mask)):
            for b in range(3):
                region = case.views.mask[v, b] if branch.region == "masked" else ~case.views.mask[v, b]
                if branch.region == "predicted":
                    region = (case.views.mask if case.views.predict is None else case.views.predict)[v, b]
                row = v * 3 + b
                if per_view(branch.target):
                    assert torch.equal(wanted[row], everything[row])
                else:
                    assert torch.equal(wanted[row][-int(region.sum()) :], everything[b][region])


def test_the_export_loads_strictly(case: Case, tmp_path: Path) -> None:
    """In timm, or for what timm does not have, here."""
    backbone, data = case.method.backbone, case.recipe.data
    export_backbone(backbone, tmp_path, data.image_size, data.mean, data.std)
    config, state = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "backbone.safetensors")
    ours = backbone.eval()(case.images)  # type: ignore[operator]
    if create := next((create for kind, create in OURS.items() if isinstance(backbone.network, kind)), None):
        other: Any = create(config["model"], data.image_size, data.mean, data.std, overrides=config["arguments"])
        other.network.load_state_dict(state, strict=True)
        assert torch.equal(other.eval()(case.images).tokens, ours.tokens)
        return
    model = timm.create_model(config["model"], **config["arguments"]).eval()
    model.load_state_dict(state, strict=True)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        theirs = model.forward_features((case.images / 255 - mean) / std)
    if theirs.ndim == 4:  # a map: PVT's has its channels first, Swin's last
        theirs = theirs.flatten(2).mT if theirs.shape[1] == backbone.width else theirs.flatten(1, 2)
    assert torch.allclose(torch.cat([ours.prefix, ours.tokens], dim=1), theirs, atol=1e-5, rtol=1e-4)
