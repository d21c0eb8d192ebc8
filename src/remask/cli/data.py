"""The commands about pictures before training: data check, data pack. `register` adds them to the app."""

from pathlib import Path
from typing import Annotated

import typer

from remask.cli import options

Src = Annotated[
    str, typer.Argument(metavar="SRC", help="Folder, list file, tar shards, parquet, a set's name.", show_default=False)
]
Channels = Annotated[int, typer.Option("--channels", metavar="N", help="Channels that pictures are decoded to.")]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="Processes that decode; 0 = this one.  [all cores]")
]

app = typer.Typer(
    name="data",
    help="Look at pictures before training, and pack them into one file that loads faster.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command()
def check(
    source: Src,
    patch: Annotated[int, typer.Option(metavar="PX", help="Side of a patch: smaller pictures are no use.")] = 16,
    image_size: Annotated[str, options.image_size("Size of the crops that are timed.")] = "224",
    channels: Channels = 3,
    range_: options.Range = None,
    limit: options.Limit = None,
    exclude: options.Exclude = None,
    workers: Workers = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Count, sizes, kinds, faults, mean and std, speed.

    Reads and decodes every picture once. Names what cannot be used and why, and says how fast training can be fed.
    """
    from remask.commands.refusals import check_source
    from remask.recipe.values import image_size as parsed
    from remask.recipe.values import pixel_range

    check_source(source, limit, exclude or ())
    parsed(image_size)
    rule = pixel_range(range_) or "auto"
    from remask.commands import surveying

    surveying.data_check(
        source, limit=limit, exclude=exclude or (), channels=channels, patch=patch, size=image_size, workers=workers,
        rule=rule, as_json=json, quiet=quiet,
    )  # fmt: skip


@app.command()
def pack(
    source: Src,
    out: Annotated[Path, options.out("New file; its name ends in .remask.", "FILE", show_default=False)],
    size: Annotated[
        str, typer.Option(metavar="PX|HxW", help="Shorter side at most; 256x256 = cut to this; 0 = as they are.")
    ] = "256",
    format: Annotated[str, typer.Option(metavar="KIND", help="jpeg, or raw: pixels, never decoded again.")] = "jpeg",
    quality: Annotated[int, typer.Option(metavar="1..100", help="Of the JPEGs that are written.")] = 90,
    channels: Channels = 3,
    max_bad: Annotated[float, options.max_bad("Share of bad pictures that stops.")] = 0.01,
    limit: options.Limit = None,
    exclude: options.Exclude = None,
    workers: Workers = None,
    quiet: options.Quiet = False,
) -> None:
    """Write all pictures into one file, decoded once.

    --data FILE then trains on it. Labels, class names and picture names are kept; JPEGs that are small enough are kept
    byte for byte, larger pictures are resized; equal ones are stored once; unusable ones are left out and named.
    """
    from remask.commands.forms import parse_form
    from remask.commands.refusals import check_file_out, check_source

    form = parse_form(format, size, quality, channels)
    check_source(source, limit, exclude or ())
    check_file_out(out)
    from remask.commands import packing

    packing.data_pack(
        source, out, form, limit=limit, exclude=exclude or (), workers=workers, max_bad=max_bad, quiet=quiet
    )


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app)


__all__ = ["register"]
