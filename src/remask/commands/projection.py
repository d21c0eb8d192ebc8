"""`remask tsne`: maps of the same images in several networks, side by side."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from remask.commands.paths import paths_or_texts
from remask.commands.printing import Say
from remask.commands.refusals import check_tsne
from remask.commands.subjects import MODEL_DEFAULTS, ModelOptions, Subject, open_subject
from remask.commands.unusable_images import UnusableImages
from remask.evaluation.figures.tsne import choose_images, summary, table, tsne_figure, tsne_maps
from remask.evaluation.probing.features import extract
from remask.files.records import atomic_write
from remask.images.sources.opening import open_source
from remask.images.sources.subset import Subset
from remask.training.progress import Watch
from remask.training.run_folder import RunFolder


class TsneOptions(NamedTuple):
    """Which images a map shows, and how.

    names       titles of the panels, one for each network; their own by default
    untrained   put the first network without its training in front
    classes, per_class   how many random classes, and images of each
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


TSNE_DEFAULTS = TsneOptions()


def fit_to_images(options: TsneOptions, images: int, say: Say) -> TsneOptions:
    """Perplexity and neighbours lowered to what so few images allow, which is said.

    scikit-learn wants a perplexity below the number of images; of one beyond a third of it t-SNE sees little structure.
    """
    perplexity, k = min(options.perplexity, (images - 1) / 3), min(options.k, images - 1)
    if images < 4 or (options.perplexity < images and k == options.k):
        return options
    perplexity = options.perplexity if options.perplexity < images else perplexity
    say(f"t-SNE: {images} images allow no more than perplexity {perplexity:.3g} and {k} neighbours, which are taken")
    return options._replace(perplexity=perplexity, k=k)


@paths_or_texts
def tsne(
    paths: Sequence[Path | str], data: str, out: Path, options: TsneOptions = TSNE_DEFAULTS,
    model: ModelOptions = MODEL_DEFAULTS, *, exclude: Sequence[str] = (), quiet: bool = False,
) -> Path:  # fmt: skip
    """Draw maps of the same labelled images in several networks, side by side (DMJD, figure 7).

    Returns `out`, a PNG; a CSV and a JSON of its name lie beside it.
    """
    check_tsne(out, options.names, len(paths))
    source = open_source(data, labelled=True, exclude=exclude)
    chosen = Subset(source, choose_images(source.labels, options.classes, options.per_class, options.seed))
    bad = UnusableImages(Watch("t-SNE", quiet).say)
    features, usable = _features(paths, chosen, options, model, quiet, bad)
    left_out, chosen = len(chosen) - len(usable), Subset(source, [chosen.numbers[i] for i in usable])
    labels = torch.tensor(chosen.labels)
    options = fit_to_images(options, len(chosen), Watch("t-SNE", quiet).say)
    with Watch("t-SNE", quiet) as watch:
        map_number = itertools.count()
        maps = tsne_maps(
            features, labels, perplexity=options.perplexity, k=options.k, seed=options.seed,
            progress=lambda line: watch(next(map_number), len(features), line),
        )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as tmp:
        tmp.write_bytes(tsne_figure(maps, labels, source.classes))
    where = [chosen.where(i) for i in range(len(chosen))]
    with atomic_write(out.with_suffix(".csv")) as tmp:
        tmp.write_text(table(maps, labels, chosen.numbers, where, source.classes), encoding="utf-8")
    settings = {"perplexity": options.perplexity, "k": options.k, "seed": options.seed, "layer": options.layer}
    content = summary(maps, {**settings, "data": data, "images": len(chosen), "bad_images": left_out, "bad": bad.lines})
    RunFolder(out.parent).write(f"{out.stem}.json", content)
    return out


def _features(
    paths: Sequence[Path | str], chosen: Subset, options: TsneOptions, model: ModelOptions, quiet: bool,
    bad: UnusableImages,
) -> tuple[dict[str, Any], list[int]]:  # fmt: skip
    """Features in each network by its title, of the images that all networks can use, and the numbers of these."""
    features: dict[str, Any] = {}
    numbers: dict[str, list[int]] = {}

    def read(subject: Subject, backbone: Any, title: str) -> None:
        numbers[title] = []
        batches = _numbered(subject, chosen, title, quiet, bad, numbers[title])
        features[title], _ = extract(backbone, batches, layer=options.layer)

    for number, path in enumerate(paths):
        subject = open_subject(str(path), model, quiet)
        title = options.names[number] if options.names else subject.name
        title = title if title not in features else f"{title} ({number + 1})"
        subject.read_levels(chosen)
        if options.untrained and not features:
            read(subject, subject.untrained(), "untrained")
        read(subject, subject.backbone, title)
    usable = sorted(set.intersection(*map(set, numbers.values())))
    for title, found in features.items():
        places = {number: place for place, number in enumerate(numbers[title])}
        features[title] = found[[places[number] for number in usable]]
    return features, usable


def _numbered(
    subject: Subject, source: Subset, title: str, quiet: bool, bad: UnusableImages, numbers: list[int]
) -> Iterator[Any]:
    """Batches of a source; the numbers of their images are appended to `numbers`."""
    for batch in subject.watched(Watch(title, quiet), source, title, bad):
        numbers.extend(batch.index.tolist())
        yield batch


__all__ = ["TSNE_DEFAULTS", "TsneOptions", "tsne"]
