"""How a run reads its pixels: chosen once by a sample of its source, and written into its recipe."""

from collections.abc import Sequence
from typing import Any

from remask.errors import UserError
from remask.images.sources.opening import Source
from remask.images.tools.measuring import measure
from remask.recipe import Recipe


def with_pixel_rule(recipe: Recipe, source: Source) -> tuple[Recipe, str]:
    """The recipe with the range of pixel values that a sample of the source shows, and a line about the sample.

    Mean and deviation are taken from the sample too, where the recipe measures them.
    """
    data = recipe.data
    found = measure(source, data.channels, data.range)
    updates: dict[str, Any] = {"range": found.rule}
    line = f"pixels: {found.describe(data.channels, data.range)}"
    if data.measured and not (found.colour and data.channels == 3):
        updates |= {"mean": found.mean, "std": found.std}
        line += f"; mean {_numbers(found.mean)} and deviation {_numbers(found.std)} measured"
    _check_deep(recipe, found.deep)
    return recipe.model_copy(update={"data": data.model_copy(update=updates)}), line


def _numbers(values: Sequence[float]) -> str:
    shown = [f"{value:.3g}" for value in (values[:1] if len(set(values)) == 1 else values[:6])]
    return " ".join(shown) + " …" * (len(set(values)) > 1 and len(values) > 6)


def _check_deep(recipe: Recipe, deep: bool) -> None:
    """Raise UserError for a key that is for 8-bit images, where the source has deeper ones."""
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
