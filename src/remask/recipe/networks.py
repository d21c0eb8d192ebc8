"""Specifications of networks, like mae:FILE,heads=12: parsing, and checks that need no torch.

`interop` opens networks by specification, and raises the same errors.
"""

import json
import re
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.files.paths import home_expanded

FILES = (
    "mae", "dmae", "mocov3", "mocov3-momentum", "dino", "dmjd", "convmae", "beit", "simmim", "maskfeat", "fastmim",
)  # fmt: skip
"""Kinds of files with an encoder."""

ENCODERS = (*(f"{kind}:FILE" for kind in FILES), "timm:NAME", "untrained:NAME", "run:RUN")
TEACHERS = ("timm:NAME", "untrained:NAME", "torchvision:mobilenet_v2", "clip:NAME_OR_FOLDER", "open_clip:NAME", "tae:")
"""Specifications of encoders, and of teachers by their feature map, as messages list them."""

MAPS = ("torchvision", "clip", "open_clip", "tae")
"""Kinds of teachers whose output is a feature map, not tokens."""

SETTING = re.compile(r",(\w+)=")
SETTINGS = ("heads", "normalise", "mean", "std")
"""Settings that may follow a specification: mae:FILE,heads=12."""


def split_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """(specification, settings): "mae:FILE,heads=12" -> "mae:FILE", {"heads": 12}.

    Settings are heads, normalise, mean and std, lists in brackets. An existing file whose name contains commas is not
    split. Raises UserError for another setting, or an invalid value.
    """
    kind, _, name = spec.partition(":")
    match = SETTING.search(name)
    if match is None or Path(home_expanded(name)).exists():
        return spec, {}
    settings: dict[str, Any] = {}
    for setting in re.split(r",(?![^\[]*\])", name[match.start() + 1 :]):
        key, _, value = setting.partition("=")
        if key not in SETTINGS:
            raise UserError(f"{spec}: {key!r} is no setting of a network; known are {', '.join(SETTINGS)}")
        settings[key] = value if key == "normalise" else _number(spec, key, value)
    return f"{kind}:{name[: match.start()]}", settings


def check_encoder(spec: str) -> None:
    """Raise UserError for a specification of no encoder, or of a file or run that does not exist."""
    kind, _, name = split_spec(spec)[0].partition(":")
    if kind not in (*FILES, "timm", "untrained", "run") or not name:
        raise UserError(f"{spec!r} names no encoder; known are {', '.join(ENCODERS)}")
    if kind not in ("timm", "untrained") and not Path(home_expanded(name)).exists():
        raise UserError(f"{name} does not exist: the weights of the encoder {spec} were expected there")


def check_teacher(spec: str, weights: str | None = None) -> None:
    """Raise UserError for a specification that names no teacher with a feature map, or weights that do not exist."""
    kind, _, name = spec.partition(":")
    if weights and not Path(weights).exists():
        raise UserError(f"{weights} does not exist: the weights of the teacher {spec} were expected there")
    if kind not in ("timm", "untrained", *MAPS) or bool(name) == (kind == "tae"):
        raise UserError(f"{spec!r} names no teacher; known are {', '.join(TEACHERS)}")


def _number(spec: str, key: str, value: str) -> Any:
    """The value of a setting: a number, or a list of numbers. Raises UserError."""
    try:
        number = json.loads(value)
    except ValueError:
        number = None
    items = number if isinstance(number, list) else [number]
    allowed = int if key == "heads" else int | float
    if not items or any(isinstance(item, bool) or not isinstance(item, allowed) for item in items):
        example = "heads=12, or heads=[1,2,5,8] where stages differ" if key == "heads" else f"{key}=[0.5,0.5,0.5]"
        raise UserError(f"{spec}: {key}={value} is no number: write {example}")
    return number if key == "heads" else items


__all__ = ["ENCODERS", "FILES", "MAPS", "SETTINGS", "TEACHERS", "check_encoder", "check_teacher", "split_spec"]
