"""A run as a Python object: `remask.pretrain` returns one, and its methods are the verbs of the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remask import commands
from remask.backbones import Backbone
from remask.method import Method
from remask.recipe import Recipe
from remask.runs.opening import open_run
from remask.runs.reopen import trained


class Run:
    """A run folder. `Run("runs/demo")` opens one that is there; raises UserError for a folder that holds none.

    path     the folder
    recipe   what it was trained with
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder, self.recipe = open_run(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: step, losses, learning rate and speed of each window."""
        return self.folder.metrics()

    def method(self, checkpoint: str = "last") -> Method:
        """The method with the weights of a checkpoint, in evaluation mode on the CPU."""
        return trained(self.folder, self.recipe, checkpoint).eval()

    def backbone(self, checkpoint: str = "last") -> Backbone:
        """The backbone with the weights of a checkpoint: called with images, it returns prefix and grid tokens."""
        return self.method(checkpoint).backbone

    def probe(self, data: str, val: str | None = None, *, quiet: bool = True, **options: Any) -> dict[str, Any]:
        """Linear probe and kNN on labelled sources, beside the untrained network and raw pixels, as eval/probe.json."""
        return commands.probe(self.path, data, val, quiet=quiet, **options)

    def refine(self, out: str | Path | None = None, *, settings: Sequence[str] = (), quiet: bool = True) -> "Run":
        """The run of a second stage, in which the last blocks learn to tell images apart (MIM-Refiner).

        out        its new folder; runs/NAME-refined-DATE unless given
        settings   texts "section.key=value"
        """
        path = commands.refine(self.path, settings=settings, out=None if out is None else Path(out), quiet=quiet)
        return Run(path)

    def export(self) -> Path:
        """The folder of the exported backbone, which timm loads without remask."""
        return commands.export(self.path)

    def report(self) -> Path:
        """The file report.html, written anew."""
        return commands.report(self.path)


def pretrain(
    recipe: str | Recipe = "dmjd-vit-tiny",
    data: str | None = None,
    *,
    method: str | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    smoke: bool = False,
    quiet: bool = True,
) -> Run:
    """Train a recipe in a new run folder, and return the run.

    recipe     a name (`remask recipes`), a TOML file, or a whole recipe, which data, method, settings and smoke leave
    data       the source of images, as for `remask.open_source`; the recipe's unless given
    method     "mae+dmjd" and the like
    settings   texts "section.key=value"
    out        the new folder; runs/RECIPE-DATE unless given
    smoke      shrink to seconds, to see that it runs
    Raises UserError before anything is written.
    """
    overrides = None if data is None else {"data.source": data}
    path = commands.pretrain(
        recipe, overrides, method=method, settings=settings, out=None if out is None else Path(out),
        smoke=smoke, quiet=quiet,
    )  # fmt: skip
    return Run(path)


__all__ = ["Run", "pretrain"]
