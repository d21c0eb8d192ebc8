"""What comes after pre-training: `finetune`, `segment`, `detect`, and testing a model that one of them left."""

import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.commands.paths import absolute, anchored_spec, paths_or_texts, relative_to
from remask.commands.saying import Say, sayer
from remask.downstream.build import build_model, build_task
from remask.downstream.export import export_model
from remask.downstream.training import conclude, fit, learned, restored, tested_on_other
from remask.errors import UserError
from remask.files.escaping import printable, quoted
from remask.files.text import read_toml
from remask.images.loading.loader import TooManyBad
from remask.recipe.downstream import TASKS, Downstream
from remask.recipe.formats import rules_of
from remask.recipe.load import load, parse_settings
from remask.recipe.naming import FOLDER
from remask.report import write_task_report
from remask.runs.bad_images import BadImages
from remask.training.data_record import CARE, Care
from remask.training.run_folder import RunFolder, refuse_bytes, refuse_existing
from remask.training.runtime import Runtime, resolve

PATHS = ("source", "val", "masks", "val_masks", "annotations", "val_annotations")
DEFAULTS = {"finetune": "small", "segment": "small", "detect": "small"}


@paths_or_texts
def finetune(
    start: str | None, recipe: str | None = None, overrides: Mapping[str, Any] | None = None, *,
    settings: Sequence[str] = (), out: Path | None = None, quiet: bool = False, verify_data: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Train a network and a linear head on classes; returns the run folder with eval/finetune.json.

    start         RUN, or mae:FILE, timm:NAME, untrained:NAME and the like; None where the recipe says it
    recipe        a name of recipes/finetune, or a TOML file; overrides and settings go over it
    verify_data   hash the contents of all pictures, so that a resume can compare them
    say           gets the line that says what was found; by default it is printed unless quiet
    """
    return _train("finetune", start, recipe, overrides, settings, out, quiet, verify_data, say)


@paths_or_texts
def segment(
    start: str | None, recipe: str | None = None, overrides: Mapping[str, Any] | None = None, *,
    settings: Sequence[str] = (), out: Path | None = None, quiet: bool = False, verify_data: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Train a network and UperNet, or a linear head, on masks of classes; leaves eval/segment.json."""
    return _train("segment", start, recipe, overrides, settings, out, quiet, verify_data, say)


@paths_or_texts
def detect(
    start: str | None, recipe: str | None = None, overrides: Mapping[str, Any] | None = None, *,
    settings: Sequence[str] = (), out: Path | None = None, quiet: bool = False, verify_data: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Train a network and Mask R-CNN on boxes and masks in COCO's JSON; leaves eval/detect.json."""
    return _train("detect", start, recipe, overrides, settings, out, quiet, verify_data, say)


def _train(
    task: str, start: str | None, recipe: str | None, overrides: Mapping[str, Any] | None, settings: Sequence[str],
    out: Path | None, quiet: bool, verify_data: bool, say: Say | None,
) -> Path:  # fmt: skip
    given = {**(overrides or {}), **parse_settings(settings)}
    if start is not None:
        given["model.source"] = _spec(start)
    chosen = _anchored(load(TASKS[task], FOLDER / task, recipe or DEFAULTS[task], given))
    path = out or Path("runs") / f"{task}-{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    refuse_existing(path)
    _go(chosen, path, quiet, fresh=True, care=Care(verify=verify_data), say=sayer(say, quiet))
    return path


@paths_or_texts
def resume(path: Path, *, device: str | None = None, quiet: bool = False, care: Care = CARE) -> Path:
    """Continue a downstream run from its last checkpoint; the device may be another one.

    Raises UserError, before anything is written, where the data is not what the run was trained on.
    """
    run, recipe = open_task(path)
    if run.read("status.json").get("state") == "finished" and run.read(f"eval/{recipe.task}.json"):
        raise UserError(
            f"{path} is finished: test it again with remask {recipe.task} {path} --eval-only, or start a new run"
        )
    _go(_on(recipe, device), path, quiet, fresh=False, care=care, say=sayer(None, quiet))
    return path


@paths_or_texts
def evaluate(
    path: Path, overrides: Mapping[str, Any] | None = None, *, checkpoint: str = "last", device: str | None = None,
    quiet: bool = False, say: Say | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Test the model of a downstream run, on other pictures where `overrides` name some, into eval/TASK.json.

    Its own test pictures may have changed since it was trained: that is said, and stands in the result's protocol.
    """
    run, recipe = open_task(path, overrides)
    recipe = _anchored(_on(recipe, device))
    runtime = _runtime(recipe)
    bad = BadImages(path, (lambda line: None) if quiet else print)
    task = build_task(recipe, runtime, report=bad, facts=run.read("task.json"))
    bad.keep(task.left_out)
    for line in task.notes if not quiet else ():
        print(line, file=sys.stderr)
    model = restored(task.model, recipe, run, checkpoint).to(runtime.device)
    named = any(key.startswith("data.") for key in overrides or {})
    changed = [] if named else tested_on_other(task, run, recipe)
    for line in [] if quiet else changed:
        print(line, file=sys.stderr)
    try:
        found = conclude(task, model, run, recipe, quiet, changed, checkpoint)
    except TooManyBad as error:
        bad.write(error.bad)
        raise
    write_task_report(path)
    sayer(say, quiet)(_line(task.headline, found, run.path))
    return found


@paths_or_texts
def export(path: Path, out: Path | None = None, *, checkpoint: str = "last") -> Path:
    """Write the model of a downstream run for other programs; returns the folder, RUN/export by default.

    A classifier of timm's loads with timm alone; what else there is, with remask. The average is taken where there is
    one.
    """
    run, recipe = open_task(path)
    facts, folder = run.read("task.json"), out or path / "export"
    refuse_bytes(folder)
    model, size = build_model(recipe, facts)
    trained = learned(restored(model, recipe, run, checkpoint))
    export_model(trained, recipe, size, facts, folder)
    return folder


@paths_or_texts
def report(path: Path) -> Path:
    """Write RUN/report.html of a downstream run and return its path."""
    run, _ = open_task(path)
    return write_task_report(run.path)


def open_task(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[RunFolder, Any]:
    """A downstream run and its recipe."""
    run = RunFolder.open(path)
    try:
        kind = read_toml(path / "recipe.toml").get("task")
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}/recipe.toml is damaged: {error}") from error
    if kind not in TASKS:
        raise UserError(
            f"{path} is a run of pre-training: train it further with remask finetune {quoted(path)} --data DIR"
        )
    settled = run.read("task.json").get("range")
    given = {**rules_of(run.format, "data"), **({"data.range": settled} if settled else {}), **(overrides or {})}
    return run, load(TASKS[kind], FOLDER / kind, path / "recipe.toml", given, environment={})


def _go(recipe: Downstream, path: Path, quiet: bool, fresh: bool, care: Care, say: Say) -> None:
    runtime, bad = _runtime(recipe), BadImages(path, (lambda line: None) if quiet else print)
    begun = None if fresh else RunFolder.open(path).read("task.json")
    task = build_task(recipe, runtime, report=bad, begun=begun)
    try:
        result = fit(task, recipe, runtime, path, fresh=fresh, quiet=quiet, care=care)
    except TooManyBad as error:
        bad.write(error.bad)
        raise
    finally:
        if path.is_dir():
            bad.keep(task.left_out)
    write_task_report(path)
    say(_line(task.headline, result, path))


def _line(headline: str, result: Mapping[str, Any], path: Path) -> str:
    """The headline for a person, and what it leaves out."""
    value, bad = result[headline], result.get("bad_images", 0)
    said = (
        f"{headline} n/a: there is nothing to find in the test pictures" if value is None else f"{headline} {value:.2f}"
    )
    if bad:
        said += f", without {bad} of {bad + result['images']} test pictures that cannot be used (bad_images.txt)"
    return f"{said}  →  {printable(path)}/report.html"


def _runtime(recipe: Downstream) -> Runtime:
    part = recipe.runtime
    return resolve(part.device, recipe.optim.precision, part.compile, part.threads)


def _on(recipe: Downstream, device: str | None) -> Downstream:
    if device is None:
        return recipe
    return recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": device})})


def _spec(start: str) -> str:
    """RUN or an export as run:…, any other specification as it is. Raises UserError for what is neither."""
    if Path(start).expanduser().is_dir():
        return f"run:{start}"
    if ":" not in start:
        raise UserError(f"{start} is no run: give a folder that --out named, or mae:FILE, timm:NAME, untrained:NAME")
    return start


def _anchored(recipe: Any) -> Any:
    """Local paths made absolute, so that a run can be resumed from anywhere."""
    paths: dict[str, Any] = {key: absolute(getattr(recipe.data, key)) for key in PATHS if hasattr(recipe.data, key)}
    paths["exclude"] = relative_to(recipe.data.source, recipe.data.exclude)
    model = recipe.model.model_copy(update={"source": anchored_spec(recipe.model.source)})
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=paths), "model": model})


__all__ = ["detect", "evaluate", "export", "finetune", "open_task", "report", "resume", "segment"]
