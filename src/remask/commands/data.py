"""Pictures before training: `pack` them into one file, `check` what is in a source."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from remask.commands.paths import paths_or_texts
from remask.files.escaping import encodable, printable, quoted
from remask.images.levels import Levels
from remask.images.sources.left_out import listed, notes
from remask.images.sources.opening import open_source
from remask.images.sources.packed import SUFFIX
from remask.images.sources.splits import chosen
from remask.images.tools.measuring import OTHER_BANDS, Rule, measure
from remask.images.tools.packing import Form, Written, pack
from remask.images.tools.survey import Survey, survey
from remask.recipe.values import image_size
from remask.training.progress import console

KEPT_MB = 1024
"""What data.keep "auto" keeps at most, in MiB."""

LISTED = 10
"""Kinds and classes that are shown one by one."""
NAMED = 3
"""Unusable pictures that are shown one by one."""


@paths_or_texts
def data_pack(
    source: str,
    out: Path,
    form: Form,
    *,
    limit: int | None = None,
    exclude: Sequence[str] = (),
    workers: int | None = None,
    max_bad: float = 0.01,
    quiet: bool = False,
) -> Written:
    """Write a packed set of a source; prints a line about it."""
    pictures, count = open_source(source, limit=limit, exclude=exclude), workers if workers is not None else cores()
    with console(len(pictures), "pack", quiet) as screen:
        for line in notes(pictures):
            screen.say(line)

        sample = measure(pictures, form.channels)
        if sample.deep:
            screen.say(f"pixels: {sample.describe(form.channels)}")
            screen.say(f"a packed set has 8 bits: train from {printable(source)} itself for all levels")

        def progress(step: int, so_far: Written) -> None:
            screen.update(step, f"{_size(so_far.bytes)}, {len(so_far.left_out)} left out")

        done = pack(
            pictures, out, form, workers=count, max_bad=max_bad, levels=Levels.of(sample.rule), progress=progress,
            skipped=lambda line: screen.say(f"skipped {line}"),
        )  # fmt: skip
    kept = f", {done.kept:,} of them untouched" if done.kept else ""
    bad = f"; {len(done.left_out)} could not be used and are left out" if done.left_out else ""
    other = f"; not taken: {found}" if (found := listed(pictures.left_out)) else ""
    print(f"{done.pictures:,} pictures, {form.kind}{kept}, {_size(done.bytes)}{bad}{other} → {printable(out)}")
    return done


def parse_form(kind: str, size: str, quality: int, channels: int) -> Form:
    """What `--format`, `--size` and the others ask for: 256 for the shorter side, 256x256 for all, 0 for any."""
    if "x" in size:
        return Form(kind, None, image_size(size, "--size"), quality, channels)
    shorter = None if size == "0" else (image_size(size, "--size") or (0, 0))[0]
    return Form(kind, shorter, None, quality, channels)


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
    """Print what is in a source, as text or JSON; `rule` is what data.range would be."""
    pictures, count = open_source(source, limit=limit, exclude=exclude), workers if workers is not None else cores()
    with console(len(pictures), "check", quiet) as screen:
        found = survey(
            pictures, channels=channels, patch=patch, size=image_size(size) or (224, 224), workers=count, rule=rule,
            progress=lambda step, so_far: screen.update(step, f"{len(so_far.unusable)} unusable"),
        )  # fmt: skip
    if as_json:
        print(json.dumps(encodable({**found.as_dict(), "cores": cores()}), indent=2))
    else:
        print("\n".join(_lines(found, source, channels, patch, size)))
    return found


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
            "content": f"{_size(found.stored_bytes)}, decoded {_size(found.decoded_bytes)}; "
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
    """A picture's address below the source."""
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
    """Whether the set is kept in memory as it is, and if not, how it is packed smaller."""
    if found.decoded_bytes <= KEPT_MB << 20:
        return f"data.keep auto keeps it decoded ({_size(found.decoded_bytes)}): nothing to do"
    name = Path(spec.split(":")[-1]).stem.strip("*{}") or "pictures"
    command = f"remask data pack {quoted(spec)} --out {quoted(name + SUFFIX)}"
    if found.shorter > 256 * 1.25:
        share = (256 / found.shorter) ** 2
        return f"{command}: a shorter side of 256 for {found.shorter} decodes {share:.0%} of the pixels"
    extra = f" --channels {channels}" if channels != 3 else ""
    return f"{command} --format raw --size 0{extra}: {_size(found.decoded_bytes)} of disk, and no decoding at all"


def _list(values: list[float]) -> str:
    return "[" + ",".join(f"{value:g}" for value in values) + "]"


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:,.2f} GB"


__all__ = ["data_check", "data_pack", "parse_form"]
