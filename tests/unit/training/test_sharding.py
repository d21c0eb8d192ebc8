"""parallel.py: what a rehearsal sees, and models in pieces, here in one process with a group of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from remask.build.pretraining import build_method
from remask.build.training import sharding_plan
from remask.errors import UserError
from remask.method import Method
from remask.recipe import Recipe, choose
from remask.runs.progressive import hand_over, phases
from remask.seeds import generator
from remask.training.checkpoint import restore, save
from remask.training.distributed import World
from remask.training.optim import adamw, parameter_groups
from remask.training.progress import Lines
from remask.training.run_folder import RunFolder, find
from remask.training.sharding import ShardingPlan, exchanging, full_state, shard_state, spread, trace_plan
from tests.unit.runs.test_progressive import on, trainer

TINY = ["backbone.width=32", "backbone.depth=2", "backbone.heads=2"]
DECODER = ["method.decoder_width=32", "method.decoder_heads=2", "method.decoder_depth=3"]
RECIPES: dict[str, tuple[str, list[str]]] = {
    "dmjd": ("dmjd-vit-micro-cifar", [*TINY, *DECODER]),
    "simmim": ("simmim-vit-micro-cifar", TINY),
    "beit": ("beit-vit-micro-cifar", ["method.target.vocabulary=16", *TINY]),
    "convmae": ("convmae-convit-micro-cifar", DECODER[2:]),
    "localmim": (
        "localmim-vit-micro-cifar",
        [*TINY, *DECODER, "method.decoder_layers=[0, 'end']", "method.cells=[2, 8]", "uniformity=on"],
    ),
    "fastmim": ("fastmim-vit-micro", ["backbone.name=resnet18", "data.image_size=64", "masking.cell_pixels=32"]),
}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def recipe(kind: str) -> Recipe:
    name, settings = RECIPES[kind]
    return choose(name, {"data.source": "photos"}, settings=settings)


def loss(call: nn.Module, method: Method, recipe: Recipe) -> Tensor:
    size = (2, recipe.data.channels, *recipe.data.image_size)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator(3))
    return call(images, method.draw(images, generator(4)))["total"]


# ------------------------------------------------------------------------------------------------------ rehearsal


def test_blocks_are_what_runs_as_a_module() -> None:
    found = sharding_plan(recipe("dmjd"))
    assert "backbone.network.blocks.0" in found.blocks
    assert "branches.0.head.blocks.1" in found.blocks
    assert "branches.0.head.blocks.2" not in found.blocks, "its layers are called one by one"
    assert "branches.0" in found.blocks[found.blocks.index("branches.0.head.blocks.1") :], "inner ones first"
    assert not found.silent


def test_parameters_that_the_loss_does_not_reach_are_named() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

    with torch.device("meta"):
        model = Half()
        found = trace_plan(model, lambda: model.used(torch.ones(1, 2)).sum())
    assert found == ShardingPlan((), frozenset({"unused.weight", "unused.bias"}))


# --------------------------------------------------------------------------------------------------------- pieces


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", RECIPES)
def test_every_network_can_be_cut(kind: str) -> None:
    """The same loss and, after a step, the same weights as the whole model; called part by part it does not break."""
    chosen = recipe(kind)
    results = []
    for cut in (False, True):
        method = build_method(chosen)
        learner = spread(method, sharding_plan(chosen), World(), "fsdp", compiled=False) if cut else method
        optimizer = adamw(parameter_groups(method.named_parameters(), 0.05), 1e-3, (0.9, 0.95))
        for group in optimizer.param_groups:
            group["eps"] = 1e-5  # else the step is the sign of a gradient, also of one that is nothing but rounding
        total = loss(learner, method, chosen)
        total.backward()
        norm = full_state({"norm": nn.utils.clip_grad_norm_(method.parameters(), 0.1)})["norm"]
        optimizer.step()
        results.append((total.detach(), norm, full_state(method.state_dict())))
    (one, norm, weights), (other, other_norm, pieces) = results
    assert torch.allclose(one, other, atol=1e-6)
    assert torch.allclose(norm, other_norm, rtol=1e-4)
    assert all(torch.allclose(weights[name].float(), pieces[name].float(), atol=1e-5) for name in weights)


@pytest.mark.usefixtures("group")
def test_checkpoints_of_pieces_are_whole_and_come_back_cut(tmp_path: Path) -> None:
    chosen, run = recipe("dmjd"), RunFolder.create(tmp_path / "run", "", {})
    cut, plain = build_method(chosen), build_method(chosen)
    learner = spread(cut, sharding_plan(chosen), World(), "fsdp", compiled=False)
    assert all(isinstance(parameter, DTensor) for parameter in cut.parameters())
    optimizers = [adamw(parameter_groups(m.named_parameters(), 0.05), 1e-3, (0.9, 0.95)) for m in (cut, plain)]
    loss(learner, cut, chosen).backward()
    optimizers[0].step()
    save(run, "last", cut, optimizers[0], {"step": 1})
    assert restore(find(run), plain, optimizers[1]) == {"step": 1}
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in full_state(cut.state_dict()).items())
    save(run, "again", plain, optimizers[1], {"step": 1})
    before = full_state(optimizers[0].state_dict())["state"]
    restore(find(run, "again"), cut, optimizers[0])
    state = optimizers[0].state_dict()["state"]
    assert all(isinstance(moments["exp_avg"], DTensor) for moments in state.values())
    assert all(torch.equal(full_state(state[i])["exp_avg_sq"], moments["exp_avg_sq"]) for i, moments in before.items())


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_parts_of_a_batch_add_up(kind: str) -> None:
    """Gradients of two parts, of which the second exchanges, are twice those of one."""
    chosen = recipe("dmjd")
    method = build_method(chosen)
    learner = spread(method, sharding_plan(chosen), World(), kind, compiled=False)  # type: ignore[arg-type]
    grads = []
    for parts in (1, 2):
        for i in range(parts):
            with exchanging(learner, i == parts - 1):
                loss(learner, method, chosen).backward()
        grads.append({name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None})
        method.zero_grad()
    one, two = (full_state(found) for found in grads)
    assert one
    assert all(torch.allclose(2 * one[name], two[name], rtol=1e-4, atol=1e-7) for name in one)


@pytest.mark.usefixtures("group")
def test_numbers_cannot_be_cut() -> None:
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match=r"fsdp cannot cut learned weights.*runtime.parallel ddp"):
        spread(model, ShardingPlan(), World(), "fsdp", compiled=False)


def test_without_pieces_nothing_changes() -> None:
    state = {"a": torch.ones(2), "b": [1, {"c": torch.zeros(1)}]}
    assert full_state(state)["a"] is state["a"]
    assert full_state(state, keep=False) == {"a": None, "b": [1, {"c": None}]}
    assert shard_state({"a": state["a"]}, {"a": torch.zeros(2)})["a"] is state["a"]


@pytest.mark.usefixtures("group")
def test_pieces_are_handed_over_where_images_grow(tmp_path: Path) -> None:
    """The weights and moments with which the next size begins are those of a run in one piece."""
    states = []
    for cut in (False, True):
        run, planned = RunFolder.create(tmp_path / f"run{cut}", "", {}), on("vit_micro")
        trainers = []
        for part, end in phases(planned):
            method = build_method(part)
            if cut:
                spread(method, sharding_plan(part), World(), "fsdp", compiled=False)
            trainers.append(trainer(part, method, run, end))
        old, new = trainers
        old.train(Lines(1, "quiet", quiet=True))
        hand_over(old, new, *(part.data.image_size for part, _ in phases(planned)))
        states.append((full_state(new.model.state_dict()), full_state(new.optimizer.state_dict()["state"])))
    (weights, moments), (pieces, cut_moments) = states
    assert all(torch.allclose(weights[name], pieces[name], atol=1e-5) for name in weights)
    assert moments.keys() == cut_moments.keys()
    for i, state in moments.items():
        assert all(torch.allclose(state[kind], cut_moments[i][kind], atol=1e-5) for kind in ("exp_avg", "exp_avg_sq"))
