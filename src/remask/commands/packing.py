"""`remask data pack`: all images of a source in one file."""

from collections.abc import Sequence
from pathlib import Path

from remask.commands.paths import paths_or_texts
from remask.commands.units import readable_size
from remask.files.escaping import printable
from remask.images.levels import Levels
from remask.images.sources.left_out import listed, notes
from remask.images.sources.opening import open_source
from remask.images.tools.form import Form
from remask.images.tools.measuring import measure
from remask.images.tools.packing import Written, pack
from remask.training.devices import cores
from remask.training.progress import console


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
    """Pack a source into the one file `out`, print a line about it, and return what became of each image."""
    images, count = open_source(source, limit=limit, exclude=exclude), workers if workers is not None else cores()
    with console(len(images), "pack", quiet) as screen:
        for line in notes(images):
            screen.say(line)

        sample = measure(images, form.channels)
        if sample.deep:
            screen.say(f"pixels: {sample.describe(form.channels)}")
            screen.say(f"a packed set has 8 bits: train from {printable(source)} itself for all levels")

        def progress(step: int, so_far: Written) -> None:
            screen.update(step, f"{readable_size(so_far.bytes)}, {len(so_far.left_out)} left out")

        done = pack(
            images, out, form, workers=count, max_bad=max_bad, levels=Levels.of(sample.rule), progress=progress,
            skipped=lambda line: screen.say(f"skipped {line}"),
        )  # fmt: skip
    kept = f", {done.kept:,} of them untouched" if done.kept else ""
    bad = f"; {len(done.left_out)} could not be used and are left out" if done.left_out else ""
    other = f"; not taken: {found}" if (found := listed(images.left_out)) else ""
    print(f"{done.pictures:,} pictures, {form.kind}{kept}, {readable_size(done.bytes)}{bad}{other} → {printable(out)}")
    return done


__all__ = ["data_pack"]
