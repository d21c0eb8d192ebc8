"""One session of training: builds a recipe's objects, runs its phases in order, reports unusable images."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from remask.build import codebook as codebooks
from remask.build.pixel_rule import with_pixel_rule
from remask.build.pretraining import build_method
from remask.build.starting import loaded_lines
from remask.build.training import build_loader, build_trainer
from remask.files.escaping import printable
from remask.images.loading.device_crops import no_decoder
from remask.images.loading.loader import TooManyBad
from remask.images.sources.fingerprint import of_file
from remask.images.sources.left_out import notes as left_out
from remask.images.sources.opening import Source, open_second, open_source
from remask.method import Method, equation
from remask.planning.micro_batches import choose_micro_batches
from remask.recipe import Recipe, dump, method_label
from remask.runs.bad_images import BadImages, bad_of_all
from remask.runs.checks import require_source
from remask.runs.data_sources import CODEBOOK, of_pretraining
from remask.runs.knn import knn_hook, knn_split
from remask.runs.progressive import Phase, hand_over, phase_of, phases
from remask.training.checkpoint import position
from remask.training.data_record import CARE, Care, Checked, DataRecord, resumed
from remask.training.distributed import ALONE, World
from remask.training.environment import environment
from remask.training.progress import Console, console
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime, resolve
from remask.training.trainer import Trainer


def train(recipe: Recipe, path: Path, quiet: bool, fresh: bool, world: World = ALONE, care: Care = CARE) -> None:
    """Start a new run in `path` (`fresh`) or resume the one there, and train to the end of the recipe. Collective."""
    require_source(recipe)
    settings, run, quiet = recipe.runtime, RunFolder(path, world.main), quiet or not world.main
    device, precision = settings.device, recipe.optim.precision
    runtime = resolve(device, precision, settings.compile, settings.threads, world, settings.parallel)
    before = None if fresh else position(run)
    say = (lambda line: None) if quiet else print
    source, probed = _opened(recipe, world)
    record = DataRecord(run, say)
    checked = world.first(lambda: record.check(of_pretraining(recipe, source, probed, say), care, fresh))
    sets, why = (None, []) if probed is None else knn_split(recipe, probed, older=not fresh and run.format == 1)
    screen, lines, notes = list[Console](), [*dict.fromkeys([*left_out(source), *why])], dict[str, Any]()
    if fresh:
        recipe, line = with_pixel_rule(recipe, source)
        lines.append(line)
    ahead = phases(recipe)[phase_of(recipe, before["epoch"]) if recipe.progress and before else 0 :]
    method = _built(ahead, fresh)
    lines += _remarks(recipe, method, runtime)
    words = _fit_codebook(ahead[0].recipe, source, say, world)
    bad = BadImages(path, lambda line: screen[0].say(line), world.main)

    def trainer_of(phase: Phase, method: Method) -> Trainer:
        if words:
            codebooks.install(words, method)
        loader = build_loader(phase.recipe, source, runtime, method, report=bad, remark=bad.beyond)
        hooks = [] if world.alone else [bad_of_all(loader, world)]
        hooks += [knn_hook(phase.recipe, method, runtime, *sets, bad)] if sets else []
        new = build_trainer(phase.recipe, method, loader, runtime, run, hooks, phase.end)
        new.notes = notes
        if phase.recipe.runtime.accumulate == "auto":
            lines.append(choose_micro_batches(phase.recipe, new, runtime))
        return new

    trainer = trainer_of(ahead[0], method)  # may raise UserError: make the folder only afterwards
    if before is None:
        checked = world.first(lambda: _create(path, recipe, world, words, record, checked))
    else:
        lines += resumed(trainer, record, checked, care)
    notes["data"] = checked.digests
    screen.append(console(trainer.schedule.steps, recipe.name, quiet))
    on, to = f"{len(source)} images of {printable(source.name)}", printable(path)
    screen[0].say(f"{method_label(recipe)} on {on}, {runtime.describe()} → {to}")
    for line in [*lines, equation(method, ahead[0].recipe.data.image_size)]:
        screen[0].say(line)
    try:
        _through(ahead, trainer, trainer_of, screen[0])
    except TooManyBad as error:
        bad.write(error.bad)
        raise


def _opened(recipe: Recipe, world: World) -> tuple[Source, Source | None]:
    """The source of images, and the labelled source of kNN probing."""
    with world.in_turn():
        source = open_source(str(recipe.data.source), limit=recipe.data.limit, exclude=recipe.data.exclude)
        exclude = recipe.data.exclude
        probed = open_second(recipe.probe.source, labelled=True, exclude=exclude) if recipe.probe else None
    return source, probed


def _fit_codebook(recipe: Recipe, source: Source, say: Callable[[str], None], world: World) -> codebooks.Words | None:
    """A new codebook, fitted by the main process; None if the recipe needs none."""
    if not recipe.method.target.unfitted:
        return None
    return world.first(lambda: codebooks.fit(recipe, source, say, recipe.seed))


def _built(ahead: Sequence[Phase], fresh: bool) -> Method:
    """The method of the first phase; builds those of later phases on "meta", so that errors show now."""
    for phase in ahead[1:]:
        with torch.device("meta"):
            build_method(phase.recipe)
    return build_method(ahead[0].recipe, start=fresh)


def _remarks(recipe: Recipe, method: Method, runtime: Runtime) -> list[str]:
    """Lines for the start of the log: the loaded weights, and a decoder that is unavailable."""
    lines = loaded_lines(method)
    if recipe.data.decode == "cuda" and (why := no_decoder(runtime.device, recipe.data.channels)):
        lines.append(f'data.decode "cuda": {why}, so JPEGs are decoded on the CPU')
    return lines


def _through(
    ahead: Sequence[Phase], trainer: Trainer, trainer_of: Callable[[Phase, Method], Trainer], screen: Console
) -> None:
    """Train the phases in order; each trainer hands over to that of the next image size."""
    trainer.train(screen)
    for before, after in itertools.pairwise(ahead):
        if trainer.global_step >= trainer.schedule.steps:  # max_steps ended the run
            return
        sizes = before.recipe.data.image_size, after.recipe.data.image_size
        following = trainer_of(after, build_method(after.recipe, start=False))
        hand_over(trainer, following, *sizes)
        screen.say(f"after epoch {before.end} images grow to {sizes[1][0]}×{sizes[1][1]} px")
        trainer = following
        trainer.train(screen)


def _create(
    path: Path, recipe: Recipe, world: World, words: codebooks.Words | None, record: DataRecord, checked: Checked
) -> Checked:
    """Make the run folder, with its codebook and data record; returns `checked` with the codebook's digest."""
    saved = codebooks.with_file(recipe, codebooks.FILE) if words else recipe
    RunFolder.create(path, dump(saved), {**environment(), "processes": world.size})
    if words:
        words.save(path / codebooks.FILE)
        codebook_file = of_file(str(path / codebooks.FILE))
        record.add(CODEBOOK, codebook_file, codebooks.FILE)
        checked = checked._replace(digests={**checked.digests, CODEBOOK: codebook_file.digest()})
    record.keep([], {})
    return checked


__all__ = ["train"]
