"""Chooses the range of pixel values from a sample of the source, and writes it into the recipe."""

from collections.abc import Sequence
from typing import Any

from remask.errors import UserError
from remask.images.sources.opening import Source
from remask.images.tools.measuring import measure
from remask.recipe import Recipe


def with_pixel_rule(recipe: Recipe, source: Source) -> tuple[Recipe, str]:
    """The recipe with data.range measured on a sample of the source, and a line that describes the sample.

    If the recipe measures mean and standard deviation, they come from the same sample. Raises UserError for keys that
    need 8-bit images, if the source's are deeper.
    """
    data = recipe.data
    sample = measure(source, data.channels, data.range)
    updates: dict[str, Any] = {"range": sample.rule}
    line = f"pixels: {sample.describe(data.channels, data.range)}"
    if data.measured and not (sample.colour and data.channels == 3):
        updates |= {"mean": sample.mean, "std": sample.std}
        line += f"; mean {_numbers(sample.mean)} and deviation {_numbers(sample.std)} measured"
    _check_deep(recipe, sample.deep)
    return recipe.model_copy(update={"data": data.model_copy(update=updates)}), line


def _numbers(values: Sequence[float]) -> str:
    shown = [f"{value:.3g}" for value in (values[:1] if len(set(values)) == 1 else values[:6])]
    return " ".join(shown) + " …" * (len(set(values)) > 1 and len(values) > 6)


def _check_deep(recipe: Recipe, deep: bool) -> None:
    """Raise UserError for a key that needs 8-bit images, if the source's images are deeper."""
    if not deep or recipe.data.range == "byte":
        return
    for key, is_set in {
        "distill.jitter": recipe.distill and recipe.distill.jitter,
        'data.keep "device"': recipe.data.keep == "device",
        'data.decode "cuda"': recipe.data.decode == "cuda",
        'method.target.tokenizer "stored"': recipe.method.target.tokenizer == "stored",
    }.items():
        if is_set:
            raise UserError(f"{key} is for 8-bit pictures, and these are deeper: leave it out, or set data.range=byte")


__all__ = ["with_pixel_rule"]
