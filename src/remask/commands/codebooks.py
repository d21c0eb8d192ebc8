"""`remask codebook`: the words that BEiT predicts, fitted on images and written into a file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from remask.build.codebook import fit
from remask.build.pixel_rule import with_pixel_rule
from remask.commands.choosing import choose_codebook_recipe
from remask.commands.paths import paths_or_texts
from remask.commands.refusals import refuse_file
from remask.images.sources.opening import open_source


@paths_or_texts
def codebook(
    data: str,
    out: Path,
    *,
    recipe: str = "beit-vit-b",
    target: str = "hog",
    vocabulary: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: Sequence[str] = (),
    exclude: Sequence[str] = (),
    quiet: bool = False,
) -> Path:
    """Fit a k-means codebook on images, for `method.target.file`; returns `out`, a new safetensors file.

    recipe  the one that patch and image size come from
    target  a vector target by its word (hog, hog-l2, pixels, pixels-norm) or a teacher's name as "timm:NAME"
    """
    refuse_file(out)
    chosen = choose_codebook_recipe(recipe, target, vocabulary, settings)
    source = open_source(data, limit=limit, exclude=exclude)
    say: Callable[[str], None] = (lambda line: None) if quiet else print
    chosen, line = with_pixel_rule(chosen, source)  # as a run of this recipe would read the same images
    say(line)
    fit(chosen, source, say, seed).save(out)
    return out


__all__ = ["codebook"]
