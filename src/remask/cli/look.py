"""The commands that look at what a network knows: probe, embed, tsne, attention. `register` adds them to the app."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from remask.cli import options

Layer = Annotated[
    int, typer.Option("--layer", metavar="N", help="Block to read, from 0; -1 is the end, after the norm.")
]


def probe(
    run: options.Start,
    data: Annotated[str, options.data("Labelled pictures to learn the probes on.")],
    val: Annotated[str | None, options.val("Pictures to test on.  [1/5 of --data]")] = None,
    protocol: Annotated[
        str, typer.Option(help="fast (kNN, logistic regression), mae (BatchNorm, LARS, 90 epochs), attentive.")
    ] = "fast",
    limit: options.Limit = None,
    exclude: options.Exclude = None,
    k: Annotated[int, typer.Option(help="Neighbours that vote.")] = 20,
    layer: Layer = -1,
    layers: Annotated[str | None, typer.Option(metavar="LIST", help="all, or several: 0,3,-1.")] = None,
    fractions: Annotated[str | None, typer.Option(metavar="LIST", help="Shares of the labels too: 0.01,0.1.")] = None,
    epochs: Annotated[int | None, options.epochs("Of the mae and attentive probes.")] = None,
    checkpoint: options.Checkpoint = "last",
    image_size: options.ImageSize = None,
    heads: options.Heads = None,
    normalise: options.Normalise = None,
    out: Annotated[Path | None, options.out("Where eval/ goes.  [the run's folder]")] = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    quiet: options.Quiet = False,
) -> None:
    """Say what a network learned: kNN and linear.

    Accuracy on frozen features, with all labels and with 10 a class, beside the same network untrained and raw pixels.
    """
    from remask.commands import refusals

    chosen: Any = "all" if layers == "all" else _numbers("--layers", layers, int)
    shares = _numbers("--fractions", fractions, float) or []
    refusals.check_protocol(protocol, chosen)
    network = _network_flags([run], image_size, heads, normalise, device, checkpoint)
    refusals.check_source(data, limit, exclude or ())
    refusals.check_second(val, exclude or ())
    refusals.check_folder_out(out)
    from remask.commands import probing, subjects

    wanted = probing.ProbeOptions(protocol, k, layer, chosen, shares, epochs, seed)  # type: ignore[arg-type]
    model = subjects.ModelOptions(**network)
    probing.probe(run, data, val, wanted, model, limit=limit, exclude=exclude or (), out=out, quiet=quiet, say=print)


def embed(
    run: options.Start,
    data: Annotated[str, options.data("Pictures.")],
    out: Annotated[Path, options.out("features.parquet or features.npz.", "FILE")],
    layer: Layer = -1,
    pool: Annotated[str, typer.Option(help="mean of the patches, or cls.")] = "mean",
    limit: options.Limit = None,
    exclude: options.Exclude = None,
    checkpoint: options.Checkpoint = "last",
    image_size: options.ImageSize = None,
    heads: options.Heads = None,
    normalise: options.Normalise = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a feature vector for every picture."""
    from remask.commands import refusals
    from remask.errors import UserError

    if pool not in ("mean", "cls"):
        raise UserError(f"there is no pool {pool!r}: choose mean or cls")
    network = _network_flags([run], image_size, heads, normalise, device, checkpoint)
    refusals.check_name(out)
    refusals.check_source(data, limit, exclude or ())
    refusals.check_file_out(out)
    from remask.commands import embedding, subjects

    model = subjects.ModelOptions(**network)
    embedding.embed(
        run, data, out, model, layer=layer, pool=pool, limit=limit, exclude=exclude or (), quiet=quiet, say=print
    )


def tsne(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or mae:FILE and the like.")],
    data: Annotated[str, options.data("Labelled pictures.")],
    out: Annotated[Path, options.out("The picture; a CSV goes beside it.", "PNG")] = Path("tsne.png"),
    names: Annotated[str | None, typer.Option(metavar="LIST", help="Titles of the panels: MAE,DMJD.")] = None,
    untrained: Annotated[bool, options.untrained("Put the first network untrained in front.")] = False,
    classes: Annotated[int, options.classes("Random classes.")] = 10,
    per_class: Annotated[int, typer.Option(metavar="N", help="Random pictures of each.")] = 100,
    perplexity: Annotated[float, typer.Option(help="Of t-SNE.")] = 30.0,
    k: Annotated[int, typer.Option(help="Neighbours, for the number in each title.")] = 20,
    layer: Layer = -1,
    image_size: options.ImageSize = None,
    heads: options.Heads = None,
    normalise: options.Normalise = None,
    exclude: options.Exclude = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    quiet: options.Quiet = False,
) -> None:
    """Map the same pictures in several networks, side by side."""
    from remask.commands import refusals

    titles = names.split(",") if names else ()
    refusals.check_tsne(out, titles, len(runs))
    network = _network_flags(runs, image_size, heads, normalise, device, "last")
    refusals.check_source(data, exclude=exclude or ())
    refusals.check_file_out(out)
    from remask.commands import projection, subjects

    wanted = projection.TsneOptions(titles, untrained, classes, per_class, perplexity, k, layer, seed)
    print(
        projection.tsne(runs, data, out, wanted, subjects.ModelOptions(**network), exclude=exclude or (), quiet=quiet)
    )


def attention(
    run: options.Start,
    images: Annotated[str, options.images("Pictures to show.")] = "photos",
    out: Annotated[Path | None, options.out("[RUN/pictures/attention.png]", "PNG")] = None,
    block: Annotated[int, typer.Option(metavar="N", help="From 0; -1 is the last.")] = -1,
    count: options.Count = 4,
    checkpoint: options.Checkpoint = "last",
    image_size: options.ImageSize = None,
    heads: options.Heads = None,
    normalise: options.Normalise = None,
    exclude: options.Exclude = None,
    quiet: options.Quiet = False,
) -> None:
    """Draw where a vision transformer looks, head by head."""
    from remask.commands import refusals

    network = _network_flags([run], image_size, heads, normalise, None, checkpoint)
    refusals.check_source(images, exclude=exclude or ())
    refusals.check_file_out(out)
    from remask.commands import attention_maps, subjects

    model = subjects.ModelOptions(**network)
    shown = exclude or ()
    print(attention_maps.attention(run, images, model, out=out, block=block, count=count, exclude=shown, quiet=quiet))


def _network_flags(
    networks: Sequence[str], image_size: str | None, heads: str | None, normalise: str | None, device: str | None,
    checkpoint: str,
) -> dict[str, Any]:  # fmt: skip
    """The fields of ModelOptions that the flags set. Raises UserError for a flag or network that is certainly wrong."""
    from remask.commands import refusals
    from remask.errors import UserError
    from remask.recipe import values

    if normalise not in (None, "imagenet", "half", "clip"):
        raise UserError(f"--normalise {normalise} is not known: give imagenet, half or clip")
    size, each = values.image_size(image_size), values.heads(heads)
    refusals.check_device(device)
    for network in networks:
        refusals.check_subject(network, checkpoint)
    return {
        "checkpoint": checkpoint, "image_size": size, "heads": each, "device": device or "auto", "normalise": normalise,
    }  # fmt: skip


def _numbers(flag: str, text: str | None, kind: Any) -> list[Any] | None:
    """The numbers of a list: "0,3,-1" -> [0, 3, -1]; None where no list was given. Raises UserError for other text."""
    from remask.errors import UserError

    try:
        return [kind(option) for option in text.split(",")] if text else None
    except ValueError:
        raise UserError(f"{flag} {text}: give numbers with commas between them") from None


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (probe, embed, tsne, attention):
        app.command()(command)


__all__ = ["register"]
