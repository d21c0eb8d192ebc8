"""codebook.py: words fitted on the user's pictures, kept beside the run, found again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from remask import commands
from remask.build import codebook
from remask.build.pretraining import build_method
from remask.errors import UserError
from remask.images.sources.opening import open_source
from remask.recipe import Recipe, load_recipe
from remask.runs import session
from remask.runs.opening import open_run
from remask.runs.progressive import hand_over
from remask.targets.tokens import Codebook, StoredIds, content_key, read_codebook, save_ids
from remask.training.trainer import Trainer


def beit(**target: Any) -> Recipe:
    keys = {"kind": "tokens", "norm": "none", "vocabulary": 12, **target}
    toy = {"backbone.width": 16, "backbone.depth": 1, "backbone.heads": 2, "data.image_size": "16x24"}
    return load_recipe("beit-vit-micro-cifar", {**toy, "method.target": keys}, environment={})


def silent(line: str) -> None:
    assert line


def test_words_are_fitted_on_the_pictures_and_installed() -> None:
    recipe, source = beit(), open_source("photos", limit=30)
    words = codebook.fit(recipe, source, silent)
    assert words.centres.shape == (12, 108)
    assert len(words.centres.unique(dim=0)) == 12
    assert (words.about["target"]["kind"], words.about["patch"], words.about["pictures"]) == ("hog", [4, 4], 30)
    method = build_method(recipe)
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    assert not method.branches[0].target(images, None).any()  # empty words: all patches are the first
    codebook.install(words, method)
    ids = method.branches[0].target(images, None)
    assert ids.shape == (2, 24, 1)
    assert len(ids.unique()) > 1


def test_the_same_seed_fits_the_same_words() -> None:
    recipe, source = beit(), open_source("photos", limit=10)
    first, same, other = (codebook.fit(recipe, source, silent, seed).centres for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("over", ["pixels", "pixels-norm", "hog-l2", "untrained:test_vit"])
def test_words_over_any_vector_target(over: str, tmp_path: Path) -> None:
    out = tmp_path / "words.safetensors"
    recipe = "beit-vit-micro-cifar"
    commands.codebook("photos", out, recipe=recipe, target=over, vocabulary=5, limit=8, quiet=True)
    centres, about = read_codebook(out)
    assert centres.shape[0] == 5
    assert about["target"]["kind"] == {"u": "features", "h": "hog", "p": "pixels"}[over[0]]
    loaded = build_method(load_recipe(recipe, {"method.target.file": str(out)}, environment={}))
    target = loaded.branches[0].target
    assert isinstance(target, Codebook)
    assert torch.equal(target.centres, centres)


def spoiled(folder: Path, bad: int) -> Path:
    """Twelve images of 12 bits in files of 16, and some files that are none."""
    folder.mkdir()
    for number in range(12):
        values = np.random.default_rng(number).integers(0, 4096, (32, 32)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number:02}.png")
    for number in range(bad):
        (folder / f"bad{number}.png").write_bytes(b"x")
    return folder


def test_bad_images_are_named_and_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys: dict[str, Any] = {"recipe": "beit-vit-micro-cifar", "vocabulary": 4}
    out = tmp_path / "words"
    commands.codebook(str(spoiled(tmp_path / "one", 1)), out, **keys)
    assert "skipped " in (said := capsys.readouterr().out)
    assert "bad0.png: not a picture in a known format" in said
    assert read_codebook(out)[1]["pictures"] == 12
    with pytest.raises(
        UserError, match=r"at least 4 of 21 images of .*many cannot be used for the codebook .*--exclude"
    ):
        commands.codebook(str(spoiled(tmp_path / "many", 9)), tmp_path / "no", **keys)
    assert not (tmp_path / "no").exists()


def test_deep_images_are_read_as_a_run_reads_them(tmp_path: Path) -> None:
    """12 bits in 16: words of pixels reach over the whole range, not over its first sixteenth."""
    keys: dict[str, Any] = {"recipe": "beit-vit-micro-cifar", "target": "pixels", "vocabulary": 6, "quiet": True}
    source = str(spoiled(tmp_path / "deep", 0))
    for number, rule in enumerate(("auto", "[0,4095]")):
        commands.codebook(source, tmp_path / str(number), settings=[f"data.range={rule}"], **keys)
    auto, named = (read_codebook(tmp_path / name)[0] for name in "01")
    assert torch.equal(auto, named)
    assert float(auto.std()) > 0.1


def test_more_words_than_patches_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        commands.codebook("photos", tmp_path / "w", recipe="beit-vit-micro-cifar", vocabulary=4096, limit=1, quiet=True)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "words.safetensors"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"exists already; choose another --out$"):
        commands.codebook("photos", out, recipe="beit-vit-micro-cifar")
    assert out.read_text() == "mine"


def test_a_run_finds_its_words_where_it_was_moved_to(tmp_path: Path) -> None:
    run = commands.pretrain(
        "beit-vit-micro-cifar", {"data.source": "photos"}, out=tmp_path / "a", smoke=True, quiet=True
    )
    moved = run.rename(tmp_path / "b")
    _, recipe = open_run(moved)
    target = build_method(recipe).branches[0].target
    assert isinstance(target, Codebook)
    assert torch.equal(target.centres, read_codebook(moved / codebook.FILE)[0])


def test_words_stay_the_same_where_images_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed reads them from its folder; one that goes on must have the same."""
    found: list[Tensor] = []

    def watched(old: Trainer, new: Trainer, *sizes: Any) -> None:
        found.extend(each.model.branches[0].target.centres for each in (old, new))  # type: ignore[union-attr, index]
        hand_over(old, new, *sizes)

    monkeypatch.setattr(session, "hand_over", watched)
    keys = {"data.source": "photos", "data.image_size": 24, "progress.sizes": [16, 24]}
    run = commands.pretrain("beit-vit-micro-cifar", keys, out=tmp_path / "a", smoke=True, quiet=True)
    words = read_codebook(run / codebook.FILE)[0]
    assert len(found) == 2
    assert all(torch.equal(centres, words) for centres in found)


def test_stored_ids_by_recipe(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 24), dtype=torch.uint8)
    ids = torch.randint(0, 12, (3, 24))
    save_ids(tmp_path / "ids", content_key(images), ids, 12)
    method = build_method(beit(tokenizer="stored", file=str(tmp_path / "ids")))
    target = method.branches[0].target
    assert isinstance(target, StoredIds)
    assert torch.equal(target(images, None)[..., 0], ids)
    assert torch.isfinite(method(images)["total"])
    with pytest.raises(UserError, match="holds no ids for some of these crops"):
        target(images.flip(-1), None)
