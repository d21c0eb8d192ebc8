"""runs.py: a run that is there opens with its recipe and weights, at its own image size or at another one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from remask import commands
from remask.backbones.tables import resize_state
from remask.build.pretraining import build_method
from remask.errors import UserError
from remask.recipe import Recipe, dump, load_recipe
from remask.runs.opening import open_run
from remask.runs.reopen import trained
from remask.training.checkpoint import position, save
from remask.training.run_folder import RunFolder

TINY: dict[str, Any] = {
    "data.source": "photos", "data.limit": 8, "data.image_size": "16x24", "masking.ratio": 0.5,
    "backbone.patch_size": 4, "backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2,
    "backbone.positions": "learned", "method.decoder_width": 16, "method.decoder_heads": 2, "method.decoder_depth": 1,
    "optim.batch_size": 4, "optim.epochs": 3, "optim.warmup_epochs": 0.0, "dm": "on", "jd": {"width": 8},
    "runtime.tensorboard": False, "runtime.workers": 0, "runtime.threads": 1, "runtime.device": "cpu",
    "runtime.keep_every_epochs": 1,
}  # fmt: skip
TABLE = "backbone.network.pos_embed"


def recipe(**keys: Any) -> Recipe:
    settings = {**TINY, **{name.replace("__", "."): value for name, value in keys.items()}}
    return load_recipe("mae-vit-micro-cifar", settings, environment={})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two steps of DMJD."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return RunFolder.open(commands.pretrain(recipe(optim__max_steps=2), out=out, quiet=True))


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """FastMIM at 16, 24 and 32 px, ended in the last epoch of three: every size has its own checkpoint."""
    plan = recipe(
        method__name="fastmim",
        data__image_size=32,
        progress={"sizes": [16, 24, 32]},
        optim__max_steps=5,
        masking__ratio=0.6,
    )
    return RunFolder.open(commands.pretrain(plan, out=tmp_path_factory.mktemp("runs") / "run", quiet=True))


def pictures(size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_run_opens_with_its_recipe_and_weights(run: RunFolder) -> None:
    opened, found = open_run(run.path)
    assert opened.path == run.path
    assert (found.dm and found.dm.views, found.seed, found.data.image_size) == (2, 0, (16, 24))
    method, fresh = trained(opened, found).state_dict(), build_method(found).state_dict()
    assert method.keys() == fresh.keys()
    assert any(not torch.equal(method[key], fresh[key]) for key in method)


def test_named_checkpoints_are_found(run: RunFolder) -> None:
    found = open_run(run.path)[1]
    method = build_method(found)
    save(run, "mine", method, torch.optim.SGD(method.parameters(), lr=0.1), {"step": 7})
    restored = trained(run, found, "mine").state_dict()
    assert all(torch.equal(value, restored[key]) for key, value in method.state_dict().items())
    with pytest.raises(UserError, match="holds no checkpoint 'epoch-0009'"):
        trained(run, found, "epoch-0009")


@pytest.mark.parametrize("size", [(24, 40), (24, 16), (8, 8)])
def test_at_another_size_tables_are_resized_and_nothing_else(run: RunFolder, size: tuple[int, int]) -> None:
    found = open_run(run.path)[1]
    own, other = trained(run, found), trained(run, found, size=size)
    mine, theirs = own.state_dict(), other.state_dict()
    net = other.backbone.network
    expected = resize_state(own.backbone.network.state_dict(), net, (16, 24), size, (4, 4))["pos_embed"]
    assert torch.equal(theirs[TABLE], expected)
    assert not torch.equal(mine[TABLE], theirs[TABLE])
    kept = set(mine) - {TABLE, "branches.0.head.positions"}
    assert all(torch.equal(mine[name], theirs[name]) for name in kept)
    assert torch.isfinite(other(pictures(size))["total"]) if size != (8, 8) else other.grid(size) == (2, 2)
    images = pictures(size)
    with torch.no_grad():  # as the backbone of the run makes of such an image by itself
        assert torch.allclose(own.backbone(images).tokens, other.backbone(images).tokens, atol=1e-5)  # type: ignore[operator]


def test_a_size_that_does_not_fit_is_one_line(run: RunFolder) -> None:
    with pytest.raises(UserError, match="18×24 px cannot be cut into patches of 4×4"):
        trained(run, open_run(run.path)[1], size=(18, 24))


def test_a_run_with_another_recipe_is_one_line(run: RunFolder) -> None:
    with pytest.raises(UserError, match="does not fit the model"):
        trained(run, recipe(backbone__width=24))


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        open_run(tmp_path)


def test_every_checkpoint_of_a_growing_run_opens(growing: RunFolder) -> None:
    """Written at the size of its phase, it serves images of the last one, or of any other."""
    found = open_run(growing.path)[1]
    assert position(growing)["step"] == 5
    for name, cells in (("epoch-0001", 16), ("epoch-0002", 36), ("last", 64)):
        own = trained(growing, found, name, size=(4 * int(cells**0.5),) * 2)
        assert own.state_dict()[TABLE].shape[1] == 1 + cells
        stored = own.backbone.network.state_dict()
        assert trained(growing, found, name).state_dict()[TABLE].shape[1] == 1 + 64
        other = trained(growing, found, name, (40, 24))
        net = other.backbone.network
        expected = resize_state(stored, net, (4 * int(cells**0.5),) * 2, (40, 24), (4, 4))
        assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())


def test_a_finished_growing_run_leaves_an_export_of_the_last_size(growing: RunFolder, tmp_path: Path) -> None:
    import json

    assert json.loads((growing.path / "export" / "config.json").read_text())["image_size"] == [32, 32]
    folder = commands.export(growing.path, tmp_path / "small", image_size=(16, 16), checkpoint="epoch-0001")
    assert json.loads((folder / "config.json").read_text())["image_size"] == [16, 16]


def test_an_interrupted_growing_run_opens_at_the_size_it_had_reached(tmp_path: Path) -> None:
    plan = recipe(data__image_size=24, progress={"sizes": [16, 24], "epochs": [2, 1]}, masking__ratio=0.6)
    run = RunFolder.create(tmp_path / "run", dump(plan), {})
    small = build_method(recipe(data__image_size=16, masking__ratio=0.6))
    save(run, "last", small, torch.optim.SGD(small.parameters(), lr=0.1), {"step": 3, "epoch": 1.5})
    opened, found = open_run(run.path)
    assert torch.equal(trained(opened, found, size=(16, 16)).state_dict()[TABLE], small.state_dict()[TABLE])
    assert trained(opened, found).state_dict()[TABLE].shape[1] == 1 + 36
    assert commands.export(run.path).is_dir()
