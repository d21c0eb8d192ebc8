"""Looking at features: `embed` into a file, `tsne` of several networks, `attention` over pictures."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from remask.commands.paths import paths_or_texts
from remask.commands.saying import Say, sayer
from remask.commands.subject import LOOK, Look, Subject, subject
from remask.commands.unusable import Unusable
from remask.errors import UserError
from remask.evaluation.figures.attention import attention_maps, attention_sheet
from remask.evaluation.figures.embedding import check_file, whole
from remask.evaluation.figures.embedding import embed as write_features
from remask.evaluation.figures.tsne import choose_images, picture, summary, table, tsne_maps
from remask.evaluation.probing.features import extract
from remask.files.escaping import printable
from remask.files.text import LONGEST
from remask.images.sources.left_out import notes
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.training.progress import Watch
from remask.training.run_folder import RunFolder


@paths_or_texts
def embed(
    path: Path | str, data: str, out: Path, look: Look = LOOK, *,
    layer: int = -1, pool: Any = "mean", limit: int | None = None, exclude: Sequence[str] = (), quiet: bool = False,
    say: Say | None = None,
) -> Path:  # fmt: skip
    """Write a feature vector for every picture, with its number, path and label: OUT ends in .parquet or .npz."""
    check_file(out)
    source, seen = open_source(data, limit=limit, exclude=exclude), subject(str(path), look, quiet)
    about = {"model": seen.name, "checkpoint": look.checkpoint, "image_size": list(seen.size)}
    watch = Watch("embed", quiet)
    bad = Unusable(watch.say)
    for line in notes(source):
        watch.say(line)
    batches = watch.over(seen.batches(source, report=bad), len(source), "embed")
    rows = write_features(seen.backbone, batches, source, out, layer=layer, pool=pool, about=about)
    without = f", without {len(bad.lines)} of {len(source)} pictures, which cannot be used" if bad.lines else ""
    sayer(say, quiet)(f"{rows} × {seen.backbone.width} features → {printable(out)}{without}")
    return out


class Mapped(NamedTuple):
    """Which pictures a map shows, and how.

    names       titles of the panels, one for each network; their own by default
    untrained   put the first network without its training in front
    classes, per_class   how many random classes and pictures of each
    k           neighbours, for the numbers in the titles
    """

    names: Sequence[str] = ()
    untrained: bool = False
    classes: int = 10
    per_class: int = 100
    perplexity: float = 30.0
    k: int = 20
    layer: int = -1
    seed: int = 0


FIGURE = Mapped()


@paths_or_texts
def tsne(
    paths: Sequence[Path | str], data: str, out: Path, asked: Mapped = FIGURE, look: Look = LOOK, *,
    exclude: Sequence[str] = (), quiet: bool = False,
) -> Path:  # fmt: skip
    """Maps of the same labelled pictures in several networks, side by side (DMJD, figure 7): a PNG, a CSV, a JSON."""
    if asked.names and len(asked.names) != len(paths):
        raise UserError(f"{len(asked.names)} names for {len(paths)} networks: give one for each")
    if out.suffix != ".png":
        raise UserError(f"{out}: the picture is a .png; choose a file name that ends so")
    if len(os.fsencode(f"{out.stem}.json")) > LONGEST:
        raise UserError(f"{out}: no room for the name of the .json beside it; choose a shorter one")
    source = open_source(data, labelled=True, exclude=exclude)
    chosen = Subset(source, choose_images(source.labels, asked.classes, asked.per_class, asked.seed))
    bad = Unusable(Watch("t-SNE", quiet).say)
    features, usable = _features(paths, chosen, asked, look, quiet, bad)
    left_out, chosen = len(chosen) - len(usable), Subset(source, [chosen.numbers[i] for i in usable])
    labels = torch.tensor(chosen.labels)
    with Watch("t-SNE", quiet) as watch:
        mapped = itertools.count()
        maps = tsne_maps(
            features, labels, perplexity=asked.perplexity, k=asked.k, seed=asked.seed,
            progress=lambda line: watch(next(mapped), len(features), line),
        )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as part:
        part.write_bytes(picture(maps, labels, source.classes))
    where = [chosen.where(i) for i in range(len(chosen))]
    with whole(out.with_suffix(".csv")) as part:
        part.write_text(table(maps, labels, chosen.numbers, where, source.classes), encoding="utf-8")
    settings = {"perplexity": asked.perplexity, "k": asked.k, "seed": asked.seed, "layer": asked.layer}
    content = summary(maps, {**settings, "data": data, "images": len(chosen), "bad_images": left_out, "bad": bad.lines})
    RunFolder(out.parent).write(f"{out.stem}.json", content)
    return out


def _features(
    paths: Sequence[Path | str], chosen: Subset, asked: Mapped, look: Look, quiet: bool, bad: Unusable
) -> tuple[dict[str, Any], list[int]]:
    """Features in each network, by title, of the pictures that all of them can use, and the numbers of these."""
    features: dict[str, Any] = {}
    numbers: dict[str, list[int]] = {}

    def read(seen: Subject, backbone: Any, title: str) -> None:
        numbers[title] = []
        batches = _passed(seen, chosen, title, quiet, bad, numbers[title])
        features[title], _ = extract(backbone, batches, layer=asked.layer)

    for number, path in enumerate(paths):
        seen = subject(str(path), look, quiet)
        title = asked.names[number] if asked.names else seen.name
        title = title if title not in features else f"{title} ({number + 1})"
        seen.settle(chosen)
        if asked.untrained and not features:
            read(seen, seen.twin(), "untrained")
        read(seen, seen.backbone, title)
    usable = sorted(set.intersection(*map(set, numbers.values())))
    for title, found in features.items():
        places = {number: place for place, number in enumerate(numbers[title])}
        features[title] = found[[places[number] for number in usable]]
    return features, usable


def _passed(seen: Subject, source: Subset, title: str, quiet: bool, bad: Unusable, numbers: list[int]) -> Iterator[Any]:
    """Batches of a source; the numbers of the pictures in them are added to `numbers`."""
    for batch in Watch(title, quiet).over(seen.batches(source, report=bad), len(source), title):
        numbers.extend(batch.index.tolist())
        yield batch


@paths_or_texts
def attention(
    path: Path | str, images: str = "photos", look: Look = LOOK, *, out: Path | None = None, block: int = -1,
    count: int = 4, exclude: Sequence[str] = (), quiet: bool = False,
) -> Path:  # fmt: skip
    """Draw where a block looks, head by head, over some pictures; RUN/pictures/attention.png unless `out` is given."""
    seen = subject(str(path), look, quiet)
    target = out or (seen.folder / "pictures" / "attention.png" if seen.folder else None)
    if target is None:
        raise UserError(f"{path} is no run, in whose folder the picture would go: give --out PNG")
    source = open_source(images, exclude=exclude)
    some = Subset(source, [i * len(source) // min(count, len(source)) for i in range(min(count, len(source)))])
    bad = Unusable(Watch("attention", quiet).say)
    batch = next(seen.batches(some, count, report=bad))  # where none can be used, that is raised
    maps = attention_maps(seen.backbone, batch.images, block)
    shown = seen.backbone.normalise.shown(batch.images.to(seen.backbone.normalise.shift.device)).cpu()
    target.parent.mkdir(parents=True, exist_ok=True)
    where = f"block {block} of {seen.name}" if block >= 0 else f"the last block of {seen.name}"
    target.write_bytes(attention_sheet(shown, maps, [f"Attention of {where}."]))
    return target


__all__ = ["Mapped", "attention", "embed", "tsne"]
