"""Recipes from recipes: `--method mae+dmjd` switches DM and JD, `--smoke` shrinks a run to seconds."""

from typing import Any

from remask.recipe.load import fail, merge
from remask.recipe.schema import METHODS, Recipe

PLUGINS = {"dm": ("dm",), "jd": ("jd",), "dmjd": ("dm", "jd")}


def method_overrides(spec: str) -> dict[str, Any]:
    """Overrides for `--method`: "mae", "mae+dm", "mae+jd", "mae+dmjd"; "dmjd" is "mae+dmjd".

    A section that is switched on keeps the settings the recipe has for it. Raises UserError on any other text.
    """
    base, *plugins = (f"{METHODS[0]}+{spec}" if spec in PLUGINS else spec).split("+")
    if base not in METHODS or not set(plugins) <= set(PLUGINS):
        known = ", ".join(f"{name}{plugin}" for name in METHODS for plugin in ("", "+dm", "+jd", "+dmjd"))
        fail(f'unknown method "{spec}"; known: {known}')
    on = {section for plugin in plugins for section in PLUGINS[plugin]}
    return {"method.name": base, **{section: "on" if section in on else "off" for section in ("dm", "jd")}}


def method_label(recipe: Recipe) -> str:
    """The text that `--method` would take: mae, mae+dm, mae+jd or mae+dmjd."""
    plugins = f"{'dm' if recipe.dm else ''}{'jd' if recipe.jd else ''}"
    return f"{recipe.method.name}+{plugins}" if plugins else recipe.method.name


def shrink(recipe: Recipe) -> Recipe:
    """The recipe in seconds on a CPU, for `--smoke`: same method, masking, targets, DM and JD on a toy network.

    Four steps of 8 pictures from the first 32, on a grid just fine enough for the masking; no probe on the way.
    """
    side = _side(recipe) * recipe.masking.cell * (recipe.backbone.patch or 16)
    small = {
        "data": {"image_size": (side, side), "limit": 32},
        "backbone": {"width": 32, "depth": 2, "heads": 2},
        "method": {"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
        "optim": {"epochs": 1, "warmup_epochs": 0.0, "batch_size": 8, "max_steps": 4, "precision": "fp32"},
        "runtime": {"device": "cpu", "workers": 0, "accumulate": 1, "compile": False},
        "probe": None,
    }
    if recipe.jd:
        small["jd"] = {"width": 32}
    return Recipe.model_validate(merge(recipe.model_dump(), small))


def _side(recipe: Recipe) -> int:
    """Masking cells along a side: the fewest that give every view a cell to see and, under DM, a new one to hide."""
    views = recipe.dm.views if recipe.dm else 1
    regulated = recipe.dm and not recipe.dm.independent
    fresh = recipe.dm.prediction - recipe.masking.ratio if recipe.dm and regulated else 1.0
    share = min(fresh, 1 - recipe.masking.ratio)
    sides = (2, 4, 8, 16) if recipe.masking.cell > 1 else (4, 8, 16)
    return next((side for side in sides if int(side**2 * share) >= max(1, views - 1)), sides[-1])
