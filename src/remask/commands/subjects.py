"""The network that a command examines: a run's, or any backbone that a specification names."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from remask.backbones import Backbone
from remask.commands.refusals import check_subject
from remask.commands.unusable_images import refuse_too_many
from remask.evaluation.sharing import readers
from remask.files.paths import home_expanded
from remask.images.levels import FULL, Levels, rule_of
from remask.images.loading.loader import Batch, Loader, in_order
from remask.images.sources.opening import Source
from remask.images.tools.measuring import Rule, measure
from remask.images.transforms import CentreCrop
from remask.interop.loaded import loaded_of
from remask.interop.start import start
from remask.runs.opening import open_run
from remask.runs.reopen import trained, untrained
from remask.seeds import seeded
from remask.training.distributed import joined_world
from remask.training.gathering import all_rows, unusable_of_all
from remask.training.progress import Watch
from remask.training.run_folder import is_task_run
from remask.training.runtime import resolve
from remask.types import Size


class ModelOptions(NamedTuple):
    """How the network is read and run.

    checkpoint   "last", or a kept one such as "epoch-0100"
    image_size   pixels of the images; the network's own by default
    heads        of attention, where a file does not tell them
    device       "auto", "cpu", "cuda", "cuda:N" or "mps"
    normalise    "imagenet", "half" or "clip", where a file does not tell
    range        of images deeper than 8 bits, as data.range; a run's own by default, else "auto"
    """

    checkpoint: str = "last"
    image_size: Size | None = None
    heads: int | Sequence[int] | None = None
    device: str = "auto"
    normalise: str | None = None
    range: Rule | None = None


MODEL_DEFAULTS = ModelOptions()


class Subject(NamedTuple):
    """A backbone under examination. `folder` is the run's, where it comes from one; `quiet` if nothing else is said."""

    name: str
    backbone: Backbone
    size: Size
    channels: int
    folder: Path | None
    options: ModelOptions
    max_bad: float = 0.01
    quiet: bool = False

    def batches(self, source: Source, count: int = 256, report: Callable[[str], None] | None = None) -> Iterator[Batch]:
        """Centre crops of a source in order, in the network's size; `report` receives a line for each bad image.

        While processes read together a batch has this one's share of the images, and labels and numbers of all.
        """
        self.read_levels(source)
        world = readers()
        loader = in_order(
            source, CentreCrop(self.size), count * world.size, channels=self.channels, max_bad=self.max_bad,
            scaling=self.backbone.normalise.scaling, share=world.share, report=report,
        )  # fmt: skip
        return refuse_too_many(source, self.of_all(loader, 0))

    def of_all(self, loader: Loader, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, as `batches` has them while processes read together."""
        if readers().alone:
            yield from loader.epoch(epoch)
            return
        classes = None if loader.source.labels is None else torch.tensor(loader.source.labels)
        for batch in loader.shares(epoch):
            index = all_rows(batch.index)
            images = batch.images if len(batch.index) else batch.images.new_empty(0, self.channels, *self.size)
            if len(index):
                yield Batch(images, None if classes is None else classes[index], index)
        unusable_of_all(loader)

    def watched(self, watch: Watch, source: Source, title: str, report: Callable[[str], None]) -> Iterator[Batch]:
        """`batches` with a progress bar."""
        return watch.over(self.batches(source, report=report), len(source), title)

    def read_levels(self, source: Source) -> None:
        """Fix how images deeper than 8 bits are read: as the run reads its own, or by a sample of this source.

        What was fixed for the first source holds for the others.
        """
        normalise = self.backbone.normalise
        if normalise.settled:
            return
        own = None if normalise.levels == FULL and not self.folder else rule_of(normalise.levels)
        rule = self.options.range or (own if isinstance(own, str | None) else (own[0], own[1])) or "auto"
        found = measure(source, self.channels, rule)
        normalise.read_by(Levels.of(found.rule))
        normalise.settled = True
        if found.deep and not self.quiet:
            print(f"pixels: {found.describe(self.channels, rule)}", file=sys.stderr)

    def untrained(self) -> Any:
        """The same network untrained: a run's with the first weights it had, another's with its maker's."""
        if self.folder:
            _, recipe = open_run(self.folder)
            control: Any = untrained(recipe, self.size).backbone
        else:
            with seeded(0, "untrained"):
                control = _start(self.name, self.size, self.options, untrained=True)[0]
        control.normalise.read_by(self.backbone.normalise.levels)
        return control.to(device_of(self.options))


def open_subject(spec: str, options: ModelOptions = MODEL_DEFAULTS, quiet: bool = True) -> Subject:
    """The network of RUN, or of mae:FILE, timm:NAME and any other specification that `open_encoder` takes.

    quiet   do not say what was loaded
    Raises UserError for what is neither.
    """
    path, size, where = Path(home_expanded(spec)), options.image_size, device_of(options)
    check_subject(spec)
    if (path / "recipe.toml").is_file() and not is_task_run(path):
        run, recipe = open_run(path)
        size = size or recipe.data.image_size
        backbone: Any = trained(run, recipe, options.checkpoint, size).backbone
        bad = max(recipe.data.max_bad, 0.01)
        return Subject(path.name, backbone.to(where), size, backbone.channels, path, options, bad, quiet)
    if path.is_dir():
        spec = f"run:{spec}"
    with seeded(0, spec):  # an untrained network is the same whenever it is examined
        backbone, size = _start(spec, size, options)
    if not quiet and (loaded := loaded_of(backbone)):
        print(loaded.line, file=sys.stderr)
    return Subject(spec, backbone.to(where), size, backbone.channels, None, options, quiet=quiet)


def _start(spec: str, size: Size | None, options: ModelOptions, untrained: bool = False) -> tuple[Any, Size]:
    return start(spec, size, heads=options.heads, normalise=options.normalise, untrained=untrained)


def device_of(options: ModelOptions) -> torch.device:
    """The device that the network runs on. Raises UserError for one that is not there."""
    return resolve(options.device, "fp32", world=joined_world()).device


__all__ = ["MODEL_DEFAULTS", "ModelOptions", "Subject", "device_of", "open_subject"]
