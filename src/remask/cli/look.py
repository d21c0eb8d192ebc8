"""The commands that look at what a network knows: probe, embed, tsne, attention. `register` adds them to the app."""

from pathlib import Path
from typing import Annotated, Any

import typer

from remask.cli.options import Exclude

Start = Annotated[
    str,
    typer.Argument(metavar="RUN|SPEC", help="A run, or mae:FILE, timm:NAME, untrained:NAME.", show_default=False),
]
Layer = Annotated[int, typer.Option(metavar="N", help="Block to read, from 0; -1 is the end, after the norm.")]
Checkpoint = Annotated[str, typer.Option(metavar="NAME", help="last, or a kept one such as epoch-0100.")]
ImageSize = Annotated[str | None, typer.Option(metavar="PX", help="224 or 96x160: pictures it sees.  [the run's]")]
Heads = Annotated[str | None, typer.Option(metavar="N", help="Attention heads, where a file does not tell them.")]
Normalise = Annotated[str | None, typer.Option(help="imagenet, half or clip, where a file does not tell.")]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Use the first N pictures of --data only.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]


def probe(
    run: Start,
    data: Annotated[str, typer.Option(metavar="SRC", help="Labelled pictures to learn the probes on.")],
    val: Annotated[str | None, typer.Option(metavar="SRC", help="Pictures to test on.  [1/5 of --data]")] = None,
    protocol: Annotated[
        str, typer.Option(help="fast (kNN, logistic regression), mae (BatchNorm, LARS, 90 epochs), attentive.")
    ] = "fast",
    limit: Limit = None,
    exclude: Exclude = None,
    k: Annotated[int, typer.Option(help="Neighbours that vote.")] = 20,
    layer: Layer = -1,
    layers: Annotated[str | None, typer.Option(metavar="LIST", help="all, or several: 0,3,-1.")] = None,
    shots: Annotated[int, typer.Option(metavar="N", help="Labels a class in the second half of the table.")] = 10,
    fractions: Annotated[str | None, typer.Option(metavar="LIST", help="Shares of the labels too: 0.01,0.1.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the mae and attentive probes.")] = None,
    checkpoint: Checkpoint = "last",
    image_size: ImageSize = None,
    heads: Heads = None,
    normalise: Normalise = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where eval/ goes.  [the run's folder]")] = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Say what a network learned: kNN and linear.

    Accuracy on frozen features, with all labels and a few a class, beside the same network untrained and raw pixels.
    """
    chosen: Any = "all" if layers == "all" else _numbers("--layers", layers, int)
    shares = _numbers("--fractions", fractions, float) or []
    from remask import commands
    from remask.errors import UserError

    if protocol not in ("fast", "mae", "attentive"):
        raise UserError(f"there is no probe {protocol!r}: choose fast, mae or attentive")
    asked = commands.Asked(protocol, k, layer, chosen, shares, epochs, seed, shots)  # type: ignore[arg-type]
    look = _look(checkpoint, image_size, heads, normalise, device)
    commands.probe(run, data, val, asked, look, limit=limit, exclude=exclude or (), out=out, quiet=quiet, say=print)


def embed(
    run: Start,
    data: Annotated[str, typer.Option(metavar="SRC", help="Pictures.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="features.parquet or features.npz.")],
    layer: Layer = -1,
    pool: Annotated[str, typer.Option(help="mean of the patches, or cls.")] = "mean",
    limit: Limit = None,
    exclude: Exclude = None,
    checkpoint: Checkpoint = "last",
    image_size: ImageSize = None,
    heads: Heads = None,
    normalise: Normalise = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Write a feature vector for every picture."""
    from remask import commands
    from remask.errors import UserError

    if pool not in ("mean", "cls"):
        raise UserError(f"there is no pool {pool!r}: choose mean or cls")
    look = _look(checkpoint, image_size, heads, normalise, device)
    commands.embed(
        run, data, out, look, layer=layer, pool=pool, limit=limit, exclude=exclude or (), quiet=quiet, say=print
    )


def tsne(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or mae:FILE and the like.")],
    data: Annotated[str, typer.Option(metavar="SRC", help="Labelled pictures.")],
    out: Annotated[Path, typer.Option(metavar="PNG", help="The picture; a CSV goes beside it.")] = Path("tsne.png"),
    names: Annotated[str | None, typer.Option(metavar="LIST", help="Titles of the panels: MAE,DMJD.")] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Put the first network untrained in front.")] = False,
    classes: Annotated[int, typer.Option(metavar="N", help="Random classes.")] = 10,
    per_class: Annotated[int, typer.Option(metavar="N", help="Random pictures of each.")] = 100,
    perplexity: Annotated[float, typer.Option(help="Of t-SNE.")] = 30.0,
    k: Annotated[int, typer.Option(help="Neighbours, for the number in each title.")] = 20,
    layer: Layer = -1,
    image_size: ImageSize = None,
    heads: Heads = None,
    normalise: Normalise = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Map the same pictures in several networks, side by side."""
    from remask import commands

    titles = names.split(",") if names else ()
    asked = commands.Mapped(titles, untrained, classes, per_class, perplexity, k, layer, seed)
    look = _look("last", image_size, heads, normalise, device)
    print(commands.tsne(runs, data, out, asked, look, exclude=exclude or (), quiet=quiet))


def attention(
    run: Start,
    images: Annotated[str, typer.Option(metavar="SRC", help="Pictures to show.")] = "photos",
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="[RUN/pictures/attention.png]")] = None,
    block: Annotated[int, typer.Option(metavar="N", help="From 0; -1 is the last.")] = -1,
    count: Annotated[int, typer.Option(metavar="N", min=1, max=32, help="Number of pictures.")] = 4,
    checkpoint: Checkpoint = "last",
    image_size: ImageSize = None,
    heads: Heads = None,
    normalise: Normalise = None,
    exclude: Exclude = None,
) -> None:
    """Draw where a vision transformer looks, head by head."""
    from remask import commands

    look = _look(checkpoint, image_size, heads, normalise, None)
    print(commands.attention(run, images, look, out=out, block=block, count=count, exclude=exclude or ()))


def _look(checkpoint: str, image_size: str | None, heads: str | None, normalise: str | None, device: str | None) -> Any:
    from remask import commands
    from remask.errors import UserError
    from remask.recipe import values

    if normalise not in (None, "imagenet", "half", "clip"):
        raise UserError(f"--normalise {normalise} is not known: give imagenet, half or clip")
    return commands.Look(checkpoint, values.image_size(image_size), values.heads(heads), device or "auto", normalise)


def _numbers(flag: str, text: str | None, kind: Any) -> list[Any] | None:
    """ "0,3,-1" -> [0, 3, -1]."""
    from remask.errors import UserError

    try:
        return [kind(part) for part in text.split(",")] if text else None
    except ValueError:
        raise UserError(f"{flag} {text}: give numbers with commas between them") from None


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (probe, embed, tsne, attention):
        app.command()(command)


__all__ = ["register"]
