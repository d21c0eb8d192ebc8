"""The verbs, for scripts as for the command line: each takes plain values and leaves its result in the run folder."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from remask import codebook as codebooks
from remask.build import build_loader, build_method, build_trainer, open_run, trained
from remask.checkpoint import RunFolder, refuse_existing
from remask.console import Console, console
from remask.evaluation import extract, weighted_knn
from remask.evaluation import probe as probe_features
from remask.evaluation.reconstruction import reconstruct as draw_pictures
from remask.images import Batch, CentreCrop, Source, Subset, TooManyBad, iterate, open_source
from remask.interop.export import export_backbone
from remask.listing import environment
from remask.method import Method
from remask.recipe import Recipe, choose, dump, method_label
from remask.report import write_report
from remask.report.equation import equation
from remask.runtime import Runtime, generator, resolve
from remask.trainer import Hook
from remask.types import UserError


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
    return _train(chosen, path, quiet, fresh=True)


def resume(path: Path, *, device: str | None = None, quiet: bool = False) -> Path:
    """Continue a run from its last checkpoint; the device may be another one."""
    run, recipe = open_run(path)
    if run.read("status.json").get("state") == "finished":
        raise UserError(f"{path} is finished: probe it with remask probe {path} --data SRC, or start a new run")
    if device:
        recipe = recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"device": device})})
    return _train(recipe, path, quiet, fresh=False)


def _train(recipe: Recipe, path: Path, quiet: bool, fresh: bool) -> Path:
    """Build all parts, make or open the folder, train, and leave export, pictures and report behind."""
    if recipe.data.source is None:
        raise UserError("no pictures to train on: give --data DIR, or a built-in set, --data photos or --data digits")
    part = recipe.runtime
    runtime = resolve(part.device, recipe.optim.precision, part.compile, part.threads)
    source = open_source(recipe.data.source, limit=recipe.data.limit)
    method = build_method(recipe)
    words, kept = None, recipe
    if recipe.method.target.unfitted:
        words = codebooks.fit(recipe, source, (lambda line: None) if quiet else print, recipe.seed)
        codebooks.install(words, method)
        kept = codebooks.with_file(recipe, codebooks.FILE)
    hooks = (_knn_hook(recipe, method, runtime),) if recipe.probe else ()
    screen: list[Console] = []
    bad = BadImages(path, lambda line: screen[0].say(line))
    loader = build_loader(recipe, source, runtime, method, report=bad)
    run = RunFolder.create(path, dump(kept), environment()) if fresh else RunFolder.open(path)
    if words:
        words.save(run.path / codebooks.FILE)
    trainer = build_trainer(recipe, method, loader, runtime, run, hooks)
    if not fresh:
        trainer.resume()
    screen.append(console(trainer.schedule.steps, recipe.name, quiet))
    screen[0].say(f"{method_label(recipe)} on {len(source)} images of {source.name}, {runtime.describe()} → {path}")
    screen[0].say(equation(method, recipe.data.image_size))
    try:
        trainer.train(screen[0])
    except TooManyBad as error:
        bad.write(error.bad)
        raise
    _finish(run, recipe, method.cpu(), quiet)
    return path


class BadImages:
    """Names every unusable picture once, on the screen and in RUN/bad_images.txt, also over several sessions."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path / "bad_images.txt", say
        self.known = set(self.path.read_text().splitlines()) if self.path.is_file() else set[str]()

    def __call__(self, line: str) -> None:
        if line not in self.known:
            self.known.add(line)
            self.say(f"skipped {line}")
            with open(self.path, "a") as file:
                file.write(line + "\n")

    def write(self, bad: Mapping[str, str]) -> None:
        for where, reason in bad.items():
            self(f"{where}: {reason}")


def _finish(run: RunFolder, recipe: Recipe, method: Method, quiet: bool) -> None:
    """What a finished run leaves besides its checkpoints."""
    export_backbone(method.backbone, run.path / "export", recipe.data.image_size, recipe.data.mean, recipe.data.std)
    reconstruct(run.path)
    page = report(run.path)
    if not quiet:
        print(f"backbone  {run.path / 'export'} (load_example.py shows how to use it)\nreport    {page}")
        print(f"next      remask probe {run.path} --data LABELLED --val LABELLED")


def _knn_hook(recipe: Recipe, method: Method, runtime: Runtime) -> Hook:
    """kNN accuracy on [probe].source every few epochs: four fifths vote, one fifth is asked. 5,000 images at most."""
    assert recipe.probe
    part = recipe.probe
    source = open_source(part.source, limit=None, labelled=True)
    order = torch.randperm(len(source), generator=generator(0, "probe on the way"))[:5000].tolist()
    cut = max(len(order) // 5, 1)
    asked, voters = Subset(source, order[:cut]), Subset(source, order[cut:])

    def hook(epoch: int) -> dict[str, float]:
        if epoch % part.every_epochs and epoch != recipe.optim.epochs:
            return {}
        known, query = (_features(method, subset, recipe, runtime) for subset in (voters, asked))
        return {"probe/knn": weighted_knn(*known, *query, k=part.k)}

    return hook


def _features(method: Method, source: Source, recipe: Recipe, runtime: Runtime) -> tuple[torch.Tensor, torch.Tensor]:
    features, labels = extract(method.backbone, batches(recipe, source), device=runtime.device)
    assert labels is not None
    return features, labels


def batches(recipe: Recipe, source: Source, size: int = 256) -> Iterator[Batch]:
    """Centre crops of a source, in order, as a recipe's backbone sees them."""
    data = recipe.data
    return iterate(source, CentreCrop(data.image_size), size, channels=data.channels, max_bad=max(data.max_bad, 0.01))


def probe(
    path: Path,
    data: str,
    val: str | None = None,
    *,
    limit: int | None = None,
    k: int = 20,
    layer: int = -1,
    checkpoint: str = "last",
    seed: int = 0,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """kNN and linear probe of a run's backbone beside the untrained one and raw pixels; RUN/eval/probe.json.

    layer  the block that is read, in both networks; -1 is the end, after the final norm
    """
    run, recipe = open_run(path)
    runtime = resolve(device or "auto", "fp32")
    train, test = _split(open_source(data, limit=limit, labelled=True), val, seed)
    backbones = {
        "top1": trained(run, recipe, checkpoint).to(runtime.device).backbone,
        "untrained": build_method(recipe).to(runtime.device).backbone,
    }
    result = probe_features(
        backbones,
        lambda: batches(recipe, train),
        lambda: batches(recipe, test),
        k=k,
        layer=layer,
        seed=seed,
        progress=None if quiet else print,
    )
    result["protocol"] |= {"data": data, "val": val or "a fifth of --data, held out", "checkpoint": checkpoint}
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
    return recipe.model_copy(update=updates)


def _absolute(path: str | None) -> str | None:
    """What is there, by its whole path; anything else as it is, a set's name for instance."""
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path


__all__ = ["pretrain", "probe", "probe_table", "reconstruct", "report", "resume"]
