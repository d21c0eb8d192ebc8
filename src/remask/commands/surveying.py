"""`remask data check`: what is in a source."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from remask.commands.paths import paths_or_texts
from remask.commands.units import readable_size
from remask.files.escaping import encodable, printable, quoted
from remask.images.sources.left_out import listed
from remask.images.sources.opening import open_source
from remask.images.sources.packed import SUFFIX
from remask.images.sources.splits import chosen
from remask.images.tools.measuring import OTHER_BANDS, Rule
from remask.images.tools.survey import Survey, survey
from remask.recipe.values import image_size
from remask.training.devices import cores
from remask.training.progress import console

KEPT_MB = 1024
"""MiB that data.keep "auto" keeps in memory at most."""

LISTED = 10
"""Kinds and classes that are shown one by one."""

NAMED = 3
"""Unusable images that are shown one by one."""


@paths_or_texts
def data_check(
    source: str,
    *,
    limit: int | None = None,
    exclude: Sequence[str] = (),
    channels: int = 3,
    patch: int = 16,
    size: str = "224",
    rule: Rule = "auto",
    workers: int | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> Survey:
    """Look at every image of a source, print what it holds as text or JSON, and return it."""
    images, count = open_source(source, limit=limit, exclude=exclude), workers if workers is not None else cores()
    with console(len(images), "check", quiet) as screen:
        found = survey(
            images, channels=channels, patch=patch, size=image_size(size) or (224, 224), workers=count, rule=rule,
            progress=lambda step, so_far: screen.update(step, f"{len(so_far.unusable)} unusable"),
        )  # fmt: skip
    if as_json:
        print(json.dumps(encodable({**found.as_dict(), "cores": cores()}), indent=2))
    else:
        print("\n".join(_lines(found, source, channels, patch, size)))
    return found


def _lines(found: Survey, spec: str, channels: int, patch: int, size: str) -> list[str]:
    bad, other = len(found.unusable), listed(found.left_out)
    usable = f"{bad:,} of them unusable" if bad else "all usable"
    first = f"{printable(spec)}: {found.pictures:,} pictures, {usable}" + (f"; left out: {other}" if other else "")
    rows: dict[str, str] = {}
    if bad:
        named = "; ".join(f"{_short(where, spec)}: {reason}" for where, reason in list(found.unusable.items())[:NAMED])
        rows["unusable"] = named + (f"; and {bad - NAMED:,} more, which --json lists" if bad > NAMED else "")
    if found.remarks:
        rows["remarks"] = "; ".join(found.remarks)
    if needed := _channels(found, channels):
        rows["channels"] = needed
    if found.usable:
        small = f"; {found.too_small:,} below a patch of {patch} px are skipped" if found.too_small else ""
        frames = f"; {found.frames:,} have several frames, of which the first counts" if found.frames else ""
        rows |= {
            "size": f"height {_spread(found.height)}; width {_spread(found.width)}{small}",
            "kinds": _kinds(found.kinds) + frames,
            "classes": _classes(found),
            "content": f"{readable_size(found.stored_bytes)}, decoded {readable_size(found.decoded_bytes)}; "
            + (f"{found.repeated:,} are equal to another" if found.repeated else "no two are equal"),
            "pixels": found.pixels,
            "mean, std": f"--set data.mean={_list(found.mean)} --set data.std={_list(found.std)}",
            "speed": f"one core decodes {found.decode_rate:,.0f} pictures/s, {found.loader_rate:,.0f}/s with crops of "
            f"{size} px; {cores()} cores {found.loader_rate * cores():,.0f}/s at best",
            "advice": _advice(found, spec, channels),
        }
    return [first, *(f"{key:<11}{value}" for key, value in rows.items())]


def _channels(found: Survey, channels: int) -> str:
    """What training has to be told of the number of channels, where it is not three."""
    reasons = [reason for reason in found.unusable.values() if "in an array" not in reason]  # which says it itself
    bands = Counter(match[1] for reason in reasons if (match := OTHER_BANDS.match(reason)))
    lines = [f"train with --set data.channels={channels}"] if channels != 3 and found.usable else []
    for number, count in bands.most_common(2):
        both = f"check --channels {number}, train with --set data.channels={number}"
        lines.append(f"{count:,} images have {number}: {both}")
    return "; ".join(lines)


def _short(where: str, spec: str) -> str:
    """An image's address below the source."""
    return where.removeprefix(printable(os.path.join(os.path.expanduser(spec), "")))


def _kinds(kinds: dict[str, int]) -> str:
    shown = "; ".join(f"{count:,} {kind}" for kind, count in list(kinds.items())[:LISTED])
    rest = sum(list(kinds.values())[LISTED:])
    return shown + (f"; {rest:,} of other kinds" if rest else "")


def _spread(values: tuple[int, int, int]) -> str:
    low, middle, high = values
    return f"{low} px" if low == high else f"{low} to {high} px, median {middle}"


def _classes(found: Survey) -> str:
    classes = found.classes
    if found.splits:
        named = ", ".join(f"{printable(name)} {count:,}" for name, count in found.splits.items())
        line = f"no labels: the splits {named} are taken together"
        if os.path.isfile(os.path.expanduser(found.source)):
            return line
        train, val = (quoted(os.path.join(found.source, name)) for name in chosen(found.splits))
        return f"{line}; for one of them name {train} or {val}"
    if classes is None:
        return "no labels"
    shown = ", ".join(f"{name} {count:,}" for name, count in list(classes.items())[:LISTED])
    more = f", and {len(classes) - LISTED:,} more" if len(classes) > LISTED else ""
    return f"{len(classes):,} ({min(classes.values()):,} to {max(classes.values()):,} pictures): {shown}{more}"


def _advice(found: Survey, spec: str, channels: int) -> str:
    """A sentence: whether the set fits into memory as it is, and if not, the command that packs it smaller."""
    if found.decoded_bytes <= KEPT_MB << 20:
        return f"data.keep auto keeps it decoded ({readable_size(found.decoded_bytes)}): nothing to do"
    name = Path(spec.split(":")[-1]).stem.strip("*{}") or "pictures"
    command = f"remask data pack {quoted(spec)} --out {quoted(name + SUFFIX)}"
    if found.shorter > 256 * 1.25:
        share = (256 / found.shorter) ** 2
        return f"{command}: a shorter side of 256 for {found.shorter} decodes {share:.0%} of the pixels"
    extra = f" --channels {channels}" if channels != 3 else ""
    disk = readable_size(found.decoded_bytes)
    return f"{command} --format raw --size 0{extra}: {disk} of disk, and no decoding at all"


def _list(values: list[float]) -> str:
    return "[" + ",".join(f"{value:g}" for value in values) + "]"


__all__ = ["data_check"]
