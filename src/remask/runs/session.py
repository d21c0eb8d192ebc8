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
from remask.files.locking import lock_run
from remask.images.loading.device_crops import no_decoder
from remask.images.loading.loader import TooManyBad
from remask.images.sources.fingerprint import of_file
from remask.images.sources.left_out import notes as left_out
from remask.images.sources.opening import Source, open_second, open_source
from remask.method import Method, equation
from remask.planning.micro_batches import choose_micro_batches
from remask.recipe import Recipe, dump, method_label
from remask.recipe.used import learns_from_average
from remask.runs.bad_images import BadImages
from remask.runs.checks import require_source
from remask.runs.collapse import collapse_guard
from remask.runs.data_sources import CODEBOOK, of_pretraining
from remask.runs.knn import knn_hook, knn_split
from remask.runs.progressive import Phase, hand_over, phase_of, phases
from remask.training.checkpoint import starting_point, state_of
from remask.training.data_record import CARE, Care, Checked, DataRecord, resumed
from remask.training.distributed import ALONE, World
from remask.training.environment import environment
from remask.training.gathering import bad_of_all
from remask.training.launcher import restart_patience
from remask.training.progress import console
from remask.training.run_folder import RunFolder
from remask.training.runtime import Runtime, resolve
from remask.training.trainer import Trainer


def train(
    recipe: Recipe, path: Path, quiet: bool, fresh: bool, world: World = ALONE, care: Care = CARE,
    checkpoint: str | None = None, ended: str = "finished",
) -> None:  # fmt: skip
    """Start a new run in `path` (`fresh`) or resume the one there, and train to the end of the recipe. Collective.

    checkpoint   to resume from: exactly this one; None: the last, or the newest that is intact
    ended        the run's state when all steps are done
    Only this process may write the run until it unlocks it. Raises UserError if another one does.
    """
    require_source(recipe)
    if not fresh:
        world.first(lambda: lock_run(path, patience=restart_patience()))
    session = Session(recipe, path, quiet or not world.main, fresh, world, care, checkpoint)
    session.begin()
    try:
        session.train(ended)
    except TooManyBad as error:
        session.bad.write(error.bad)
        raise


class Session:
    """A recipe's objects, made so that whatever may be wrong with them is met before anything is written.

    lines   what a person is told at the beginning, gathered while the objects are made
    notes   what every checkpoint carries beside the state: the digests of the data
    """

    def __init__(
        self, recipe: Recipe, path: Path, quiet: bool, fresh: bool, world: World, care: Care, checkpoint: str | None
    ) -> None:
        self.path, self.quiet, self.fresh, self.world, self.care = path, quiet, fresh, world, care
        self.run = RunFolder(path, world.main)
        self.runtime = runtime_of(recipe, world)
        self.start = None if fresh else world.first(lambda: starting_point(self.run, checkpoint))
        self.position = state_of(self.start) if self.start else None
        say: Callable[[str], None] = (lambda line: None) if quiet else print
        self.source, probed = _open_sources(recipe, world)
        self.record = DataRecord(self.run, say)
        self.checked = world.first(
            lambda: self.record.check(of_pretraining(recipe, self.source, probed, say), care, fresh, bool(self.start))
        )
        self.probe_split, reasons = None, list[str]()
        if probed is not None:
            self.probe_split, reasons = knn_split(recipe, probed, older=not fresh and self.run.format == 1)
        self.lines, self.notes = [*dict.fromkeys([*left_out(self.source), *reasons])], dict[str, Any]()
        if fresh:
            recipe, line = with_pixel_rule(recipe, self.source)
            self.lines.append(line)
        self.recipe = recipe
        reached = phase_of(recipe, self.position["epoch"]) if recipe.progress and self.position else 0
        self.phases = phases(recipe)[reached:]
        self.method = _first_method(self.phases, self.start is None)
        self.lines += _remarks(recipe, self.method, self.runtime)
        self.words = _fit_codebook(self.phases[0].recipe, self.source, say, world)
        self.bad = BadImages(path, lambda line: self.console.say(line), world.main)
        self.trainer = self.trainer_of(self.phases[0], self.method)
        self.console = console(self.trainer.schedule.steps, recipe.name, quiet)

    def begin(self) -> None:
        """Make the folder, or go to where the run was; then say what is trained on what."""
        if self.fresh:
            self.checked = self.world.first(self._create)
        else:
            self.lines += resumed(self.trainer, self.record, self.checked, self.care, self.start)
        self.notes["data"] = self.checked.digests
        images = f"{len(self.source)} images of {printable(self.source.name)}"
        where = f"{self.runtime.describe()} → {printable(self.path)}"
        self.console.say(f"{method_label(self.recipe)} on {images}, {where}")
        for line in [*self.lines, equation(self.method, self.phases[0].recipe.data.image_size)]:
            self.console.say(line)

    def train(self, ended: str) -> None:
        """Train the phases in order; each trainer hands over to that of the next image size."""
        trainer = self.trainer
        trainer.train(self.console, ended=ended)
        for before, after in itertools.pairwise(self.phases):
            if trainer.global_step >= trainer.schedule.steps:  # max_steps ended the run
                return
            sizes = before.recipe.data.image_size, after.recipe.data.image_size
            following = self.trainer_of(after, build_method(after.recipe, start=False))
            hand_over(trainer, following, *sizes)
            self.console.say(f"after epoch {before.end} images grow to {sizes[1][0]}×{sizes[1][1]} px")
            trainer = following
            trainer.train(self.console, ended=ended)

    def trainer_of(self, phase: Phase, method: Method) -> Trainer:
        """The trainer of a phase, with what happens between its steps."""
        recipe, runtime, world = phase.recipe, self.runtime, self.world
        if self.words:
            codebooks.install(self.words, method)
        loader = build_loader(recipe, self.source, runtime, method, report=self.bad, remark=self.bad.beyond)
        hooks = [] if world.alone else [bad_of_all(loader)]
        hooks += [knn_hook(recipe, method, runtime, *self.probe_split, self.bad)] if self.probe_split else []
        hooks += [collapse_guard(recipe, method, runtime, self.source)] if learns_from_average(recipe) else []
        trainer = build_trainer(recipe, method, loader, runtime, self.run, hooks, phase.end)
        trainer.notes = self.notes
        if recipe.runtime.accumulate == "auto":
            self.lines.append(choose_micro_batches(recipe, trainer, runtime))
        return trainer

    def _create(self) -> Checked:
        """Make the run folder, with its codebook and data record; returns `checked` with the codebook's digest."""
        recipe, words, checked = self.recipe, self.words, self.checked
        stored = codebooks.with_file(recipe, codebooks.FILE) if words else recipe
        run = RunFolder.reserve(self.path)
        if words:
            words.save(self.path / codebooks.FILE)
            codebook_file = of_file(str(self.path / codebooks.FILE))
            self.record.add(CODEBOOK, codebook_file, codebooks.FILE)
            checked = checked._replace(digests={**checked.digests, CODEBOOK: codebook_file.digest()})
        self.record.keep([], {})
        run.begin(dump(stored), {**environment(), "processes": self.world.size})
        return checked


def runtime_of(recipe: Recipe, world: World) -> Runtime:
    """Where and how the recipe's numbers are computed, in this process."""
    settings = recipe.runtime
    precision, parallel = recipe.optim.precision, settings.parallel
    return resolve(settings.device, precision, settings.compile, settings.threads, world, parallel)


def _open_sources(recipe: Recipe, world: World) -> tuple[Source, Source | None]:
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


def _first_method(ahead: Sequence[Phase], fresh: bool) -> Method:
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


__all__ = ["train"]
