"""progressive.py: a recipe's sizes one after the other, and what one size's trainer hands to the next one's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from remask.build.pretraining import build_method
from remask.build.training import build_loader, build_trainer
from remask.heads import Decoder
from remask.images.sources.opening import open_source
from remask.method import Method
from remask.recipe import Recipe, load_recipe
from remask.runs.progressive import at_size, grow, hand_over, phase_of, phases
from remask.tokens import sincos_positions
from remask.training.progress import Lines
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime
from remask.training.trainer import Trainer

TINY: dict[str, Any] = {
    "backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "backbone.patch_size": 4, "masking.ratio": 0.5,
    "method.decoder_width": 16, "method.decoder_heads": 2, "method.decoder_depth": 1, "optim.batch_size": 4,
    "optim.epochs": 2, "optim.warmup_epochs": 0.0, "runtime.tensorboard": False, "runtime.workers": 0,
    "progress": {"sizes": ["16x24", "24x32"]}, "data.image_size": "24x32", "jd": {"width": 8}, "dm": "on",
}  # fmt: skip
BEFORE, AFTER = (16, 24), (24, 32)
BACKBONES: dict[str, dict[str, Any]] = {
    "vit_micro": {"backbone.positions": "learned"},
    "beit_micro": {},
    "swin_micro": {"progress": {"sizes": [48, 64]}, "data.image_size": 64, **dict.fromkeys(
        ("backbone.width", "backbone.depth", "backbone.heads", "backbone.patch_size"))},
    "cmt_micro": {"progress": {"sizes": ["64x96", "96x128"]}, "data.image_size": "96x128", **dict.fromkeys(
        ("backbone.width", "backbone.depth", "backbone.heads", "backbone.patch_size"))},
}  # fmt: skip


def recipe(method: str = "fastmim", **keys: Any) -> Recipe:
    tiny = {key: value for key, value in TINY.items() if method != "simmim" or not key.startswith("method.decoder")}
    settings = {**tiny, "method.name": method, **{name.replace("__", "."): value for name, value in keys.items()}}
    return load_recipe("mae-vit-micro-cifar", settings, environment={})


def planned(sizes: list[Any], epochs: int, given: list[int] | None = None) -> Recipe:
    progress = {"sizes": sizes, "epochs": given}
    return recipe(data__image_size=sizes[-1], optim__epochs=epochs, progress=progress)


def on(name: str, **keys: Any) -> Recipe:
    return recipe(backbone__name=name, **BACKBONES[name], **keys)


def trainer(part: Recipe, method: Method, folder: RunFolder, until: int) -> Trainer:
    runtime = Runtime(torch.device("cpu"))
    loader = build_loader(part, open_source("photos", limit=8), runtime, method)
    return build_trainer(part, method, loader, runtime, folder, (), until)


def switched(plan: Recipe, folder: Path) -> tuple[Trainer, Trainer]:
    """The trainer of the first size at its end, and the one that takes over."""
    run = RunFolder.create(folder / "run", "", {})
    old, new = (trainer(part, build_method(part), run, end) for part, end in phases(plan))
    old.train(Lines(1, "quiet", quiet=True))
    hand_over(old, new, *(part.data.image_size for part, _ in phases(plan)))
    return old, new


@pytest.mark.parametrize(
    ("sizes", "epochs", "given", "shares"),
    [
        ([16, 24, 32], 9, None, [3, 3, 3]),
        ([16, 24, 32], 10, None, [3, 3, 4]),
        ([16, 24, 32], 11, None, [3, 4, 4]),
        ([16, 32], 5, [1, 4], [1, 4]),
        ([32], 7, None, [7]),
    ],
)
def test_epochs_at_each_size(sizes: list[int], epochs: int, given: list[int] | None, shares: list[int]) -> None:
    plan = planned(sizes, epochs, given)
    assert plan.progress
    assert given or plan.progress.even(epochs) == shares
    found = phases(plan)
    assert [phase.end for phase in found] == [sum(shares[: i + 1]) for i in range(len(shares))]
    assert [phase.recipe.data.image_size for phase in found] == [(size, size) for size in sizes]
    assert all(phase.recipe.progress is None for phase in found)
    assert all(phase.recipe.optim == plan.optim for phase in found)  # one schedule over all sizes


def test_a_recipe_of_one_size_is_one_phase() -> None:
    plain = recipe(progress="off")
    assert phases(plain) == [(plain, 2)]
    assert phase_of(plain, 0) == phase_of(plain, 2) == 0


@pytest.mark.parametrize(
    ("epoch", "phase"), [(0, 0), (2.9, 0), (3, 0), (3.01, 1), (5.99, 1), (6, 1), (6 + 1e-6, 2), (9, 2)]
)
def test_the_phase_that_wrote_a_checkpoint(epoch: float, phase: int) -> None:
    """At a switch the last checkpoint is the old size's: what comes next is a function of it."""
    assert phase_of(planned([16, 24, 32], 9), epoch) == phase


def test_at_another_size() -> None:
    plan = recipe()
    other = at_size(plan, (40, 16))
    assert (other.data.image_size, other.progress) == ((40, 16), None)
    assert other.model_copy(update={"data": plan.data, "progress": plan.progress}) == plan


def test_a_decoders_positions_are_the_new_sizes() -> None:
    """Those of MAE: fixed, so they are made and not resized, also where the grid is only turned."""
    for size in (AFTER, (24, 16)):
        old, new = (build_method(at_size(recipe("mae"), each)) for each in (BEFORE, size))
        state = old.state_dict()
        grown = grow(state, new, BEFORE, size)
        new.load_state_dict(grown, strict=True)
        head = new.branches[0].head
        assert isinstance(head, Decoder)
        assert torch.equal(head.positions, sincos_positions((size[0] // 4, size[1] // 4), 16))
        kept = [name for name in state if "positions" not in name and "pos_embed" not in name]
        assert len(kept) > 20
        assert all(torch.equal(grown[name], state[name]) for name in kept)


def test_growing_to_the_same_size_is_nothing() -> None:
    old, new = (build_method(at_size(recipe("mae", seed=seed), BEFORE)) for seed in (0, 1))
    state = old.state_dict() | {"branches.0.head.positions": torch.randn(24, 16)}  # a stored table of someone else's
    grown = grow(state, new, BEFORE, BEFORE)
    assert all(torch.equal(grown[name], value) for name, value in state.items())


def test_statistics_of_a_batch_norm_are_handed_on() -> None:
    plan = on("cmt_micro")
    old, new = (build_method(part) for part, _ in phases(plan))
    old.backbone.network.get_buffer("stem_norm1.running_mean").fill_(7.0)
    grown = grow(old.state_dict(), new, (64, 96), (96, 128))
    assert bool((grown["backbone.network.stem_norm1.running_mean"] == 7).all())


@pytest.mark.parametrize("name", BACKBONES)
def test_moments_are_handed_over_by_name(name: str, tmp_path: Path) -> None:
    """As tables where they are a table's, else bit by bit; second moments stay above zero."""
    old, new = switched(on(name), tmp_path)
    owners = [{p: name for name, p in each.model.named_parameters()} for each in (old, new)]
    was, now = (
        {owner[p]: state for p, state in each.optimizer.state.items()}
        for owner, each in zip(owners, (old, new), strict=True)
    )
    assert set(was) == set(now) == {name for name, p in new.model.named_parameters() if p.requires_grad}
    resized = 0
    for key, state in now.items():
        parameter = new.model.get_parameter(key)
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert bool((state["exp_avg_sq"] >= 0).all()), key
        assert state["step"] == was[key]["step"] == 2
        if parameter.shape == old.model.get_parameter(key).shape:
            assert all(torch.equal(state[kind], was[key][kind]) for kind in ("exp_avg", "exp_avg_sq"))
            assert torch.equal(parameter, old.model.get_parameter(key))
        else:
            resized += 1
            assert bool(state["exp_avg"].any())
    assert resized == {"vit_micro": 1, "beit_micro": 1, "swin_micro": 6, "cmt_micro": 4}[name]


def test_second_moments_that_overshoot_are_clamped(tmp_path: Path) -> None:
    """A cubic curve through a lone peak dips below zero beside it."""
    plan = on("vit_micro")
    run = RunFolder.create(tmp_path / "run", "", {})
    old, new = (trainer(part, build_method(part), run, end) for part, end in phases(plan))
    old.train(Lines(1, "quiet", quiet=True))
    table = "backbone.network.pos_embed"
    second = old.optimizer.state[old.model.get_parameter(table)]["exp_avg_sq"]
    second.zero_()[0, 9] = 1.0
    assert bool((grow({table: second}, new.model, BEFORE, AFTER)[table] < -1e-3).any())  # type: ignore[arg-type]
    hand_over(old, new, BEFORE, AFTER)
    assert float(new.optimizer.state[new.model.get_parameter(table)]["exp_avg_sq"].min()) == 0.0


def test_the_old_trainer_shares_nothing_with_the_new_one(tmp_path: Path) -> None:
    old, new = switched(on("vit_micro"), tmp_path)
    before = [state["exp_avg"].clone() for state in old.optimizer.state.values()]
    weights = [p.clone() for p in old.model.parameters()]
    new.train(Lines(1, "quiet", quiet=True))
    assert all(torch.equal(a["exp_avg"], b) for a, b in zip(old.optimizer.state.values(), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(old.model.parameters(), weights, strict=True))


@pytest.mark.parametrize("method", ["mae", "fastmim", "simmim"])
def test_dm_and_jd_go_on_at_the_next_size(method: str, tmp_path: Path) -> None:
    plan = recipe(method, backbone__positions="learned")
    old, new = switched(plan, tmp_path)
    assert (old.global_step, new.global_step, new.schedule.last_step, new.schedule.steps) == (2, 2, 4, 4)
    assert new.schedule.lr_at(3) == old.schedule.lr_at(3)
    grown: Any = new.model
    assert isinstance(grown, Method)
    assert ([branch.name for branch in grown.branches], grown.masking.views) == (["masked", "visible"], 2)
    before = {name: p.clone() for name, p in grown.named_parameters()}
    new.train(Lines(1, "quiet", quiet=True))
    moved = {name for name, p in grown.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in grown.named_parameters() if p.requires_grad}
    lines = new.run.metrics()
    assert [line["step"] for line in lines][-1] == 4
    assert {"loss/masked", "loss/visible"} <= set(lines[-1])
    assert new.run.read("status.json")["state"] == "finished"
