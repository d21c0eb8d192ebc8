"""Pre-training and what a run of it leaves: pictures, report, export."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from remask.build import codebook as codebooks
from remask.build.pretraining import build_method
from remask.commands.paths import anchored, paths_or_texts
from remask.commands.unusable import Unusable, bounded
from remask.errors import UserError
from remask.evaluation.figures.reconstruction import reconstruct as draw_pictures
from remask.files.escaping import printable, quoted
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.interop.export import export_backbone
from remask.recipe import Recipe, choose, dump
from remask.report import write_report
from remask.report.equation import equation
from remask.runs.knn import batches
from remask.runs.reopen import open_run, trained
from remask.runs.session import train
from remask.seeds import generator
from remask.training.data_record import CARE, Care
from remask.training.distributed import World, joined, may_restart, restarted
from remask.training.run_folder import RunFolder, find, refuse_bytes, refuse_existing
from remask.types import Size


@paths_or_texts
def pretrain(
    recipe: str | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    settings: Sequence[str] = (),
    out: Path | None = None,
    smoke: bool = False,
    quiet: bool = False,
    verify_data: bool = False,
) -> Path:
    """Train a recipe in a new run folder and return it. Everything is checked before the folder is made.

    recipe     a name or file, or a whole recipe, which the next four do not change
    overrides  recipe keys by their dotted path     method    "mae+dmjd" and the like
    settings   texts "key=value", as from --set     smoke     shrink to seconds
    verify_data   hash the contents of all pictures, so that a resume can compare them
    """
    if isinstance(recipe, str):
        recipe = choose(recipe, overrides, method=method, settings=settings, smoke=smoke)
    chosen = anchored(recipe)
    if out is None and may_restart():
        raise UserError("give --out: processes that torchrun starts anew have to find the run they go on with")
    with joined(chosen.runtime.device) as world:
        path = world.first(lambda: out or Path("runs") / f"{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        goes_on = world.first(lambda: _goes_on(path, chosen))
        train(open_run(path)[1] if goes_on else chosen, path, quiet, not goes_on, world, Care(verify=verify_data))
    return _finish(path, quiet, world)


def _goes_on(path: Path, recipe: Recipe) -> bool:
    """Whether this very run was begun, and torchrun is to start it anew as often as it dies: then it goes on.

    A machine that joins in anew counts no restarts, so that being allowed some is what decides. Raises UserError for
    anything else in the way.
    """
    file, run = path / "recipe.toml", RunFolder(path)
    begun = may_restart() and file.is_file() and file.read_text(encoding="utf-8") == dump(_as_kept(recipe, path))
    if begun and (restarted() or run.read("status.json").get("state") != "finished"):
        try:
            find(run)
        except UserError:  # it had not come to its first checkpoint
            run.write("status.json", {"state": "failed", "step": 0})
        else:
            return True
    refuse_existing(path)
    return False


def _as_kept(recipe: Recipe, path: Path) -> Recipe:
    """A recipe as the run in a folder keeps it, if it is its: with the codebook and pixel rule found at its start."""
    if recipe.method.target.unfitted:
        recipe = codebooks.with_file(recipe, codebooks.FILE)
    data, found = recipe.data, open_run(path)[1].data
    settled: dict[str, Any] = {"range": found.range} if data.range == "auto" else {}
    settled |= {"mean": found.mean, "std": found.std} if data.measured else {}
    return recipe.model_copy(update={"data": data.model_copy(update=settled)})


@paths_or_texts
def resume(path: Path, *, device: str | None = None, quiet: bool = False, care: Care = CARE) -> Path:
    """Continue a run from its last checkpoint; the device may be another one.

    Raises UserError, before anything is written, where the data is not what the run was trained on.
    """
    run, recipe = open_run(path)
    if run.read("status.json").get("state") == "finished" and not restarted():
        raise UserError(f"{path} is finished: probe it with remask probe {quoted(path)} --data SRC, or start a new run")
    if device:
        recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": device})})
    with joined(recipe.runtime.device) as world:
        train(recipe, path, quiet, False, world, care)
    return _finish(path, quiet, world)


def _finish(path: Path, quiet: bool, world: World) -> Path:
    """What a finished run leaves besides its checkpoints: export, pictures and report. One process makes them."""
    if not world.main:
        return path
    exported = export(path)
    reconstruct(path, quiet=True)  # what cannot be used was named in training
    page = report(path)
    if not quiet:
        print(f"backbone  {printable(exported)} (load_example.py shows how to use it)\nreport    {printable(page)}")
        print(f"next      remask probe {quoted(path)} --data LABELLED --val LABELLED")
    return path


@paths_or_texts
def export(path: Path, out: Path | None = None, *, image_size: Size | None = None, checkpoint: str = "last") -> Path:
    """Write a run's backbone for images of `image_size` pixels, by default the run's own; returns the folder."""
    run, recipe = open_run(path)
    size, folder = image_size or recipe.data.image_size, out or run.path / "export"
    refuse_bytes(folder)
    backbone = trained(run, recipe, checkpoint, size).backbone
    export_backbone(backbone, folder, size, recipe.data.mean, recipe.data.std)
    return folder


@paths_or_texts
def reconstruct(
    path: Path,
    images: str | None = None,
    *,
    out: Path | None = None,
    count: int = 4,
    seed: int = 0,
    checkpoint: str = "last",
    exclude: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Draw originals, masked views, predictions and covered unions of some pictures into a PNG; returns its path."""
    run, recipe = open_run(path)
    method = trained(run, recipe, checkpoint).eval()
    data = recipe.data
    if images is None:
        source = open_source(data.source or "photos", limit=data.limit, exclude=[*data.exclude, *exclude])
    else:
        source = open_source(images, exclude=exclude)
    some = Subset(source, _spread(len(source), count))
    bad = Unusable(lambda line: None if quiet else print(line, file=sys.stderr))
    batch = next(bounded(some, batches(recipe, some, count, report=bad)))  # where none can be used, that is raised
    views = method.draw(batch.images, generator(seed, "pictures"))
    target = out or run.path / "pictures" / "reconstruction.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(draw_pictures(method, batch.images, views))
    return target


def _spread(total: int, count: int) -> list[int]:
    """`count` numbers over the whole source: neighbours in a folder often look alike."""
    return [i * total // min(count, total) for i in range(min(count, total))]


@paths_or_texts
def report(path: Path) -> Path:
    """Write RUN/report.html and return its path."""
    _, recipe = open_run(path)
    with torch.device("meta"):
        text = equation(build_method(recipe), recipe.data.image_size)
    return write_report(path, dump(recipe), text)


__all__ = ["export", "pretrain", "reconstruct", "report", "resume"]
