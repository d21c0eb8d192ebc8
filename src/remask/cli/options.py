"""Flags that several commands share, each written once. A flag of one command alone stands in its signature.

A name with a capital is the annotation of a parameter. A function makes the option of a flag whose sentence differs
between commands, for `Annotated[str, data("Labelled pictures.")]`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

SRC, DIR = "SRC", "DIR"


def data(help: str, metavar: str = SRC) -> Any:
    """The option --data: the images that a command works on."""
    return typer.Option("--data", metavar=metavar, help=help)


def val(help: str, metavar: str = SRC) -> Any:
    """The option --val: the images that a command tests on."""
    return typer.Option("--val", metavar=metavar, help=help)


def images(help: str, metavar: str = SRC, **limits: Any) -> Any:
    """The option --images: images that are shown, or their number."""
    return typer.Option("--images", metavar=metavar, help=help, **limits)


def out(help: str, metavar: str = DIR, **shown: Any) -> Any:
    """The option --out: the file or folder that a command writes."""
    return typer.Option("--out", metavar=metavar, help=help, **shown)


def recipe(help: str) -> Any:
    """The option --recipe: a name, or a TOML file."""
    return typer.Option("--recipe", help=help)


def target(help: str) -> Any:
    """The option --target: what is predicted, or turned into words."""
    return typer.Option("--target", help=help)


def epochs(help: str) -> Any:
    """The option --epochs: passes over the images."""
    return typer.Option("--epochs", help=help)


def batch_size(help: str) -> Any:
    """The option --batch-size: images of a step."""
    return typer.Option("--batch-size", help=help)


def image_size(help: str, metavar: str = "HxW") -> Any:
    """The option --image-size: pixels, 224 or 96x160."""
    return typer.Option("--image-size", metavar=metavar, help=help)


def classes(help: str) -> Any:
    """The option --classes: a number of classes."""
    return typer.Option("--classes", metavar="N", help=help)


def max_bad(help: str) -> Any:
    """The option --max-bad: the share of unusable images that stops a command."""
    return typer.Option("--max-bad", metavar="SHARE", help=help)


def untrained(help: str) -> Any:
    """The option --untrained: a network without its training."""
    return typer.Option("--untrained", help=help)


def device(help: str = "auto, cpu, cuda, cuda:N or mps.", **shown: Any) -> Any:
    """The option --device: where it is computed."""
    return typer.Option("--device", help=help, **shown)


def checkpoint(help: str) -> Any:
    """The option --checkpoint: the weights of a run."""
    return typer.Option("--checkpoint", metavar="NAME", help=help)


def seed() -> Any:
    """The option --seed."""
    return typer.Option("--seed", help="Seed of every random draw.")


def settings(help: str) -> Any:
    """The option --set: keys of a recipe."""
    return typer.Option("--set", metavar="KEY=VALUE", help=help)


def start() -> Any:
    """The argument for a network: a run, or a specification."""
    return typer.Argument(metavar="RUN|SPEC", help="A run, or mae:FILE, timm:NAME, untrained:NAME.", show_default=False)


Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that --out named.", show_default=False)]
Start = Annotated[str, start()]
StartOrNone = Annotated[str | None, start()]

Recipe = Annotated[str, recipe("A recipe's name (remask recipes) or a TOML file.")]
Settings = Annotated[list[str] | None, settings("Any key of the recipe; repeatable.")]
SettingsOfRun = Annotated[list[str] | None, settings("Another rate, clipping, … from here on; repeatable.")]
Method = Annotated[
    str | None,
    typer.Option("--method", help="mae, simmim, maskfeat, beit, convmae, fastmim, dmae, moma, with +dm, +jd, +dmjd."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="vit_micro, convvit_base, a timm ViT, BEiT or Swin; for fastmim any timm name."),
]
Epochs = Annotated[int | None, epochs("Passes over the pictures; the warm-up keeps its share.")]
BatchSize = Annotated[int | None, batch_size("Unique pictures per step, over all devices.")]
CropSize = Annotated[str | None, image_size("Size after cropping, 224 or 96x160.")]
ImageSize = Annotated[str | None, image_size("224 or 96x160: pictures it sees.  [the run's]", "PX")]
Heads = Annotated[
    str | None, typer.Option("--heads", metavar="N", help="Attention heads, where a file does not tell them.")
]
Normalise = Annotated[
    str | None, typer.Option("--normalise", help="imagenet, half or clip, where a file does not tell.")
]
Checkpoint = Annotated[str, checkpoint("last, or a kept one such as epoch-0100.")]
Device = Annotated[str | None, device(show_default=False)]
SeedOrNone = Annotated[int | None, seed()]
Seed = Annotated[int, seed()]

Limit = Annotated[int | None, typer.Option("--limit", metavar="N", help="Use the first N pictures only.")]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="PATTERN", help="Leave out such names or paths; * and ? allowed; repeatable."),
]
Range = Annotated[
    str | None,
    typer.Option("--range", metavar="RULE", help="Black and white of deep pictures: auto, full, byte or LOW,HIGH."),
]
MaxBad = Annotated[float | None, max_bad("Share of bad pictures that stops.")]
Count = Annotated[int, typer.Option("--count", metavar="N", min=1, max=32, help="Number of pictures.")]
Verify = Annotated[bool, typer.Option("--verify-data", help="Hash all pictures, to see edits that keep name and size.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
