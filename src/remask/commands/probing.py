"""What a network learned, by frozen features: kNN and linear, MAE's linear probe, attentive probe, every layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from remask.commands import examples
from remask.commands.partial import Partial, key_of
from remask.commands.paths import absolute, paths_or_texts
from remask.commands.pretraining import report
from remask.commands.saying import Say, sayer
from remask.commands.subject import LOOK, Look, Subject, subject
from remask.commands.unusable import Unusable, bounded
from remask.downstream.build import split
from remask.errors import UserError
from remask.evaluation.probing.attentive import Settings as Attentive
from remask.evaluation.probing.attentive import attentive_probe
from remask.evaluation.probing.fast_probe import Factory, Split
from remask.evaluation.probing.fast_probe import probe as fast_probe
from remask.evaluation.probing.layers import layers_figure, probe_layers
from remask.evaluation.probing.mae_probe import Settings as Linear
from remask.evaluation.probing.mae_probe import linprobe
from remask.evaluation.probing.memory import Memory
from remask.evaluation.results import keep
from remask.images.loading.loader import Loader
from remask.images.sources.fingerprint import inventory
from remask.images.sources.left_out import notes
from remask.images.sources.opening import Source, open_source
from remask.images.transforms import ProbeCrop
from remask.training.checkpoint import RunFolder
from remask.training.progress import Watch

Protocol = Literal["fast", "mae", "attentive"]


class Asked(NamedTuple):
    """What a probe does, beside how the network is looked at.

    protocol    fast: kNN and logistic regression on cached features (probe.json) · mae: BatchNorm, LARS, 90 epochs of
                random crops (linprobe.json) · attentive: a learned query over all tokens (attentive.json)
    k           neighbours that vote
    layer       the block that is read, in both networks; -1 is the end, after the final norm
    layers      several of them, or "all": layers.json and a picture of accuracy over depth
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


FAST = Asked()


@paths_or_texts
def probe(
    path: Path | str, data: str, val: str | None = None, asked: Asked = FAST, look: Look = LOOK, *,
    limit: int | None = None, exclude: Sequence[str] = (), out: Path | None = None, quiet: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Probe a backbone beside the untrained one; the result goes into RUN/eval/, or into `out`.

    path    a run, or mae:FILE, timm:NAME and the like (then `look.heads` where a file does not tell them)
    val     labelled pictures to test on; a random fifth of `data` by default
    limit   the first N pictures of `data` only
    exclude shell-style patterns of paths that are left out
    say     gets the table of accuracies; by default it is printed unless quiet
    Raises UserError for sources without labels, and all that the probes find fault with.
    """
    if asked.layers and asked.protocol != "fast":
        raise UserError(f"--layers is for the fast probe; with --protocol {asked.protocol} give one --layer")
    source, test = split(open_source(data, limit=limit, labelled=True, exclude=exclude), val, asked.seed, exclude)
    seen = subject(str(path), look, quiet)
    seen.settle(source)
    nets = {"top1": seen.backbone, "untrained": seen.twin()}
    pictures = [inventory(one, labelled=True).digest() for one in (source, test)]  # those of a killed call, or others
    key = key_of(seen, look, asked, data, val, limit, list(exclude), *pictures)
    part = Partial(out or seen.folder, asked.protocol, key)
    drawn: dict[str, bytes] = {}
    name, result, shown = _probed(asked, seen, nets, source, test, quiet, part, drawn)
    result["protocol"] |= {"data": data, "val": val or "a fifth of --data, held out", "checkpoint": look.checkpoint}
    result["protocol"] |= {"image_size": list(seen.size), "network": seen.name}
    told = [absolute(data), absolute(val), limit, list(exclude), *pictures]
    network = "" if out is None else str(seen.folder or seen.name)  # of a run that goes on the latest is kept
    about = {"network": network, "look": look, "asked": asked, "size": seen.size, "pictures": told}
    _keep(seen, name, result, out, val or data, about, drawn)
    part.forget()
    sayer(say, quiet)(shown)
    return result


def _probed(
    asked: Asked, seen: Subject, nets: Mapping[str, Any], source: Source, test: Source, quiet: bool, part: Partial,
    drawn: dict[str, bytes],
) -> tuple[str, dict[str, Any], str]:  # fmt: skip
    """The name of the file, its content, and a table for a person; `drawn` gets those that go with it, by name."""
    with Watch("probe", quiet) as watch:
        bad = Unusable(watch.say), Unusable(watch.say)
        name, result, shown = _watched(asked, seen, nets, source, test, part, watch, bad, drawn)
    lines, left_out = [one.lines for one in bad], [getattr(one, "left_out", {}) for one in (source, test)]
    result["protocol"]["pictures"] = {
        "train": len(source) - len(lines[0]),
        "test": len(test) - len(lines[1]),
        "bad": dict(zip(("train", "test"), lines, strict=True)),
        "left_out": dict(zip(("train", "test"), map(dict, left_out), strict=True)),
    }
    for number, said in ((len(lines[0]), "training"), (len(lines[1]), "test")):
        shown += f"\n\nwithout {number} of the {said} pictures, which cannot be used" if number else ""
    return name, result, shown


def _watched(
    asked: Asked, seen: Subject, nets: Mapping[str, Any], source: Source, test: Source, part: Partial,
    watch: Watch, bad: tuple[Unusable, Unusable], drawn: dict[str, bytes],
) -> tuple[str, dict[str, Any], str]:  # fmt: skip
    """`_probed`, with a bar; `bad` are told of training and test pictures that cannot be used."""
    train = partial(_passed, watch, seen, source, "training pictures", bad[0])
    val = partial(_passed, watch, seen, test, "test pictures", bad[1])
    say, k, seed = watch.say, asked.k, asked.seed
    for line in dict.fromkeys([*notes(source), *notes(test)]):
        say(line)
    if asked.layers:
        layers = None if asked.layers == "all" else asked.layers
        result = probe_layers(nets, train, val, layers=layers, k=k, seed=seed, progress=say, fitted=watch)
        drawn["layers"] = layers_figure(result)
        return "layers", result, layer_table(result)
    if asked.protocol == "mae":
        result = _linear(asked, seen, nets, source, val, watch, part, bad[0])
        return "linprobe", result, two_rows("linear probe as MAE's", result)
    if asked.protocol == "attentive":
        settings, counts = Attentive(layer=asked.layer, seed=seed), (len(source), len(test))
        if asked.epochs:
            settings = replace(settings, epochs=asked.epochs)
        memory = Memory(part.read(), part.write)
        result = attentive_probe(nets, train, val, counts, settings, progress=watch, memory=memory)
        return "attentive", result, two_rows("attentive probe", result)
    known, queries = examples.Probed(source, []), examples.Probed(test, [])

    def draw(trained: Split, tested: Split) -> None:
        if part.path:  # there is nowhere else to put them
            drawn["classes"] = examples.classes(seen, known, seed)
            drawn["neighbours"] = examples.neighbours(seen, known, queries, (trained, tested), seed)

    result = fast_probe(
        nets, lambda: known.recorded(train()), lambda: queries.recorded(val()), few=asked.shots, k=k,
        layer=asked.layer, seed=seed, fractions=asked.fractions, progress=say, fitted=watch, seen=draw,
    )  # fmt: skip
    return "probe", result, probe_table(result)


def _keep(
    seen: Subject, name: str, result: dict[str, Any], out: Path | None, data: str, about: Mapping[str, Any],
    drawn: Mapping[str, bytes],
) -> None:  # fmt: skip
    """Into the run's eval folder and its report, or into a folder of the user's choice; beside results on other data.

    data, about   as `evaluation.keeping` has them
    """
    folder = out or seen.folder
    if folder is None:
        return
    keep(RunFolder(folder), name, result, data, about)
    for picture, png in drawn.items():
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / f"{picture}.png").write_bytes(png)
    if seen.folder == folder:
        report(folder)


def _linear(
    asked: Asked, seen: Subject, nets: Mapping[str, Any], source: Source, val: Factory, watch: Watch, part: Partial,
    bad: Unusable,
) -> dict[str, Any]:  # fmt: skip
    """MAE's linear probe of both networks, on the same crops; what each reached is kept after every epoch."""
    settings, reached = Linear(layer=asked.layer, seed=asked.seed), part.read()
    found: dict[str, Any] = reached.get("found", {})
    if asked.epochs:
        settings = replace(settings, epochs=asked.epochs)
    labels = torch.tensor(source.labels)
    for name, backbone in nets.items():
        if name in found:
            continue
        state, keep = reached.get("states", {}).get(name), partial(_keep_state, part, found, name)
        crops = Loader(
            source, ProbeCrop(seen.size), 256, seed=asked.seed, drop_last=False, channels=seen.channels,
            scaling=seen.backbone.normalise.scaling, max_bad=seen.max_bad, report=bad,
        )  # fmt: skip
        found[name] = linprobe(
            backbone, partial(_cropped, source, crops), val, labels, settings, progress=watch,
            state=state, keep=keep,
        )  # fmt: skip
        part.write({"found": found})
    protocol = found["top1"].pop("protocol")
    return {name: result["top1"] for name, result in found.items()} | {"runs": found, "protocol": protocol}


def _cropped(source: Source, crops: Loader, epoch: int) -> Iterable[Any]:
    return bounded(source, crops.epoch(epoch))


def _keep_state(part: Partial, found: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> None:
    part.write({"found": dict(found), "states": {name: state}})


def _passed(watch: Watch, seen: Subject, source: Source, title: str, bad: Unusable) -> Iterable[Any]:
    return watch.over(seen.batches(source, report=bad), len(source), title)


def layer_table(result: Mapping[str, Any]) -> str:
    """Accuracy of every layer as a table, and which was best on held-out training pictures."""
    names = list(result["layers"])
    titles = " | ".join(f"linear, {name} | kNN, {name}".replace("top1", "trained") for name in names)
    lines = [f"| layer | {titles} |", "|--:" * (1 + 2 * len(names)) + "|"]
    for rows in zip(*result["layers"].values(), strict=True):
        cells = [f"{row['linear']:.1f} | {row['knn']:.1f}" for row in rows]
        lines.append(f"| {'end' if rows[0]['layer'] == -1 else rows[0]['layer']} | {' | '.join(cells)} |")
    best = result["best"]["top1"]["linear"]
    return "\n".join(
        [*lines, "", f"best on held-out training pictures: layer {best['layer']}, {best['test']:.1f} on test"]
    )


def two_rows(title: str, result: Mapping[str, Any]) -> str:
    """Trained and untrained accuracy as a table."""
    lines = ["| accuracy, % | trained | untrained |", "|---|--:|--:|"]
    return "\n".join([*lines, f"| {title} | {result['top1']:.1f} | {result['untrained']:.1f} |"])


def probe_table(result: Mapping[str, Any]) -> str:
    """The fast probe as a table for a terminal and for Markdown."""
    few = result["few_labels"]
    rows = {
        "kNN": result["knn"],
        "linear": result["linear"],
        f"kNN, {few['per_class']} labels a class": few["knn"],
        f"linear, {few['per_class']} labels a class": few,
    }
    for share, part in result.get("fractions", {}).items():
        rows |= {f"kNN, {100 * float(share):g} % of the labels": part["knn"]}
        rows |= {f"linear, {100 * float(share):g} % of the labels": part}
    lines = ["| accuracy, % | trained | untrained | raw pixels |", "|---|--:|--:|--:|"]
    lines += [f"| {name} | {r['top1']:.1f} | {r['untrained']:.1f} | {r['pixels']:.1f} |" for name, r in rows.items()]
    return "\n".join(lines)


__all__ = ["Asked", "Protocol", "probe", "probe_table", "two_rows"]
