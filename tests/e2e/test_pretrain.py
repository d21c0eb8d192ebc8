"""From the command line to a run folder, on real pictures in seconds. Every recipe runs; what is promised is there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from remask import commands
from remask.backbones.makers import creator_of
from remask.build.pretraining import build_method
from remask.recipe import Recipe, choose, recipe_names
from tests.tried import SAID

TINY = [
    "backbone.width=32",
    "backbone.depth=2",
    "backbone.heads=2",
    "method.decoder_width=32",
    "method.decoder_heads=2",
]
TINY += ["method.decoder_depth=1", "runtime.log_every=1", "optim.precision=fp32"]
METRICS = {
    "step",
    "epoch",
    "loss/total",
    "loss/masked",
    "loss/visible",
    "lr",
    "images_per_s",
    "views_per_s",
    "data_wait",
}
COST = {
    "images",
    "views",
    "ete",
    "gpu_hours",
    "cpu_hours",
    "gflops_forward_per_image",
    "peak_memory_mb",
    "data_wait_share",
}


def shrunk(name: str) -> Recipe:
    """A recipe as --smoke has it, on photographs."""
    return choose(name, {"data.source": "photos"}, smoke=True)


def kind(recipe: Recipe) -> tuple[object, ...]:
    """What decides which code a recipe runs: its method, backbones and crops, and whether images grow."""
    backbone = creator_of(recipe.backbone.name), recipe.backbone.class_tokens
    return recipe.method.name, *backbone, recipe.data.crop, recipe.uniformity is None, recipe.progress is not None


ONE_OF_EACH = {kind(shrunk(name)): name for name in reversed(recipe_names())}
"""The first recipe of each kind, which runs from end to end; the others differ in numbers that the next test builds."""


@pytest.mark.parametrize("recipe", sorted(ONE_OF_EACH.values()))
def test_a_recipe_of_each_kind_runs_shrunk(recipe: str, tmp_path: Path):
    run = commands.pretrain(recipe, {"data.source": "photos"}, out=tmp_path / "run", smoke=True, quiet=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == (6 if "[progress]" in (run / "recipe.toml").read_text() else 4)
    assert all(torch.tensor(line["loss/total"]).isfinite() for line in lines)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert (run / "export" / "backbone.safetensors").is_file()
    if not recipe.startswith("refiner"):  # which hides nothing that could be drawn
        assert (run / "pictures" / "reconstruction.png").read_bytes()[:4] == b"\x89PNG"
    assert "<html" in (run / "report.html").read_text()


def test_every_recipe_builds_shrunk_and_reaches_every_parameter():
    """Forward and backward without memory; what receives no gradient are tokens that a network has and nobody reads.

    Many recipes differ in words and in the optimizer alone: what is built of them is built once.
    """
    recipes = [(name, shrunk(name)) for name in recipe_names()]
    apart = {"optim", "runtime", "probe", *SAID}
    for name, recipe in {recipe.model_dump_json(exclude=apart): (name, recipe) for name, recipe in recipes}.values():
        with torch.device("meta"):
            method = build_method(recipe)
            images = torch.zeros(2, recipe.data.channels, *recipe.data.image_size, dtype=torch.uint8)
            losses = method(images)
            losses["total"].backward()
        assert set(losses) >= {branch.name for branch in method.branches}, name
        assert any(p.grad is not None for p in method.backbone.network.parameters()), name
        learned = [p for branch in method.branches for p in branch.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in learned), name
        assert all(p.requires_grad for branch in method.branches for p in branch.head.parameters()), name  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished DMJD run of two epochs on 120 digits."""
    settings = [*TINY, "optim.batch_size=40", "optim.epochs=2", "probe.source=digits:val", "probe.every_epochs=1"]
    out = tmp_path_factory.mktemp("runs") / "digits"
    data = {"data.source": "digits:train", "data.limit": 120, "data.image_size": 16}
    return commands.pretrain("demo", data, settings=settings, out=out, quiet=True)


def test_run_folder_holds_what_scripts_rely_on(digits: Path):
    lines = [json.loads(line) for line in (digits / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(lines[0]) >= METRICS
    assert [line["step"] for line in lines if "probe/knn" in line] == [3, 6]
    for line in lines:
        assert line["loss/total"] == pytest.approx(line["loss/masked"] + line["loss/visible"], rel=1e-5)
    cost = json.loads((digits / "cost.json").read_text())
    assert set(cost) >= COST
    assert (cost["images"], cost["views"], cost["ete"]) == (240, 480, 4.0)
    status = json.loads((digits / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("finished", 6, 6)
    assert status["resume_command"] == f"remask resume {digits}"
    assert list((digits / "tensorboard").iterdir())
    assert {"recipe.toml", "env.json", "checkpoints", "export", "report.html"} <= {p.name for p in digits.iterdir()}


def test_the_export_is_the_trained_backbone_and_nothing_else(digits: Path):
    exported = load_file(digits / "export" / "backbone.safetensors")
    trained = load_file(digits / "checkpoints" / "last" / "model.safetensors")
    assert exported
    for name, value in exported.items():
        torch.testing.assert_close(value, trained[f"backbone.network.{name}"], rtol=0, atol=0)


def test_probe_compares_with_untrained_and_pixels(digits: Path):
    result = commands.probe(digits, "digits:train", "digits:val", quiet=True)
    stored = json.loads((digits / "eval" / "probe.json").read_text())
    assert stored == result
    tables = (stored["linear"], stored["knn"], stored["few_labels"], stored["few_labels"]["knn"])
    for part in tables:
        assert {"top1", "untrained", "pixels"} <= set(part)
    assert stored["linear"]["pixels"] > 85, "digits are nearly linear in their pixels: a number far below is a bug"
    columns = [[part[kind] for part in tables] for kind in ("top1", "untrained")]
    assert columns[0] != columns[1], "one number may be the same by chance, not all four"
    assert stored["protocol"]["images"] == {"train": 1442, "val": 355}


def test_reconstruction_of_other_pictures(digits: Path, tmp_path: Path):
    picture = commands.reconstruct(digits, "photos", out=tmp_path / "new" / "seen.png", count=2, seed=3)
    with Image.open(picture) as image:
        assert min(image.size) > 200
    again = commands.reconstruct(digits, "photos", out=tmp_path / "again.png", count=2, seed=3)
    assert picture.read_bytes() == again.read_bytes()


def test_a_flat_folder_of_mixed_sizes_with_broken_files(tmp_path: Path):
    folder = photo_folder(tmp_path / "pictures", 24)
    (folder / "a_broken.jpg").write_bytes(b"not a picture")
    (folder / "b_empty.jpg").write_bytes(b"")
    whole = (folder / "p03.jpg").read_bytes()
    (folder / "c_cut.jpg").write_bytes(whole[: len(whole) // 2])
    overrides = {"data.source": str(folder), "optim.epochs": 1, "optim.batch_size": 9, "data.image_size": "96x160"}
    run = commands.pretrain("dmjd-vit-tiny", overrides, settings=TINY, out=tmp_path / "run", quiet=True)
    named = (run / "bad_images.txt").read_text()
    assert named.count("\n") == 3
    assert all(name in named for name in ("a_broken.jpg", "b_empty.jpg", "c_cut.jpg"))
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_a_run_is_recipe_and_seed(tmp_path: Path):
    def losses(name: str, seed: int) -> list[float]:
        settings = [*TINY, "optim.batch_size=16", "optim.max_steps=3"]
        run = commands.pretrain("demo", {"seed": seed}, settings=settings, out=tmp_path / name, quiet=True)
        return [json.loads(line)["loss/total"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    first = losses("first", 0)
    assert len(first) == 3
    assert first == losses("again", 0)
    assert first != losses("other", 1)


def photo_folder(folder: Path, count: int) -> Path:
    """JPEGs of mixed sizes, cut from the photographs that scikit-image ships."""
    from remask.images.decoding import decode
    from remask.images.sources.opening import open_source

    folder.mkdir()
    photos = open_source("photos")
    for i in range(count):
        image = decode(photos.read(i))
        height, width = 60 + 17 * (i % 9), 80 + 23 * (i % 7)
        cut = image[:, 10 : 10 + height, 5 : 5 + width].permute(1, 2, 0).numpy()
        Image.fromarray(cut).save(folder / f"p{i:02d}.jpg", quality=90)
    return folder


def test_nasty_files_are_read_or_named(shared: Path, tmp_path: Path):
    folder = tmp_path / "nasty"
    folder.mkdir()
    for path in (shared / "data" / "nasty").iterdir():
        if path.suffix not in (".json", ".tar"):
            shutil.copy(path, folder)
    overrides = {"data.source": str(folder), "data.max_bad": 0.5, "optim.epochs": 1, "optim.batch_size": 15}
    run = commands.pretrain("dmjd-vit-tiny", overrides, settings=TINY, out=tmp_path / "run", quiet=True)
    named = (run / "bad_images.txt").read_text()
    for name in ("zero_byte.jpg", "html_404.jpg", "bomb_60000x60000.png", "truncated_half.jpg", "one_pixel.png"):
        assert name in named
    for name in ("good_rgb.jpg", "cmyk.jpg", "rgb16.png", "exif_rot6.jpg", "palette.png", "rgba.png"):
        assert name not in named
