"""The verbs, for scripts as for the command line: each takes plain values and leaves its result in the run folder."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from remask.build import build_method
from remask.checkpoint import refuse_existing
from remask.evaluation import probe as probe_features
from remask.evaluation.reconstruction import reconstruct as draw_pictures
from remask.images import Source, Subset, open_source
from remask.interop.export import export_backbone
from remask.progressive import at_size
from remask.recipe import Recipe, choose, dump
from remask.report import write_report
from remask.report.equation import equation
from remask.runs import open_run, trained, untrained
from remask.runtime import generator, resolve
from remask.session import batches, train
from remask.types import Size, UserError


def pretrain(
    recipe: str | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    settings: Sequence[str] = (),
    out: Path | None = None,
    smoke: bool = False,
    quiet: bool = False,
) -> Path:
    """Train a recipe in a new run folder and return it. Everything is checked before the folder is made.

    recipe     a name or file, or a whole recipe, which the next four do not change
    overrides  recipe keys by their dotted path     method    "mae+dmjd" and the like
    settings   texts "key=value", as from --set     smoke     shrink to seconds
    """
    if isinstance(recipe, str):
        recipe = choose(recipe, overrides, method=method, settings=settings, smoke=smoke)
    chosen = _anchored(recipe)
    path = out or Path("runs") / f"{chosen.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    refuse_existing(path)
    train(chosen, path, quiet, fresh=True)
    return _finish(path, quiet)


def resume(path: Path, *, device: str | None = None, quiet: bool = False) -> Path:
    """Continue a run from its last checkpoint; the device may be another one."""
    run, recipe = open_run(path)
    if run.read("status.json").get("state") == "finished":
        raise UserError(f"{path} is finished: probe it with remask probe {path} --data SRC, or start a new run")
    if device:
        recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": device})})
    train(recipe, path, quiet, fresh=False)
    return _finish(path, quiet)


def _finish(path: Path, quiet: bool) -> Path:
    """What a finished run leaves besides its checkpoints: export, pictures and report."""
    exported = export(path)
    reconstruct(path)
    page = report(path)
    if not quiet:
        print(f"backbone  {exported} (load_example.py shows how to use it)\nreport    {page}")
        print(f"next      remask probe {path} --data LABELLED --val LABELLED")
    return path


def export(path: Path, out: Path | None = None, *, image_size: Size | None = None, checkpoint: str = "last") -> Path:
    """Write a run's backbone for images of `image_size` pixels, by default the run's own; returns the folder."""
    run, recipe = open_run(path)
    size, folder = image_size or recipe.data.image_size, out or run.path / "export"
    backbone = trained(run, recipe, checkpoint, size).backbone
    export_backbone(backbone, folder, size, recipe.data.mean, recipe.data.std)
    return folder


def probe(
    path: Path,
    data: str,
    val: str | None = None,
    *,
    limit: int | None = None,
    k: int = 20,
    layer: int = -1,
    checkpoint: str = "last",
    image_size: Size | None = None,
    seed: int = 0,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """kNN and linear probe of a run's backbone beside the untrained one and raw pixels; RUN/eval/probe.json.

    layer        the block that is read, in both networks; -1 is the end, after the final norm
    image_size   of the pictures that are probed, whatever the run was trained at; the run's own by default
    """
    run, recipe = open_run(path)
    runtime = resolve(device or "auto", "fp32")
    seen = at_size(recipe, image_size or recipe.data.image_size)
    train, test = _split(open_source(data, limit=limit, labelled=True), val, seed)
    backbones = {
        "top1": trained(run, recipe, checkpoint, image_size).to(runtime.device).backbone,
        "untrained": untrained(recipe, image_size).to(runtime.device).backbone,
    }
    result = probe_features(
        backbones,
        lambda: batches(seen, train),
        lambda: batches(seen, test),
        k=k,
        layer=layer,
        seed=seed,
        progress=None if quiet else print,
    )
    result["protocol"] |= {"data": data, "val": val or "a fifth of --data, held out", "checkpoint": checkpoint}
    result["protocol"]["image_size"] = list(seen.data.image_size)
    run.write("eval/probe.json", result)
    report(path)
    if not quiet:
        print(probe_table(result))
    return result


def _split(source: Source, val: str | None, seed: int) -> tuple[Source, Source]:
    """Training and test pictures; without a test source, a random fifth is held out."""
    if val is not None:
        return source, open_source(val, labelled=True)
    order = torch.randperm(len(source), generator=generator(seed, "hold out")).tolist()
    cut = len(order) // 5
    return Subset(source, order[cut:]), Subset(source, order[:cut])


def probe_table(result: Mapping[str, Any]) -> str:
    """The probe as a table for a terminal and for Markdown."""
    few = result["few_labels"]
    rows = {
        "kNN": result["knn"],
        "linear": result["linear"],
        f"kNN, {few['per_class']} labels a class": few["knn"],
        f"linear, {few['per_class']} labels a class": few,
    }
    lines = ["| accuracy, % | trained | untrained | raw pixels |", "|---|--:|--:|--:|"]
    lines += [f"| {name} | {r['top1']:.1f} | {r['untrained']:.1f} | {r['pixels']:.1f} |" for name, r in rows.items()]
    return "\n".join(lines)


def reconstruct(
    path: Path,
    images: str | None = None,
    *,
    out: Path | None = None,
    count: int = 4,
    seed: int = 0,
    checkpoint: str = "last",
) -> Path:
    """Draw originals, masked views, predictions and covered unions of some pictures into a PNG; returns its path."""
    run, recipe = open_run(path)
    method = trained(run, recipe, checkpoint).eval()
    source = open_source(images or recipe.data.source or "photos", limit=recipe.data.limit if images is None else None)
    some = Subset(source, _spread(len(source), count))
    batch = next(iter(batches(recipe, some, count)))
    views = method.draw(batch.images, generator(seed, "pictures"))
    target = out or run.path / "pictures" / "reconstruction.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(draw_pictures(method, batch.images, views))
    return target


def _spread(total: int, count: int) -> list[int]:
    """`count` numbers over the whole source: neighbours in a folder often look alike."""
    return [i * total // min(count, total) for i in range(min(count, total))]


def report(path: Path) -> Path:
    """Write RUN/report.html and return its path."""
    _, recipe = open_run(path)
    with torch.device("meta"):
        text = equation(build_method(recipe), recipe.data.image_size)
    return write_report(path, dump(recipe), text)


def _anchored(recipe: Recipe) -> Recipe:
    """Local paths made absolute, so that a run can be resumed from anywhere."""
    updates: dict[str, Any] = {}
    for name in ("data", "probe"):
        section = getattr(recipe, name)
        if section:
            updates[name] = section.model_copy(update={"source": _absolute(section.source)})
    for name in ("method", "jd"):
        if section := getattr(recipe, name):
            files = {key: _absolute(getattr(section.target, key)) for key in ("file", "weights")}
            updates[name] = section.model_copy(update={"target": section.target.model_copy(update=files)})
    if recipe.distill:
        teachers = [
            t.model_copy(update={"source": _anchored_spec(t.source), "weights": _absolute(t.weights)})
            for t in recipe.distill.teachers
        ]
        updates["distill"] = recipe.distill.model_copy(update={"teachers": teachers})
    updates["backbone"] = recipe.backbone.model_copy(update={"weights": _anchored_spec(recipe.backbone.weights)})
    return recipe.model_copy(update=updates)


def _anchored_spec(spec: str | None) -> str | None:
    """The file of "mae:FILE" and the like by its whole path."""
    kind, colon, name = (spec or "").partition(":")
    return f"{kind}:{_absolute(name)}" if colon and kind not in ("timm", "untrained") else spec


def _absolute(path: str | None) -> str | None:
    """What is there, by its whole path; anything else as it is, a set's name for instance."""
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


__all__ = ["export", "pretrain", "probe", "probe_table", "reconstruct", "report", "resume"]
