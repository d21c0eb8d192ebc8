"""build.py: each kind of recipe key becomes the part it names, and parts are shared where the recipe says the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from remask.backbones.vit import ViT
from remask.build.pretraining import (
    PATTERNS,
    build_backbone,
    build_masking,
    build_method,
    build_target,
    counts,
    parameters,
)
from remask.build.training import build_loader, build_trainer, gflops_per_image, peak_lr
from remask.errors import UserError
from remask.heads import Decoder, Projector
from remask.images.sources.opening import open_source
from remask.masking.green import Green
from remask.masking.scores import Blocks, InverseBlocks, random
from remask.method import Method
from remask.recipe import Recipe, dump, load_recipe
from remask.recipe.used import DECODING
from remask.targets import Hog, Pixels
from remask.training.progress import Lines
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime

TINY: dict[str, Any] = {
    "data.image_size": 16, "backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "masking.ratio": 0.5,
    "method.decoder_width": 24, "method.decoder_heads": 2, "optim.batch_size": 4, "optim.epochs": 2,
    "optim.warmup_epochs": 0.0, "runtime.tensorboard": False, "jd": "off", "dm": "off",
}  # fmt: skip
CPU = Runtime(torch.device("cpu"))


def tiny(**keys: Any) -> Recipe:
    """mae-vit-micro-cifar made small; `__` in a key is a dot."""
    overrides = {name.replace("__", "."): value for name, value in keys.items()}
    decoding = overrides.get("method.name", "mae") in DECODING
    foreign = {"method.decoder_width", "method.decoder_heads"} if not decoding else set[str]()
    settings = {key: value for key, value in TINY.items() if key not in {*overrides, *foreign}}
    return load_recipe("mae-vit-micro-cifar", {**settings, **overrides}, environment={})


@pytest.mark.parametrize(("positions", "trained"), [("sincos", False), ("learned", True)])
def test_the_backbone_takes_every_key(positions: str, trained: bool) -> None:
    recipe = tiny(
        backbone__patch_size=8, backbone__depth=3, backbone__drop_path=0.2, backbone__positions=positions,
        data__image_size="16x32", data__channels=1, data__mean=[0.3], data__std=[0.2],
    )  # fmt: skip
    backbone = build_backbone(recipe)
    assert isinstance(backbone, ViT)
    assert (backbone.width, backbone.depth, backbone.patch, backbone.channels) == (16, 3, (8, 8), 1)
    assert backbone.built_for == (2, 4)
    assert backbone.network.pos_embed.requires_grad is trained
    assert backbone.network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert backbone.shift[0].item() == pytest.approx(0.3 * 255)
    assert backbone.scale[0].item() == pytest.approx(1 / (0.2 * 255))


def test_unset_sizes_are_the_networks_own() -> None:
    sizes = {"backbone__width": "off", "backbone__depth": "off", "backbone__heads": "off"}
    backbone = build_backbone(tiny(**sizes))
    assert (backbone.width, backbone.depth, backbone.patch) == (128, 6, (4, 4))


@pytest.mark.parametrize(
    ("pattern", "cell", "score"),
    [
        ("random", 1, random),
        ("cells", 2, random),
        ("blocks", 1, Blocks()),
        ("inverse-blocks", 1, InverseBlocks()),
        ("green", 1, Green(2.0)),
    ],
)
def test_the_masking_takes_every_key(pattern: str, cell: int, score: Any) -> None:
    masking, unit = build_masking(tiny(masking__pattern=pattern, masking__ratio=0.6), (4, 4))
    assert (masking.ratio, masking.cell, masking.views, unit) == (0.6, cell, 1, (4, 4))
    assert masking.score == score
    assert len(PATTERNS) == 5


@pytest.mark.parametrize(
    ("pixels", "patch", "cell", "unit"), [(8, (4, 4), 2, (4, 4)), (4, (4, 4), 1, (4, 4)), (2, (4, 4), 1, (2, 2))]
)
def test_masking_cells_in_pixels(pixels: int, patch: tuple[int, int], cell: int, unit: tuple[int, int]) -> None:
    recipe = tiny(method__name="fastmim", masking__cell_pixels=pixels)
    masking, found = build_masking(recipe, patch)
    assert (masking.cell, found) == (cell, unit)
    method = build_method(recipe)
    assert (method.mask_unit, method.cells_per_token) == (unit, (4 // unit[0], 4 // unit[1]))
    views = method.draw(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert views.grid == (16 // unit[0], 16 // unit[1])
    sides = views.pixels(unit).unflatten(2, (-1, pixels)).unflatten(4, (-1, pixels))
    assert torch.equal(sides.amin((3, 5)), sides.amax((3, 5)))  # a cell is hidden whole, or not at all


@pytest.mark.parametrize(("method", "pixels"), [("fastmim", 24), ("fastmim", 12), ("simmim", 16), ("maskfeat", 16)])
def test_masking_cells_that_fit_no_token_of_the_network(method: str, pixels: int) -> None:
    """Where only the network knows how large its tokens are, 32 px here."""
    recipe = tiny(method__name=method, masking__cell_pixels=pixels, data__image_size=96, masking__pattern="cells")
    with pytest.raises(UserError, match=rf"masking.cell_pixels {pixels} does not fit tokens of 32×32 px: a cell is"):
        build_masking(recipe, (32, 32))


@pytest.mark.parametrize(("patch", "cell"), [(16, 8), (8, 4), (4, 2), (2, 1)])
def test_hog_cells_fit_small_patches(patch: int, cell: int) -> None:
    recipe = tiny(backbone__patch_size=patch, data__image_size=4 * patch, method__target="hog")
    target = build_target(recipe.method.target, recipe, build_backbone(recipe).patch)
    assert isinstance(target, Hog)
    assert (target.cell, target.bins, target.flavour, target.norm) == (cell, 9, "central", "layer")


def test_targets_take_every_key() -> None:
    recipe = tiny(method__target={"kind": "hog", "norm": "none", "flavour": "sobel", "cell": 4, "bins": 6})
    hog = build_target(recipe.method.target, recipe, build_backbone(recipe).patch)
    assert isinstance(hog, Hog)
    assert (hog.cell, hog.bins, hog.flavour, hog.norm, hog.width) == (4, 6, "sobel", "none", 3 * 6)
    for norm, per_patch in (("none", False), ("patch", True)):
        recipe = tiny(method__target={"kind": "pixels", "norm": norm})
        pixels = build_target(recipe.method.target, recipe, build_backbone(recipe).patch)
        assert isinstance(pixels, Pixels)
        assert pixels.per_patch is per_patch


def test_mae_alone() -> None:
    method = build_method(tiny(method__decoder_depth=2))
    (branch,) = method.branches
    assert isinstance(branch.head, Decoder)
    assert (branch.head.width, len(branch.head.blocks), branch.head.grid) == (24, 2, (4, 4))
    assert method.masking.views == 1


def test_dm_takes_every_key() -> None:
    assert build_method(tiny(dm__views=3, dm__prediction=0.9)).masking.prediction == 0.9
    independent = build_method(tiny(dm={"views": 3, "independent": True})).masking
    assert (independent.views, independent.prediction) == (3, None)


def test_jd_takes_every_key() -> None:
    method = build_method(tiny(jd={"target": "hog-l2", "width": 8, "beta": 0.5, "weight": 0.25, "layers": 2}))
    branch = method.branches[1]
    assert isinstance(branch.head, Projector)
    assert isinstance(branch.target, Hog)
    assert (branch.head.width, branch.head.layers, branch.weight, branch.target.flavour) == (8, 2, 0.25, "sobel")
    linear = build_method(tiny(jd={"layers": 1})).branches[1].head
    assert isinstance(linear, Projector)
    assert linear.layers == 1
    assert branch.distance(torch.tensor([[2.0]]), torch.zeros(1, 1)).item() == 2 - 0.5 / 2


@pytest.mark.parametrize(("target", "shared"), [("hog", True), ("pixels", False)])
def test_equal_targets_are_one_object(target: str, shared: bool) -> None:
    masked, visible = build_method(tiny(method__target=target, jd={"target": "hog", "width": 8})).branches
    assert (masked.target is visible.target) is shared


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    before = torch.random.get_rng_state()
    first, same, other = (build_method(tiny(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(
        first["backbone.network.blocks.0.attn.qkv.weight"], other["backbone.network.blocks.0.attn.qkv.weight"]
    )


def test_jd_does_not_change_the_weights_of_the_rest() -> None:
    """So that MAE and MAE+JD start from the same network."""
    plain, joint = build_method(tiny()).state_dict(), build_method(tiny(jd={"width": 8})).state_dict()
    assert all(torch.equal(value, joint[key]) for key, value in plain.items())


def test_a_masking_that_does_not_fit_the_grid_is_refused_on_building() -> None:
    with pytest.raises(UserError, match="more than the tokens allow"):
        build_method(tiny(dm__views=20))


# --------------------------------------------------------------------------------------------------- learning rate


def published(**keys: Any) -> tuple[Recipe, Method]:
    """DMJD's cells of 2×2 at .6 on 14×14 patches, on a small network."""
    rate = {} if "optim__lr" in keys else {"optim__base_lr": 6e-4}
    recipe = tiny(
        backbone__patch_size=2, data__image_size=28, masking__pattern="cells", masking__ratio=0.6,
        optim__batch_size=512, **rate, **keys,
    )  # fmt: skip
    return recipe, build_method(recipe)


def test_eq_4_with_the_realised_rates() -> None:
    recipe, method = published(dm__views=2)
    assert tuple(counts(method, recipe)) == (120, 196, 196, 120)
    assert peak_lr(recipe, method) == pytest.approx(6e-4 * 512 / 256 * 196 / 120)


@pytest.mark.parametrize(
    ("keys", "lr"),
    [
        ({}, 1.2e-3),
        ({"dm__views": 2, "optim__lr_rule": "linear"}, 1.2e-3),
        ({"dm__views": 1}, 1.2e-3),
        ({"dm__views": 2, "optim__lr": 0.01}, 0.01),
        ({"dm": {"views": 2, "prediction": 0.8}}, 1.2e-3 * (120 + 4 * 9) / 120),  # int(.2 · 49) cells more
    ],
)
def test_peak_lr(keys: dict[str, Any], lr: float) -> None:
    assert peak_lr(*published(**keys)) == pytest.approx(lr)


# ------------------------------------------------------------------------------------------------------- the whole


def test_flops_grow_with_views_and_shrink_with_the_ratio() -> None:
    recipes = ({}, {"dm.views": 2}, {"masking.ratio": 0.5})
    one, two, more = (gflops_per_image(load_recipe("mae-vit-micro-cifar", keys, environment={})) for keys in recipes)
    assert 0 < one < two <= 2 * one
    assert more > one


@pytest.mark.parametrize(("name", "most"), [("mae-vit-b", 19.6), ("mae-dmjd-vit-b", 38.2)])
def test_flops_of_the_published_sizes_stay_below_their_targets(name: str, most: float) -> None:
    """DMJD's at MAE's .75: K = 2 may cost less than two passes, never more. Counted on no device at all."""
    before = torch.random.get_rng_state()
    recipe = load_recipe(name, {"masking.ratio": 0.75}, environment={})
    assert 0.95 * most < gflops_per_image(recipe) <= most
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parameters_are_all_counted() -> None:
    method = build_method(tiny())
    assert parameters(method) == sum(p.numel() for p in method.parameters())
    assert parameters(method) > parameters(method.backbone.network)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two steps of DMJD on the built-in digits."""
    recipe = tiny(
        data__channels=1, data__mean=[0.5], data__std=[0.25], dm__views=2, jd={"width": 8}, optim__max_steps=2,
        optim__clip=1.0, optim__min_lr=1e-5, runtime__accumulate=2, runtime__workers=0,
    )  # fmt: skip
    folder = RunFolder.create(tmp_path_factory.mktemp("build") / "run", dump(recipe), {})
    method = build_method(recipe)
    loader = build_loader(recipe, open_source("digits", limit=16), CPU, method)
    trainer = build_trainer(recipe, method, loader, CPU, folder)
    schedule = trainer.schedule
    assert (schedule.epochs, schedule.steps_per_epoch, schedule.max_steps, schedule.accumulate) == (2, 4, 2, 2)
    assert (schedule.lr, schedule.min_lr, schedule.clip) == (peak_lr(recipe, method), 1e-5, 1.0)
    decays = {group["weight_decay"]: group["names"] for group in trainer.optimizer.param_groups}
    assert "backbone.network.cls_token" in decays[recipe.optim.weight_decay]
    assert "backbone.network.norm.weight" in decays[0.0]
    assert not any("pos_embed" in name for names in decays.values() for name in names)
    assert (trainer.ledger.dataset, trainer.ledger.views_per_image, trainer.ledger.devices) == (16, 2, 0)
    trainer.train(Lines(2, "build", quiet=True))
    return folder


def test_a_recipe_trains(run: RunFolder) -> None:
    last = run.metrics()[-1]
    assert last["step"] == 2
    assert last["loss/total"] == pytest.approx(last["loss/masked"] + last["loss/visible"])
    assert run.read("cost.json")["ete"] == 1.0


@pytest.mark.parametrize("key", ["backbone__width", "method__decoder_width"])
def test_a_width_without_a_sincos_table_is_one_line(key: str) -> None:
    with pytest.raises(UserError):
        build_method(tiny(**{key: 30}))


def test_methods_that_spare_tables_from_decay(tmp_path: Path) -> None:
    """SimMIM and BEiT decay neither tokens nor position tables; MaskFeat does, as its code."""
    found = {}
    for name, target in (("simmim", "pixels"), ("maskfeat", "hog-l2")):
        recipe = tiny(method__name=name, method__target=target, backbone__name="beit_micro")
        method, runtime = build_method(recipe), Runtime(torch.device("cpu"))
        loader = build_loader(recipe, open_source("photos", limit=4), runtime, method)
        run = RunFolder.create(tmp_path / name, dump(recipe), {})
        groups = build_trainer(recipe, method, loader, runtime, run).optimizer.param_groups
        found[name] = {kind for group in groups for kind in group["names"] if group["weight_decay"] == 0.0}
    tables = {"backbone.network.cls_token", "backbone.network.rel_pos_bias.relative_position_bias_table"}
    assert tables <= found["simmim"]
    assert not tables & found["maskfeat"]


def test_the_stepped_schedule_is_a_recipe_key(tmp_path: Path) -> None:
    recipe = tiny(optim__epochs=4, optim__drop_epoch=2.0, optim__lr=1.0)
    method, runtime = build_method(recipe), Runtime(torch.device("cpu"))
    loader = build_loader(recipe, open_source("photos", limit=4), runtime, method)
    schedule = build_trainer(recipe, method, loader, runtime, RunFolder.create(tmp_path / "a", "", {})).schedule
    assert [schedule.lr_at(step * schedule.steps_per_epoch) for step in range(4)] == [1.0, 1.0, 0.1, 0.1]


def test_an_untrained_teacher_is_the_same_whatever_the_seed() -> None:
    teacher = {"kind": "features", "norm": "layer", "teacher": "untrained:test_vit"}
    image = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    first, other = (build_method(tiny(seed=seed, method__target=teacher)) for seed in (0, 1))
    assert torch.equal(first.branches[0].target(image, None), other.branches[0].target(image, None))
    assert not [name for name in first.state_dict() if "target" in name]
