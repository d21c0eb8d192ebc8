"""Recipes from recipes: `--method mae+dmjd` switches DM and JD, `--smoke` shrinks a run to seconds."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from remask.recipe.layers import leaves, merge, nest
from remask.recipe.load import load_recipe, parse_settings
from remask.recipe.messages import fail, first_problem
from remask.recipe.schema import METHODS, Recipe, recipe_keys
from remask.recipe.sections import TARGETLESS
from remask.recipe.used import reset
from remask.recipe.values import Target

PLUGINS = {"dm": ("dm",), "jd": ("jd",), "dmjd": ("dm", "jd")}

OWN_TARGETS = {
    "mae": "pixels-norm",
    "simmim": "pixels",
    "maskfeat": "hog-l2",
    "beit": "tokens",
    "convmae": "pixels-norm",
    "fastmim": "hog-l2",
    "dmae": "pixels",
    "crossmae": "pixels-norm",
    "data2vec": "average",
    "localmim": "hog-l2",
}
"""Method → target of its paper; moma has none, for its students predict their teachers' features."""

TOYS: Mapping[str, dict[str, Any]] = {
    r"swin_": {"name": "swin_micro"},
    r"cmt_": {"name": "cmt_micro"},
    r"pvt_v2_": {"name": "pvt_v2_b0"},
    r"(vit_|beit|deit|convvit)": {"width": 32, "depth": 2, "heads": 2},
}
"""Pattern at the beginning of a network's name → overrides of [backbone] in a smoke run; {} for others."""

_TOY_HEADS = {
    "blocks": None, "layers": None, "width": 16, "hidden": 32, "predictor": 32, "queue": 32, "neighbours": 4
}  # fmt: skip
"""[refine] in a smoke run."""


def choose(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    teachers: Sequence[str] = (),
    settings: Sequence[str] = (),
    smoke: bool = False,
) -> Recipe:
    """The recipe by the flags of `remask pretrain`. Raises UserError for invalid flags.

    Flags take precedence over the small numbers of `smoke`, except for the toy network. Another method than the
    recipe's brings its paper's target, and another network its own sizes, unless flags set them.
    """
    switches = method_overrides(method) if method else {}
    flags = {**(overrides or {}), **parse_settings(settings)}
    if teachers:
        flags["distill.teachers"] = [teacher(text) for text in teachers]
    base = load_recipe(recipe) if switches or "backbone.name" in flags else None
    if base and switches.get("method.name", base.method.name) not in (base.method.name, *TARGETLESS):
        switches["method.target"] = OWN_TARGETS[switches["method.name"]]
    if base and flags.get("backbone.name", base.backbone.name) != base.backbone.name:
        switches |= {f"backbone.{key}": "off" for key in ("patch_size", "width", "depth", "heads", "class_tokens")}
    chosen = load_recipe(recipe, {**switches, **flags})
    return (
        shrink(chosen, {leaf for key, value in flags.items() for leaf in leaves(nest(key, value))}) if smoke else chosen
    )


def teacher(text: str) -> dict[str, Any]:
    """A value of `--teacher` as a table: "mae:FILE,heads=16,layer=17", "dino:FILE,heads=6,std=[0.5,0.5,0.5],…"."""
    source, *settings = re.split(r",(?![^\[]*\])", text)  # not at commas inside brackets
    return {"source": source, **parse_settings(settings)}


def method_overrides(spec: str) -> dict[str, Any]:
    """Overrides for `--method`: "mae", "mae+dm", "mae+jd", "mae+dmjd"; "dmjd" is "mae+dmjd".

    A section that is turned on keeps its settings in the recipe. Raises UserError for any other text.
    """
    base, *plugins = (f"{METHODS[0]}+{spec}" if spec in PLUGINS else spec).split("+")
    if base not in METHODS or not set(plugins) <= set(PLUGINS):
        known = ", ".join(f"{name}{plugin}" for name in METHODS for plugin in ("", "+dm", "+jd", "+dmjd"))
        fail(f'unknown method "{spec}"; known: {known}')
    on = {section for plugin in plugins for section in PLUGINS[plugin]}
    return {"method.name": base, **{section: "on" if section in on else "off" for section in ("dm", "jd")}}


def method_label(recipe: Recipe) -> str:
    """The recipe's method as `--method` takes it: mae, mae+dm, mae+jd or mae+dmjd."""
    plugins = f"{'dm' if recipe.dm else ''}{'jd' if recipe.jd else ''}"
    return f"{recipe.method.name}+{plugins}" if plugins else recipe.method.name


def shrink(recipe: Recipe, keep: Collection[str] = ()) -> Recipe:
    """A copy for `--smoke` that runs in seconds on a CPU: same method, masking, targets, DM and JD, with a toy network.

    Four steps of 8 images from the first 32, on the smallest grid that fits the masking, without probe. It needs no
    file and no download: an untrained network replaces a teacher, and a codebook of 16 words a tokenizer.

    keep    dotted keys to leave unchanged, because flags set them; the network's name is always replaced
    """
    toy: dict[str, Any] = next((toy for pattern, toy in TOYS.items() if re.match(pattern, recipe.backbone.name)), {})
    toy = {"name": recipe.backbone.name.partition(".")[0], **toy}  # without timm's tag, which would download weights
    named = recipe.backbone.model_copy(update=toy)
    stride = named.patch or 32
    side = _side(recipe) * math.lcm(stride, recipe.masking.cell_pixels or stride * recipe.masking.cell)
    batch = recipe.optim.batch_size if "optim.batch_size" in keep else 8
    padding = {"crop_padding": min(recipe.data.crop_padding, side - 1)} if recipe.data.crop == "simple" else {}
    small: dict[str, Any] = {
        "data": {"image_size": (side, side), "limit": 4 * batch, **padding},
        "backbone": toy,
        "masking": {"blob": min(recipe.masking.blob, side / 2)},
        "method": {
            "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "decoder_layers": None, "cells": None,
            "target": _toy_target(recipe.method.target, side / min(recipe.data.image_size)),
        },
        "optim": {"epochs": 1, "warmup_epochs": 0.0, "batch_size": 8, "max_steps": 4, "precision": "fp32"},
        "runtime": {"device": "cpu", "workers": 0, "accumulate": 1, "compile": False},
        "probe": None,
    }  # fmt: skip
    if recipe.method.name == "refiner":
        small |= {"refine": _TOY_HEADS, "backbone": {**toy, "weights": None}}
    if recipe.jd:
        small["jd"] = {"width": 32, "target": _toy_target(recipe.jd.target, side / min(recipe.data.image_size))}
    if recipe.distill:
        stand_in = "untrained:" + {4: "vit_micro", 8: "vit_tiny"}.get(stride, "vit_tiny_patch16_224")
        small["backbone"] = {**toy, "weights": None}
        teachers = [{"source": stand_in} for _ in recipe.distill.teachers]
        small["distill"] = {"teachers": teachers, "layers": None, "cache": None}
    if recipe.progress:  # two sizes, six steps: two after the switch
        keeps_size = "data.image_size" in keep or "progress.sizes" in keep
        height, width = recipe.data.image_size if keeps_size else (2 * side, 2 * side)
        small["progress"] = {"sizes": [(height // 2, width // 2), (height, width)], "epochs": None}
        small["data"]["image_size"] = (height, width)
        small["optim"] |= {"epochs": 2, "max_steps": 6}
    content = recipe.model_dump()
    if recipe.data.measured:  # defaults would count as set
        content["data"] = {key: value for key, value in content["data"].items() if key not in ("mean", "std")}
    try:
        return reset(Recipe.model_validate(merge(content, _without(small, keep))))
    except ValidationError as error:  # a flag that the small numbers do not allow
        fail(f"--smoke: {first_problem(error, recipe_keys(), {})}")


def _without(small: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """The small numbers without the keys in `named`; if epochs are named, max_steps is left out too."""
    ends = {"optim.epochs": "optim.max_steps"}
    excluded = {*named, *(end for key, end in ends.items() if key in named)} - {"backbone.name"}

    def of(values: Mapping[str, Any], path: str) -> dict[str, Any]:
        stays = {key: value for key, value in values.items() if f"{path}{key}" not in excluded}
        return {key: of(v, f"{path}{key}.") if isinstance(v, Mapping) else v for key, v in stays.items()}

    remaining = of(small, "")
    if any(key.startswith("probe.") for key in named):
        remaining.pop("probe", None)
    return remaining


def _toy_target(target: Target, share: float) -> dict[str, Any]:
    """Overrides for a target that would need a file, a download, deep blocks or large images; {} for others.

    share   side of the small images, in sides of the recipe's
    """
    if target.low_pass:
        return {"low_pass": target.low_pass * min(share, 1)}
    if target.kind == "average":
        return {"top": 1, "layers": None}
    if target.kind == "features":
        return {"teacher": "untrained:test_vit", "weights": None}
    if target.kind == "tokens":
        return {
            "tokenizer": "codebook",
            "over": "hog",
            "vocabulary": 16,
            "file": None,
            "teacher": None,
            "weights": None,
        }
    return {}


def _side(recipe: Recipe) -> int:
    """The smallest number of masking cells per side with a visible and, under DM, a newly masked cell in every view."""
    regulated = recipe.dm and not recipe.dm.independent
    views = recipe.dm.views if recipe.dm and regulated else 1
    fresh = recipe.dm.prediction - recipe.masking.ratio if recipe.dm and regulated else 1.0
    share = min(fresh, 1 - recipe.masking.ratio)
    coarse = recipe.masking.cell > 1 or (recipe.masking.cell_pixels or 0) >= 16
    sides = (2, 4, 8, 16) if coarse else (4, 8, 16)
    return next((side for side in sides if int(side**2 * share) >= max(1, views - 1)), sides[-1])
