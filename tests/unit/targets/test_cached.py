"""targets/cached.py: features are the teacher's to fp16, computed once a picture, and never those of another."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from remask.backbones.vit import create_vit
from remask.build.pretraining import build_method
from remask.build.training import build_loader, build_trainer
from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.masking import Masking
from remask.methods import moma
from remask.recipe import load_recipe
from remask.targets import TokenTeacher
from remask.targets import cached as module
from remask.targets.cached import Cached, Shelf, fingerprint
from remask.targets.map_teacher import MapTeacher
from remask.training.progress import Lines
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime

MEAN, STD = [0.5], [0.25]
SIZE, PATCH = (16, 16), (4, 4)


class Counted(TokenTeacher):
    """Counts the pictures that it computes."""

    seen = 0

    def forward(self, images: Tensor, views: Any = None) -> Tensor:
        self.seen += len(images)
        return super().forward(images, views)


def teacher(seed: int = 0, **options: Any) -> Counted:
    torch.manual_seed(seed)
    small = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return Counted(create_vit("vit_micro", SIZE, MEAN, STD, overrides=small), PATCH, MEAN, STD, name="t", **options)


def pictures(count: int = 6, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, 1, *SIZE), dtype=torch.uint8, generator=Generator().manual_seed(seed))


def opened(folder: Path, target: Any = None, count: int = 6) -> Cached:
    cached = Cached(target or teacher(), folder)
    cached.reserve(count, SIZE)
    return cached


def closed(cached: Cached) -> None:
    """As if its process had ended."""
    assert cached.shelf
    if cached.shelf.lock:
        cached.shelf.lock.close()


def test_features_are_computed_once_and_rounded_from_the_start(tmp_path: Path) -> None:
    cached, images = opened(tmp_path), pictures()
    wanted = teacher()(images)
    first = cached(images[:4])
    assert torch.equal(first, wanted[:4].half().float())
    mixed = cached(images[[1, 5, 0, 4]])
    assert torch.equal(mixed, wanted[[1, 5, 0, 4]].half().float())
    assert cached.target.seen == 6
    closed(cached)
    again = opened(tmp_path)
    assert torch.equal(again(images.flip(0)), wanted.flip(0).half().float())
    assert again.target.seen == 0
    assert (cached.width, cached.prefix, first.shape) == (24, 1, (4, 17, 24))


def test_another_crop_is_another_picture(tmp_path: Path) -> None:
    cached, images = opened(tmp_path), pictures()
    cached(images)
    assert torch.equal(cached(images.flip(-1)), teacher()(images.flip(-1)).half().float())
    assert cached.target.seen == 12, "there is no room for more, and they are computed again"
    assert torch.equal(cached(images), teacher()(images).half().float())
    assert cached.target.seen == 12


def test_another_teacher_has_another_file(tmp_path: Path) -> None:
    shape = (6, 17, 24)
    own = fingerprint(teacher(), shape, SIZE)
    assert own == fingerprint(teacher(), shape, SIZE)
    others = [fingerprint(t, shape, SIZE) for t in (teacher(1), teacher(layer=0), teacher(norm="none"))]
    shifted = teacher()
    shifted.network.networks[0].normalise.shift += 1  # type: ignore[attr-defined]
    others += [fingerprint(shifted, shape, SIZE), fingerprint(teacher(), (7, 17, 24), SIZE)]
    assert len({own, *others}) == 6


def test_maps_are_kept_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    keys = {"teacher_mean": MEAN, "teacher_std": STD, "width": 8, "name": "conv"}
    cached = opened(tmp_path, MapTeacher(nn.Conv2d(1, 8, 4, 4), PATCH, MEAN, STD, **keys))  # type: ignore[arg-type]
    before = cached(pictures())
    assert torch.equal(before, cached.target(pictures()).half().float())
    assert torch.equal(before, cached(pictures()))


def test_a_second_process_reads_and_leaves_the_file_alone(tmp_path: Path) -> None:
    first, images = opened(tmp_path), pictures()
    first(images[:3])
    second = opened(tmp_path)
    assert torch.equal(second(images), teacher()(images).half().float())
    assert second.target.seen == 3, "it knows what was there"
    size = len(first.shelf.places)  # type: ignore[union-attr]
    second(images)
    assert (size, int((np.load(next(tmp_path.glob("*.keys.npy"))) != 0).sum())) == (3, 3)


def test_what_was_cut_off_is_computed_again(tmp_path: Path) -> None:
    """A row without its key, as a kill between the two leaves it."""
    cached, images = opened(tmp_path), pictures()
    cached(images[:2])
    assert cached.shelf
    cached.shelf.rows[2] = 7
    closed(cached)
    again = opened(tmp_path)
    assert torch.equal(again(images), teacher()(images).half().float())
    assert again.target.seen == 4


def test_nothing_is_kept_before_there_is_room(tmp_path: Path) -> None:
    cached = Cached(teacher(), tmp_path / "none")
    assert torch.equal(cached(pictures()), teacher()(pictures()))
    assert not (tmp_path / "none").exists()
    assert cached.describe() == f"{teacher().describe()}, kept in {tmp_path / 'none'}"
    assert opened(tmp_path, count=50_000).describe().endswith("(0.0408 GB for 50,000 pictures)")
    floats = (pictures() / 255 - 0.5) / 0.25
    assert torch.equal(opened(tmp_path / "other")(floats), teacher()(floats)), "has no 8-bit content"


def test_a_full_disk_and_a_broken_file_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path)
    path = next(path for path in tmp_path.glob("*.npy") if "keys" not in path.name)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be used as a cache of features: remove it"):
        opened(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=4_000))
    with pytest.raises(UserError, match=r"0\.0 GB left, and the features of 4\.9e-06 GB"):
        Shelf(tmp_path / "full.npy", (6, 17, 24))


def test_it_is_a_target_and_holds_no_state(tmp_path: Path) -> None:
    torch.manual_seed(1)
    small = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    student = create_vit("vit_micro", SIZE, MEAN, STD, overrides=small)
    method = moma(student, Masking(0.6), [opened(tmp_path)])  # type: ignore[list-item]
    assert method.branches[0].region == "encoded"
    views = method.draw(pictures(), Generator().manual_seed(0))
    first = method(pictures(), views)["total"]
    first.backward()
    assert torch.equal(first, method(pictures(), views)["total"])
    assert not [name for name in method.state_dict() if "target" in name]


def test_a_run_fills_it_in_its_first_epoch(tmp_path: Path) -> None:
    keys = {
        "backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "data.image_size": 16, "optim.batch_size": 4,
        "data.crop_scale": [1, 1], "data.flip": False, "optim.epochs": 2, "optim.warmup_epochs": 0.0,
        "runtime.workers": 0, "runtime.tensorboard": False, "runtime.device": "cpu", "runtime.log_every": 1,
        "distill": {"teachers": ["untrained:vit_micro"], "cache": str(tmp_path / "kept")}, "optim.precision": "fp32",
    }  # fmt: skip
    losses = []
    for name in ("first", "second"):
        recipe, runtime = load_recipe("moma-vit-micro-cifar", keys, environment={}), Runtime(torch.device("cpu"))
        method, run = build_method(recipe), RunFolder.create(tmp_path / name, "", {})
        loader = build_loader(recipe, open_source("photos", limit=8), runtime, method)
        trainer = build_trainer(recipe, method, loader, runtime, run)
        (target,) = (branch.target for branch in method.branches)
        assert isinstance(target, Cached)
        assert target.shelf
        assert len(target.shelf.places) == (8 if losses else 0)
        trainer.train(Lines(trainer.schedule.steps, name, quiet=True))
        assert len(target.shelf.places) == 8
        losses.append([line["loss/total"] for line in run.metrics()])
        closed(target)
    assert losses[0] == losses[1]
