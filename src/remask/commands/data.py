"""Pictures before training: `pack` them into one file, `check` what is in a source."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

from remask.commands.paths import paths_or_texts
from remask.console import console
from remask.images import open_source
from remask.images.checking import Survey, survey
from remask.images.packing import Form, Written, pack
from remask.recipe.values import image_size

KEPT_MB = 1024
"""What data.keep "auto" keeps at most, in MiB."""

LISTED = 10
"""Unusable pictures, kinds and classes that are shown one by one."""


@paths_or_texts
def data_pack(
    source: str,
    out: Path,
    form: Form,
    *,
    limit: int | None = None,
    workers: int | None = None,
    max_bad: float = 0.01,
    quiet: bool = False,
) -> Written:
    """Write a packed set of a source; prints a line about it."""
    pictures, count = open_source(source, limit=limit), workers if workers is not None else cores()
    with console(len(pictures), "pack", quiet) as screen:

        def progress(step: int, so_far: Written) -> None:
            screen.update(step, f"{_size(so_far.bytes)}, {len(so_far.left_out)} left out")

        done = pack(
            pictures, out, form, workers=count, max_bad=max_bad, progress=progress,
            skipped=lambda line: screen.say(f"skipped {line}"),
        )  # fmt: skip
    kept = f", {done.kept:,} of them untouched" if done.kept else ""
    bad = f"; {len(done.left_out)} could not be used and are left out" if done.left_out else ""
    print(f"{done.pictures:,} pictures, {form.kind}{kept}, {_size(done.bytes)}{bad} → {out}")
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
    channels: int = 3,
    patch: int = 16,
    size: str = "224",
    workers: int | None = None,
    as_json: bool = False,
    quiet: bool = False,
) -> Survey:
    """Print what is in a source, as text or JSON."""
    pictures, count = open_source(source, limit=limit), workers if workers is not None else cores()
    with console(len(pictures), "check", quiet) as screen:
        found = survey(
            pictures, channels=channels, patch=patch, size=image_size(size) or (224, 224), workers=count,
            progress=lambda step, so_far: screen.update(step, f"{len(so_far.unusable)} unusable"),
        )  # fmt: skip
    if as_json:
        print(json.dumps({**found.as_dict(), "cores": cores()}, indent=2))
    else:
        print("\n".join(_lines(found, source, channels, patch, size)))
    return found


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lines(found: Survey, spec: str, channels: int, patch: int, size: str) -> list[str]:
    bad = len(found.unusable)
    lines = [f"{spec}: {found.pictures:,} pictures, {f'{bad:,} of them unusable' if bad else 'all usable'}"]
    lines += [f"  {where}: {reason}" for where, reason in list(found.unusable.items())[:LISTED]]
    lines += [f"  and {bad - LISTED:,} more (--json lists all)"] * (bad > LISTED)
    if not found.usable:
        return lines
    rows: dict[str, Any] = {
        "height": _spread(found.height),
        "width": _spread(found.width),
        "kinds": "; ".join(f"{count:,} {kind}" for kind, count in list(found.kinds.items())[:LISTED]),
        "repeated": f"{found.repeated:,} have the very content of another" if found.repeated else "none",
        f"below {patch} px": f"{found.too_small:,}, which a patch of {patch} does not fit"
        if found.too_small
        else "none",
        "classes": _classes(found.classes),
        "stored": f"{_size(found.stored_bytes)}, decoded {_size(found.decoded_bytes)}",
        "mean, std": f"--set data.mean={_list(found.mean)} --set data.std={_list(found.std)}",
        "one core": f"decodes {found.decode_rate:,.0f} pictures/s; {found.loader_rate:,.0f}/s with crops of {size} px",
        f"{cores()} cores": f"{found.loader_rate * cores():,.0f} pictures/s at best, with nothing else to do",
        "advice": _advice(found, spec, channels),
    }
    return lines + [f"{key:<13}{value}" for key, value in rows.items()]


def _spread(values: tuple[int, int, int]) -> str:
    low, middle, high = values
    return f"{low} px" if low == high else f"{low} to {high} px, median {middle}"


def _classes(classes: dict[str, int] | None) -> str:
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
    command = f"remask data pack {shlex.quote(spec)} --out {shlex.quote(name)}.remask"
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
