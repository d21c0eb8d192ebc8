"""What a command looks at: a run, with its untrained twin, or any backbone that a specification names."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from remask.backbones import Backbone
from remask.commands.unusable import bounded
from remask.errors import UserError
from remask.files.escaping import quoted
from remask.images.levels import FULL, Levels, rule_of
from remask.images.loading.loader import Batch, iterate
from remask.images.sources.opening import Source
from remask.images.tools.measuring import Rule, measure
from remask.images.transforms import CentreCrop
from remask.interop.loaded import loaded_of
from remask.interop.start import start
from remask.runs.reopen import open_run, trained, untrained
from remask.seeds import seeded
from remask.training.run_folder import is_task_run, why_no_run
from remask.training.runtime import resolve
from remask.types import Size


class Look(NamedTuple):
    """How a network is looked at.

    checkpoint   "last", or a kept one such as "epoch-0100"
    image_size   of the pictures; the network's own by default
    heads        of attention, where a file does not tell them
    normalise    "imagenet", "half" or "clip", where a file does not tell
    range        of pictures deeper than 8 bits, as data.range; a run's own by default, else "auto"
    device       "auto", "cpu", "cuda", "cuda:N" or "mps"
    """

    checkpoint: str = "last"
    image_size: Size | None = None
    heads: int | Sequence[int] | None = None
    device: str = "auto"
    normalise: str | None = None
    range: Rule | None = None


class Subject(NamedTuple):
    """A backbone that is looked at. `folder` is the run's, where it is one."""

    name: str
    backbone: Backbone
    size: Size
    channels: int
    folder: Path | None
    look: Look
    max_bad: float = 0.01

    def batches(self, source: Source, count: int = 256, report: Callable[[str], None] | None = None) -> Iterator[Batch]:
        """Centre crops of a source, in order, as the backbone sees them; `report` gets a line for each bad picture."""
        self.settle(source)
        found = iterate(
            source, CentreCrop(self.size), count, channels=self.channels, max_bad=self.max_bad,
            scaling=self.backbone.normalise.scaling, report=report,
        )  # fmt: skip
        return bounded(source, found)

    def settle(self, source: Source) -> None:
        """Say how pictures deeper than 8 bits are read: as the run reads its own, or by a sample of this source."""
        normalise = self.backbone.normalise
        if normalise.settled:
            return
        own = None if normalise.levels == FULL and not self.folder else rule_of(normalise.levels)
        rule = self.look.range or (own if isinstance(own, str | None) else (own[0], own[1])) or "auto"
        found = measure(source, self.channels, rule)
        normalise.read_by(Levels.of(found.rule))
        normalise.settled = True
        if found.deep:
            print(f"pixels: {found.describe(self.channels, rule)}", file=sys.stderr)

    def twin(self) -> Any:
        """The same network untrained: a run's with the first weights it had, another's with its maker's."""
        if self.folder:
            _, recipe = open_run(self.folder)
            twin: Any = untrained(recipe, self.size).backbone
            twin.normalise.read_by(self.backbone.normalise.levels)
            return twin.to(device(self.look))
        with seeded(0, "untrained"):
            backbone: Any = _start(self.name, self.size, self.look, untrained=True)[0]
            backbone.normalise.read_by(self.backbone.normalise.levels)
            return backbone.to(device(self.look))


LOOK = Look()


def subject(spec: str, look: Look = LOOK, quiet: bool = True) -> Subject:
    """RUN, or mae:FILE, timm:NAME and what else `open_encoder` takes. Raises UserError for what is neither.

    quiet   do not say what was loaded
    """
    path, size, where = Path(spec).expanduser(), look.image_size, device(look)
    if (path / "recipe.toml").is_file() and not is_task_run(path):
        run, recipe = open_run(path)
        size = size or recipe.data.image_size
        backbone: Any = trained(run, recipe, look.checkpoint, size).backbone
        bad = max(recipe.data.max_bad, 0.01)
        return Subject(path.name, backbone.to(where), size, backbone.channels, path, look, bad)
    if path.is_dir():
        _refuse_without_export(path)
        spec = f"run:{spec}"
    elif ":" not in spec:
        raise UserError(f"{spec} is no run: give a folder that --out named, or mae:FILE, timm:NAME, untrained:NAME")
    with seeded(0, spec):  # an untrained network is the same whenever it is looked at
        backbone, size = _start(spec, size, look)
    if not quiet and (loaded := loaded_of(backbone)):
        print(loaded.line, file=sys.stderr)
    return Subject(spec, backbone.to(where), size, backbone.channels, None, look)


def _refuse_without_export(path: Path) -> None:
    """A folder is read by its export. Raises UserError where it has none, and says what the folder is instead."""
    if any((folder / "backbone.safetensors").is_file() for folder in (path, path / "export")):
        return
    if is_task_run(path):
        raise UserError(
            f"{path} is fine-tuned and is read from its export: write that first with remask export {quoted(path)}"
        )
    if not (path / "recipe.toml").is_file():
        raise UserError(f"{path} is no run: {why_no_run(path)}; pictures go to --data")


def _start(spec: str, size: Size | None, look: Look, untrained: bool = False) -> tuple[Any, Size]:
    return start(spec, size, heads=look.heads, normalise=look.normalise, untrained=untrained)


def device(look: Look) -> torch.device:
    """Where it runs. Raises UserError for a device that is not there."""
    return resolve(look.device, "fp32").device


__all__ = ["LOOK", "Look", "Subject", "device", "subject"]
