"""Rules for keys that have no effect in some recipes; errors, resets and `dump` use this table.

Without an error, a user would not notice that a key has no effect. A rule names the keys, the deciding key, the
condition, and the owner of the keys. Keys that always have an effect need no rule.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from remask.recipe.masking import GUIDED
from remask.recipe.rules import Rule, target_rules
from remask.recipe.sections import DISTILLING, TARGETLESS
from remask.recipe.task_rules import TASK_RULES
from remask.recipe.values import Section

ATTENDING = ("mae", "convmae", "fastmim", "dmae", "crossmae", "localmim")
"""Methods with a decoder of transformer blocks."""

DECODING = (*ATTENDING, "data2vec")
"""Methods with a decoder."""

CHOOSING = ("mae", "convmae", "dmae")
"""Methods whose decoder may be MAE's or CrossMAE's."""

READING = (*CHOOSING, "crossmae")
"""Methods whose decoder starts from mask tokens: it may read several layers and predict some of the masked tokens."""

STARTING = ("simmim", "maskfeat", "beit")
"""Methods that can also use MAE's initial weights."""

PLAIN = ("vit_", "deit")
"""Prefixes of the names of plain ViTs, whose position tables are fixed or learned."""


def learns_from_average(recipe: Any) -> bool:
    """Whether a branch of a pre-training recipe learns from the student's moving average."""
    of_method = recipe.method.name not in TARGETLESS and recipe.method.target.kind == "average"
    return bool(of_method or recipe.method.name == "refiner" or (recipe.jd and recipe.jd.target.kind == "average"))


def uses_average(recipe: Any) -> bool:
    """Whether a pre-training recipe has a moving average: as a target, or as the guide of its masks."""
    return learns_from_average(recipe) or recipe.masking.pattern in GUIDED


PRETRAINING = (
    Rule(
        "method.target", "method.name", lambda recipe: recipe.method.name not in TARGETLESS,
        "the other methods: moma's students predict what their teachers see, refiner's their neighbours",
    ),
    Rule(
        "method.decoder_width method.decoder_depth", "method.name",
        lambda recipe: recipe.method.name in DECODING, f"{', '.join(DECODING)}, which have a decoder",
    ),
    Rule(
        "method.decoder_heads method.decoder_mlp_ratio", "method.name",
        lambda recipe: recipe.method.name in ATTENDING, f"{', '.join(ATTENDING)}, whose decoder has attention",
    ),
    Rule(
        "method.decoder_kernel method.class_weight", "method.name",
        lambda recipe: recipe.method.name == "data2vec", "data2vec",
    ),
    Rule(
        "average", "method.target.kind", uses_average,
        "targets of the kind average, of the method or of jd, refiner, and masking.pattern attention or loss",
    ),
    Rule(
        "masking.cell masking.cell_pixels masking.count", "masking.pattern",
        lambda recipe: recipe.masking.pattern != "none", "patterns that hide something",
    ),
    Rule(
        "dm", "method.name", lambda recipe: recipe.method.name != "refiner",
        "methods that hide tokens: refiner compares whole crops",
    ),
    Rule("refine", "method.name", lambda recipe: recipe.method.name == "refiner", "refiner"),
    Rule(
        "runtime.state_dict_type", "runtime.parallel", lambda recipe: recipe.runtime.parallel == "fsdp",
        'parallel = "fsdp": else each process has whole tensors',
    ),
    Rule(
        "method.decoder", "method.name", lambda recipe: recipe.method.name in CHOOSING,
        f"{', '.join(CHOOSING)}, whose decoder is to be chosen",
    ),
    Rule(
        "method.decoder_layers", "method.name", lambda recipe: recipe.method.name in (*READING, "localmim"),
        f"{', '.join(READING)} and localmim, whose decoders read the features of visible tokens",
    ),
    Rule("method.cells", "method.name", lambda recipe: recipe.method.name == "localmim", "localmim"),
    Rule(
        "method.target.cell", "method.name", lambda recipe: recipe.method.name != "localmim",
        "the other methods: localmim has method.cells, one for each of its layers",
    ),
    Rule(
        "masking.predicted", "method.name", lambda recipe: recipe.method.name in (*READING, "data2vec"),
        f"{', '.join(READING)} and data2vec, which drop masked tokens and predict them from a decoder",
    ),
    Rule(
        "masking.predicted", "dm",
        lambda recipe: recipe.masking.predicted != "once"
        or (recipe.dm is not None and recipe.dm.views > 1 and not recipe.dm.independent),
        'several disjoint views where it is "once": set dm on, or predicted = "all"',
    ),
    Rule("masking.blob", "masking.pattern", lambda recipe: recipe.masking.pattern == "green", "green noise"),
    Rule(
        "masking.probability masking.hints", "masking.pattern",
        lambda recipe: recipe.masking.pattern == "attention", "masks by attention",
    ),
    Rule("masking.share", "masking.pattern", lambda recipe: recipe.masking.pattern == "loss", "masks by loss"),
    Rule(
        "method.initial", "method.name", lambda recipe: recipe.method.name in STARTING,
        f"{', '.join(STARTING)}: the others have one start only",
    ),
    Rule(
        "distill", "method.name", lambda recipe: recipe.method.name in DISTILLING,
        f"{' and '.join(DISTILLING)}, which have teachers",
    ),
    Rule(
        "distill.learned distill.beta distill.jitter distill.cache", "method.name",
        lambda recipe: recipe.method.name != "dmae", "moma",
    ),
    Rule(
        "backbone.positions", "backbone.name", lambda recipe: recipe.backbone.name.startswith(PLAIN),
        "plain ViTs, as vit_base_patch16_224: the others have positions of their own",
    ),
    Rule(
        "backbone.class_tokens", "backbone.name", lambda recipe: recipe.backbone.name.startswith(PLAIN),
        "plain ViTs, as vit_base_patch16_224: the others have one class token or none",
    ),
    Rule(
        "data.crop_scale data.crop_ratio", "data.crop", lambda recipe: recipe.data.crop == "random", "random crops"
    ),
    Rule("data.crop_padding", "data.crop", lambda recipe: recipe.data.crop == "simple", "simple crops"),
    Rule(
        "masking.cell", "masking.cell_pixels", lambda recipe: recipe.masking.cell_pixels is None,
        "cells that are counted in patches; give one of the two",
    ),
    Rule(
        "dm.prediction", "dm.independent", lambda recipe: not (recipe.dm and recipe.dm.independent),
        "views that are disjoint",
    ),
    Rule("jd.width", "jd.layers", lambda recipe: not recipe.jd or recipe.jd.layers > 1, "projectors of several layers"),
    Rule(
        "optim.base_lr optim.lr_rule", "optim.lr", lambda recipe: recipe.optim.lr is None,
        "runs without optim.lr, which is absolute",
    ),
    Rule(
        "optim.lr_rule", "dm", lambda recipe: bool(recipe.dm) or recipe.masking.predicted != "all",
        "runs with [dm] or masking.predicted: without them both rules say the same",
    ),
    Rule(
        "optim.min_lr", "optim.drop_epoch", lambda recipe: recipe.optim.drop_epoch is None,
        "the cosine; with a drop the rate ends at a tenth",
    ),
    *target_rules("method", file=True),
    *target_rules("jd", file=False),
)  # fmt: skip

RULES: dict[str, tuple[Rule, ...]] = {"pretrain": PRETRAINING, **TASK_RULES}
"""Command → rules of its recipes."""


def rules_of(recipe: Any) -> tuple[Rule, ...]:
    """The rules for a recipe of pre-training or of a downstream task."""
    return RULES[getattr(recipe, "task", "pretrain")]


def unused(recipe: Any) -> dict[str, Rule]:
    """{key: rule} of the keys without effect in this recipe."""
    return {key: rule for rule in reversed(rules_of(recipe)) if not rule.used(recipe) for key in rule.keys.split()}


def complaint(recipe: Any, given: Iterable[str]) -> tuple[str, str] | None:
    """(first of the given keys without effect, error message); None if all have an effect.

    The message also names other given keys without effect by the same rule.
    """
    unused_keys = unused(recipe)
    matches = [
        (key, rule)
        for key in given
        for below, rule in unused_keys.items()
        if key == below or key.startswith(f"{below}.")
    ]
    if not matches:
        return None
    first, rule = matches[0]
    keys = [key for key, other in matches if other is rule]
    state = _shown(_value(recipe, rule.on.split(".")))
    have, belong, them = ("has", "it belongs", "it") if len(keys) == 1 else ("have", "they belong", "them")
    return first, f"{', '.join(keys)} {have} no use with {rule.on} {state}: {belong} to {rule.by}; leave {them} out"


def reset(recipe: Any) -> Any:
    """The recipe with all keys without effect, which it may inherit, reset to their defaults."""
    for key in unused(recipe):
        recipe = _at_default(recipe, key.split("."))
    return recipe


def _at_default(section: Any, path: Sequence[str]) -> Any:
    """A section with one key reset; unchanged if the key is in a section that is off, or has no default."""
    if section is None:
        return None
    name, *rest = path
    field = type(section).model_fields[name]
    if rest:
        value = _at_default(getattr(section, name), rest)
    elif field.is_required():
        return section
    else:
        value = field.default
    return section if value == getattr(section, name) else section.model_copy(update={name: value})


def _value(section: Any, path: Sequence[str]) -> Any:
    for name in path:
        section = getattr(section, name, None)
    return section


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Section):
        return "on"
    return "off" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


__all__ = [
    "DECODING", "PLAIN", "RULES", "STARTING", "Rule", "complaint", "learns_from_average", "reset", "rules_of", "unused",
    "uses_average",
]  # fmt: skip
