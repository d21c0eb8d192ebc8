"""`remask probe`: what a network learned, by frozen features.

kNN and linear, MAE's linear probe, the attentive probe, every layer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from remask.commands import examples
from remask.commands.paths import absolute, paths_or_texts
from remask.commands.printing import Say, printer
from remask.commands.probe_tables import layer_table, probe_table, two_rows
from remask.commands.refusals import check_protocol
from remask.commands.reporting import report
from remask.commands.saved_progress import SavedProgress, request_key
from remask.commands.subjects import MODEL_DEFAULTS, ModelOptions, Subject, open_subject
from remask.commands.unusable_images import UnusableImages, refuse_too_many
from remask.downstream.build import split
from remask.evaluation.probing.attentive import Settings as Attentive
from remask.evaluation.probing.attentive import attentive_probe
from remask.evaluation.probing.fast_probe import Factory, Split
from remask.evaluation.probing.fast_probe import probe as fast_probe
from remask.evaluation.probing.layers import layers_figure, probe_layers
from remask.evaluation.probing.mae_probe import Settings as Linear
from remask.evaluation.probing.mae_probe import linprobe
from remask.evaluation.probing.memory import Memory
from remask.evaluation.results import keep
from remask.evaluation.sharing import in_one, readers, reading_together
from remask.files.replacing import write_bytes
from remask.images.loading.loader import Loader
from remask.images.sources.fingerprint import inventory
from remask.images.sources.left_out import notes
from remask.images.sources.opening import Source, open_source
from remask.images.transforms import ProbeCrop
from remask.training.distributed import joined
from remask.training.progress import Watch
from remask.training.run_folder import RunFolder

Protocol = Literal["fast", "mae", "attentive"]


class ProbeOptions(NamedTuple):
    """What a probe does, beside how the network is read.

    protocol    fast: kNN and logistic regression on cached features (probe.json) · mae: BatchNorm, LARS, 90 epochs of
                random crops (linprobe.json) · attentive: a learned query over all tokens (attentive.json)
    k           neighbours that vote
    layer       the block that is read, in both networks; -1 is the end, after the final norm
    layers      several blocks, or "all": layers.json and a figure of accuracy over depth
    fractions   shares of every class's labels, beside all of them and ten a class
    epochs      of the mae and attentive probes; theirs by default
    shots       labels a class in the second half of the fast probe's table
    """

    protocol: Protocol = "fast"
    k: int = 20
    layer: int = -1
    layers: Sequence[int] | Literal["all"] | None = None
    fractions: Sequence[float] = ()
    epochs: int | None = None
    seed: int = 0
    shots: int = 10


PROBE_DEFAULTS = ProbeOptions()


class Comparison(NamedTuple):
    """What a probe compares, and on which images.

    networks   "top1", the network itself, and "untrained"
    bad        callbacks for unusable training and test images
    figures    PNGs that go with the result, by name
    """

    options: ProbeOptions
    subject: Subject
    networks: Mapping[str, Any]
    train: Source
    test: Source
    watch: Watch
    bad: tuple[UnusableImages, UnusableImages]
    progress: SavedProgress
    figures: dict[str, bytes]


@paths_or_texts
def probe(
    path: Path | str, data: str, val: str | None = None, options: ProbeOptions = PROBE_DEFAULTS,
    model: ModelOptions = MODEL_DEFAULTS, *, limit: int | None = None, exclude: Sequence[str] = (),
    out: Path | None = None, quiet: bool = False, say: Say | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The result of a probe of a backbone beside the untrained one, which is also written into RUN/eval/ or `out`.

    path    a run, or mae:FILE, timm:NAME and the like (then `model.heads` where a file does not tell them)
    val     labelled images to test on; a random fifth of `data` by default
    limit   the first N images of `data` only
    exclude shell-style patterns of paths that are left out
    say     receives the table of accuracies; by default it is printed unless quiet
    Processes that torchrun starts read the images together, each its share, and get the numbers of one.
    Raises UserError for a source without labels, a network or layer that does not exist, and too few images or classes.
    """
    check_protocol(options.protocol, options.layers)
    with joined(model.device) as world, reading_together():
        quiet = quiet or not world.main
        return _probe(str(path), data, val, options, model, limit, exclude, out, quiet, say if world.main else None)


def _probe(
    path: str, data: str, val: str | None, options: ProbeOptions, model: ModelOptions, limit: int | None,
    exclude: Sequence[str], out: Path | None, quiet: bool, say: Say | None,
) -> dict[str, Any]:  # fmt: skip
    source, test = split(open_source(data, limit=limit, labelled=True, exclude=exclude), val, options.seed, exclude)
    subject, main = open_subject(path, model, quiet), readers().main
    subject.read_levels(source)
    networks = {"top1": subject.backbone, "untrained": subject.untrained()}
    digests = [inventory(one, labelled=True).digest() for one in (source, test)]  # a killed call may have read others
    key = request_key(subject, model, options, data, val, limit, list(exclude), *digests)
    progress = SavedProgress((out or subject.folder) if main else None, options.protocol, key)
    with Watch("probe", quiet) as watch:
        tell = watch.say if main else (lambda line: None)
        bad = UnusableImages(tell), UnusableImages(tell)
        compared = Comparison(options, subject, networks, source, test, watch, bad, progress, {})
        name, result, table = _compare(compared)
    table += _count_images(result, compared)
    result["protocol"] |= {"data": data, "val": val or "a fifth of --data, held out", "checkpoint": model.checkpoint}
    result["protocol"] |= {"image_size": list(subject.size), "network": subject.name}
    images = [absolute(data), absolute(val), limit, list(exclude), *digests]
    network = "" if out is None else str(subject.folder or subject.name)  # a run that continues keeps its latest result
    # under the names that older versions wrote: the name of the result's own file depends on them
    about = {"network": network, "look": model, "asked": options, "size": subject.size, "pictures": images}
    if main:
        _write(subject, name, result, out, val or data, about, compared.figures)
        progress.delete()
    printer(say, quiet)(table)
    return result


def _compare(compared: Comparison) -> tuple[str, dict[str, Any], str]:
    """The name of the result's file, its content, and a table for a person, by the protocol of the options."""
    options, subject, networks, source, test, watch, bad, progress, figures = compared
    train = partial(subject.watched, watch, source, "training pictures", bad[0])
    val = partial(subject.watched, watch, test, "test pictures", bad[1])
    say, k, seed = watch.say, options.k, options.seed
    for line in dict.fromkeys([*notes(source), *notes(test)]):
        say(line)
    if options.layers:
        layers = None if options.layers == "all" else options.layers
        result = probe_layers(networks, train, val, layers=layers, k=k, seed=seed, progress=say, on_fit=watch)
        figures["layers"] = layers_figure(result)
        return "layers", result, layer_table(result)
    if options.protocol == "mae":
        result = _mae_probe(compared, val)
        return "linprobe", result, two_rows("linear probe as MAE's", result)
    if options.protocol == "attentive":
        settings, counts = Attentive(layer=options.layer, seed=seed), (len(source), len(test))
        if options.epochs:
            settings = replace(settings, epochs=options.epochs)
        memory = Memory(in_one(progress.read), progress.write)
        result = attentive_probe(networks, train, val, counts, settings, progress=watch, memory=memory)
        return "attentive", result, two_rows("attentive probe", result)
    known, queries = examples.Probed(source, []), examples.Probed(test, [])

    def draw(trained: Split, tested: Split) -> None:
        if progress.path:  # there is nowhere else to put them
            figures["classes"] = examples.classes(subject, known, seed)
            figures["neighbours"] = examples.neighbours(subject, known, queries, (trained, tested), seed)

    result = fast_probe(
        networks, lambda: known.recorded(train()), lambda: queries.recorded(val()), few=options.shots, k=k,
        layer=options.layer, seed=seed, fractions=options.fractions, progress=say, on_fit=watch, on_features=draw,
    )  # fmt: skip
    return "probe", result, probe_table(result)


def _count_images(result: dict[str, Any], compared: Comparison) -> str:
    """Lines for a person about unusable images, whose numbers also go into the result's protocol."""
    lines = [one.lines for one in compared.bad]
    left_out = [getattr(one, "left_out", {}) for one in (compared.train, compared.test)]
    result["protocol"]["pictures"] = {
        "train": len(compared.train) - len(lines[0]),
        "test": len(compared.test) - len(lines[1]),
        "bad": dict(zip(("train", "test"), lines, strict=True)),
        "left_out": dict(zip(("train", "test"), map(dict, left_out), strict=True)),
    }
    counts = ((len(lines[0]), "training"), (len(lines[1]), "test"))
    return "".join(f"\n\nwithout {n} of the {what} pictures, which cannot be used" for n, what in counts if n)


def _write(
    subject: Subject, name: str, result: dict[str, Any], out: Path | None, data: str, about: Mapping[str, Any],
    figures: Mapping[str, bytes],
) -> None:  # fmt: skip
    """Write the result into the run's eval folder and report, or into `out`; beside results on other data.

    data, about   as `evaluation.results.keep` has them
    """
    folder = out or subject.folder
    if folder is None:
        return
    keep(RunFolder(folder), name, result, data, about)
    for figure, png in figures.items():
        write_bytes(folder / "pictures" / f"{figure}.png", png)
    if subject.folder == folder:
        report(folder)


def _mae_probe(compared: Comparison, val: Factory) -> dict[str, Any]:
    """MAE's linear probe of both networks, on the same crops; each one's state is saved after every epoch."""
    options, subject, progress = compared.options, compared.subject, compared.progress
    settings, reached = Linear(layer=options.layer, seed=options.seed), in_one(progress.read)
    found: dict[str, Any] = reached.get("found", {})
    if options.epochs:
        settings = replace(settings, epochs=options.epochs)
    labels = torch.tensor(compared.train.labels)
    for name, backbone in compared.networks.items():
        if name in found:
            continue
        state = reached.get("states", {}).get(name)
        crops = Loader(
            compared.train, ProbeCrop(subject.size), 256 * readers().size, seed=options.seed, drop_last=False,
            channels=subject.channels, scaling=subject.backbone.normalise.scaling, max_bad=subject.max_bad,
            share=readers().share, report=compared.bad[0],
        )  # fmt: skip
        found[name] = linprobe(
            backbone, _epochs(subject, crops), val, labels, settings, progress=compared.watch,
            state=state, keep=partial(_save_state, progress, found, name),
        )  # fmt: skip
        progress.write({"found": found})
    protocol = found["top1"].pop("protocol")
    return {name: result["top1"] for name, result in found.items()} | {"runs": found, "protocol": protocol}


def _epochs(subject: Subject, crops: Loader) -> Callable[[int], Iterable[Any]]:
    """A function from the number of an epoch to its batches of crops."""
    return lambda epoch: refuse_too_many(crops.source, subject.of_all(crops, epoch))


def _save_state(progress: SavedProgress, found: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> None:
    progress.write({"found": dict(found), "states": {name: state}})


__all__ = ["PROBE_DEFAULTS", "ProbeOptions", "Protocol", "probe"]
