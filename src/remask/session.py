"""One session of training: a recipe's parts put together, its phases one after the other, bad pictures named."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from remask import codebook as codebooks
from remask.build import build_loader, build_method, build_trainer, scaling_of
from remask.data_sources import CODEBOOK, of_pretraining
from remask.errors import UserError
from remask.evaluation.features import extract
from remask.evaluation.knn import weighted_knn
from remask.files.escaping import on_one_line, printable
from remask.images.device import no_decoder
from remask.images.fingerprint import of_file
from remask.images.hold_out import hold_out, parts
from remask.images.left_out import notes as left_out
from remask.images.loader import Batch, Loader, TooManyBad, iterate
from remask.images.sources import Source, open_second, open_source
from remask.images.subset import Subset
from remask.images.transforms import CentreCrop
from remask.method import Method
from remask.pixel_rule import with_pixel_rule
from remask.planning import settle
from remask.progressive import Phase, hand_over, phase_of, phases
from remask.recipe import Recipe, dump, method_label
from remask.report.equation import equation
from remask.seeds import generator
from remask.starting import loaded_lines
from remask.training.checkpoint import RunFolder, position
from remask.training.data_record import CARE, Care, Checked, DataRecord, resumed
from remask.training.distributed import ALONE, World
from remask.training.environment import environment
from remask.training.progress import Console, console
from remask.training.runtime import Runtime, resolve
from remask.training.sharding import whole
from remask.training.trainer import Hook, Trainer


def train(recipe: Recipe, path: Path, quiet: bool, fresh: bool, world: World = ALONE, care: Care = CARE) -> None:
    """Build all parts, make or open the folder, and train to the end of the recipe; many processes do it together."""
    if recipe.data.source is None:
        raise UserError("no pictures to train on: give --data DIR, or a built-in set, --data photos or --data digits")
    part, run, quiet = recipe.runtime, RunFolder(path, world.main), quiet or not world.main
    runtime = resolve(part.device, recipe.optim.precision, part.compile, part.threads, world, part.parallel)
    before = None if fresh else position(run)
    say = (lambda line: None) if quiet else print
    source, probed = _opened(recipe, world)
    record = DataRecord(run, say)
    checked = world.first(lambda: record.check(of_pretraining(recipe, source, probed, say), care, fresh))
    parted, why = (None, []) if probed is None else _parted(recipe, probed, older=not fresh and run.format == 1)
    screen, said, notes = list[Console](), [*left_out(source), *why], dict[str, Any]()
    if fresh:
        recipe, line = with_pixel_rule(recipe, source)
        said.append(line)
    ahead = phases(recipe)[phase_of(recipe, before["epoch"]) if recipe.progress and before else 0 :]
    method = _built(ahead, fresh)
    said += _remarks(recipe, method, runtime)
    words = _fitted(ahead[0].recipe, source, say, world)
    bad = BadImages(path, lambda line: screen[0].say(line), world.main)

    def trainer_of(phase: Phase, method: Method) -> Trainer:
        if words:
            codebooks.install(words, method)
        loader = build_loader(phase.recipe, source, runtime, method, report=bad, remark=bad.beyond)
        hooks = [] if world.alone else [_bad_of_all(loader, world)]
        hooks += [_knn_hook(phase.recipe, method, runtime, *parted, bad)] if parted else []
        made = build_trainer(phase.recipe, method, loader, runtime, run, hooks, phase.end)
        made.notes = notes
        if phase.recipe.runtime.accumulate == "auto":
            said.append(settle(phase.recipe, made, runtime))
        return made

    trainer = trainer_of(ahead[0], method)  # which may find fault: the folder comes after it
    if before is None:
        checked = world.first(lambda: _create(path, recipe, world, words, record, checked))
    else:
        said += resumed(trainer, record, checked, care)
    notes["data"] = checked.digests
    screen.append(console(trainer.schedule.steps, recipe.name, quiet))
    on, to = f"{len(source)} images of {printable(source.name)}", printable(path)
    screen[0].say(f"{method_label(recipe)} on {on}, {runtime.describe()} → {to}")
    for line in [*said, equation(method, ahead[0].recipe.data.image_size)]:
        screen[0].say(line)
    try:
        _through(ahead, trainer, trainer_of, screen[0])
    except TooManyBad as error:
        bad.write(error.bad)
        raise


def _opened(recipe: Recipe, world: World) -> tuple[Source, Source | None]:
    """The pictures, and the labelled ones of kNN on the way."""
    with world.in_turn():
        source = open_source(str(recipe.data.source), limit=recipe.data.limit, exclude=recipe.data.exclude)
        exclude = recipe.data.exclude
        probed = open_second(recipe.probe.source, labelled=True, exclude=exclude) if recipe.probe else None
    return source, probed


def _fitted(recipe: Recipe, source: Source, say: Callable[[str], None], world: World) -> codebooks.Words | None:
    """The codebook that a recipe has none of yet; None where it needs none."""
    if not recipe.method.target.unfitted:
        return None
    return world.first(lambda: codebooks.fit(recipe, source, say, recipe.seed))


def _built(ahead: Sequence[Phase], fresh: bool) -> Method:
    """The method of the first phase; those of the others are tried without memory, to meet a misfit now."""
    for phase in ahead[1:]:
        with torch.device("meta"):
            build_method(phase.recipe)
    return build_method(ahead[0].recipe, start=fresh)


def _remarks(recipe: Recipe, method: Method, runtime: Runtime) -> list[str]:
    """What a person should know at the beginning: which weights were loaded, and what goes another way than asked."""
    said = loaded_lines(method)
    if recipe.data.decode == "cuda" and (why := no_decoder(runtime.device, recipe.data.channels)):
        said.append(f'data.decode "cuda": {why}, so JPEGs are decoded on the CPU')
    return said


def _through(
    ahead: Sequence[Phase], trainer: Trainer, trainer_of: Callable[[Phase, Method], Trainer], screen: Console
) -> None:
    """Train one phase after the other; where images grow, the next size's trainer takes over."""
    trainer.train(screen)
    for before, after in itertools.pairwise(ahead):
        if trainer.step >= trainer.schedule.steps:  # max_steps ended the run
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
    """Make the folder, with its codebook and the record of its data; returns `checked` with what was added."""
    kept = codebooks.with_file(recipe, codebooks.FILE) if words else recipe
    RunFolder.create(path, dump(kept), {**environment(), "processes": world.size})
    if words:
        words.save(path / codebooks.FILE)
        fitted = of_file(str(path / codebooks.FILE))
        record.add(CODEBOOK, fitted, codebooks.FILE)
        checked = checked._replace(digests={**checked.digests, CODEBOOK: fitted.digest()})
    record.keep([], {})
    return checked


SAID = 3
"""Pictures beyond data.range that are named on the screen."""


class BadImages:
    """Names every unusable picture once, on the screen and in RUN/bad_images.txt, also over several sessions.

    writes   False in all processes of a run but one: that one is told of their pictures
    """

    def __init__(self, path: Path, say: Callable[[str], None], writes: bool = True) -> None:
        self.path, self.say, self.writes = path / "bad_images.txt", say, writes
        self.known = set(self.path.read_text(encoding="utf-8").splitlines()) if self.path.is_file() else set[str]()

    def __call__(self, line: str) -> None:
        if self.writes and (line := on_one_line(line)) not in self.known:
            self.say(f"skipped {line}")
            self.keep([line])

    def keep(self, lines: Iterable[str]) -> None:
        """Write them into the file alone."""
        fresh = [line for line in dict.fromkeys(map(on_one_line, lines)) if line not in self.known]
        self.known.update(fresh)
        if fresh and self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in fresh))

    def beyond(self, line: str) -> None:
        """A picture with values outside data.range, which is used as it is: named in RUN/beyond_range.txt."""
        file = self.path.with_name("beyond_range.txt")
        known, line = file.read_text(encoding="utf-8").splitlines() if file.is_file() else [], on_one_line(line)
        if not self.writes or line in known:
            return
        if len(known) < SAID:
            self.say(f"{line}; it is used as it is")
        elif len(known) == SAID:
            self.say(f"more pictures reach beyond data.range: {printable(file)} names them all")
        with open(file, "a", encoding="utf-8") as out:
            out.write(line + "\n")

    def write(self, bad: Mapping[str, str]) -> None:
        """What ends the run is named by the process that met it."""
        self.writes = True
        for where, reason in bad.items():
            self(f"{where}: {reason}")


def _bad_of_all(loader: Loader, world: World) -> Hook:
    """After an epoch every process knows what any of them could not use, and all stop where it is too much."""

    def hook(epoch: int) -> dict[str, float]:
        for bad in world.gathered(loader.unusable):
            loader.learn(bad)
        return {}

    return hook


def _parted(recipe: Recipe, source: Source, older: bool) -> tuple[tuple[Subset, Subset], list[str]]:
    """The pictures of [probe] that vote and those that are asked, 5,000 at most, and lines for the start.

    older   a run that was started before classes were looked at
    """
    assert recipe.probe
    order = torch.randperm(len(source), generator=generator(0, "probe on the way"))[:5000].tolist()
    held_out = hold_out(order, None if older else source.labels)
    voters, asked = parts(source, held_out, "another set to --probe")
    said, k = [*asked.remarks], recipe.probe.k
    if len(voters) < k:
        said.append(f"kNN on the way: {len(voters)} pictures of {source.name} vote, not {k}, as there are no more")
    return (voters, asked), said


def _knn_hook(
    recipe: Recipe, method: Method, runtime: Runtime, voters: Subset, asked: Subset, report: Callable[[str], None]
) -> Hook:
    """kNN accuracy on [probe].source every few epochs: four fifths vote, one fifth is asked.

    Of many processes the main one asks; where weights are in pieces, of a whole copy.
    """
    assert recipe.probe
    part = recipe.probe

    def hook(epoch: int) -> dict[str, float]:
        if epoch % part.every_epochs and epoch != recipe.optim.epochs:
            return {}
        asked_method = method if runtime.world.alone or runtime.parallel == "ddp" else _copy(recipe, method, runtime)
        if not runtime.world.main:
            return {}
        known, query = (_features(asked_method, subset, recipe, runtime, report) for subset in (voters, asked))
        return {"probe/knn": weighted_knn(*known, *query, k=min(part.k, len(known[1])))}

    return hook


def _copy(recipe: Recipe, method: Method, runtime: Runtime) -> Method:
    """A whole method on the main process's device; the others give their pieces."""
    state, copy = whole(method.state_dict(), runtime.world.main), build_method(recipe, start=False)
    if runtime.world.main:
        copy.load_state_dict(state)
    return copy.to(runtime.device)


def _features(
    method: Method, source: Source, recipe: Recipe, runtime: Runtime, report: Callable[[str], None]
) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = extract(method.backbone, batches(recipe, source, report=report), device=runtime.device)
    assert labels is not None
    return features, labels


def batches(
    recipe: Recipe, source: Source, size: int = 256, report: Callable[[str], None] | None = None
) -> Iterator[Batch]:
    """Centre crops of a source, in order, as a recipe's backbone sees them; `report` gets a line for each bad one."""
    data = recipe.data
    return iterate(
        source, CentreCrop(data.image_size), size, channels=data.channels, max_bad=max(data.max_bad, 0.01),
        scaling=scaling_of(data), report=report,
    )  # fmt: skip


__all__ = ["BadImages", "batches", "train"]
