"""What a rule about keys without effect is, those of targets and of downstream tasks; pre-training's are in used.py."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from remask.recipe.values import KEYS


class Rule(NamedTuple):
    """Keys that have an effect in some recipes only.

    keys    dotted keys, separated by spaces; a section includes its keys
    on      the deciding key
    used    recipe -> whether the keys have an effect
    by      owner of the keys, as the end of "it belongs to …"
    """

    keys: str
    on: str
    used: Callable[[Any], bool]
    by: str


def target_rules(section: str, file: bool) -> tuple[Rule, ...]:
    """Rules for keys of a target by its kind and, with `file`, for keys of a tokenizer by whether it has a file."""
    target = f"{section}.target"

    def target_of(recipe: Any) -> Any:
        return getattr(recipe, section).target

    def of_kind(kinds: Sequence[str]) -> Callable[[Any], bool]:
        return lambda recipe: not getattr(recipe, section) or target_of(recipe).kind in kinds

    kinds = tuple(
        Rule(f"{target}.{key}", f"{target}.kind", of_kind(kinds), f"targets of the kind {' or '.join(kinds)}")
        for key, kinds in KEYS.items()
    )
    tokens = (
        Rule(
            f"{target}.over {target}.teacher {target}.weights", f"{target}.file",
            lambda recipe: target_of(recipe).kind != "tokens" or target_of(recipe).file is None,
            "a codebook without a file, which is fitted first",
        ),
        Rule(
            f"{target}.weights", f"{target}.over",
            lambda recipe: target_of(recipe).kind != "tokens" or target_of(recipe).over == "features",
            'a codebook over = "features" of a teacher',
        ),
        Rule(
            f"{target}.vocabulary", f"{target}.file",
            lambda recipe: (
                target_of(recipe).kind != "tokens"
                or target_of(recipe).unfitted
                or target_of(recipe).tokenizer == "stored"
            ),
            "a codebook without a file, and stored ids: the file tells it",
        ),
    )  # fmt: skip
    return kinds + tokens if file else kinds


LEARNING = (
    Rule(
        "optim.base_lr", "optim.lr", lambda recipe: recipe.optim.lr is None, "runs without optim.lr, which is absolute"
    ),
    Rule("optim.power", "optim.schedule", lambda recipe: recipe.optim.schedule == "poly", 'schedule = "poly"'),
    Rule("optim.drops", "optim.schedule", lambda recipe: recipe.optim.schedule == "steps", 'schedule = "steps"'),
    Rule(
        "optim.min_lr", "optim.schedule", lambda recipe: recipe.optim.schedule != "steps",
        'schedule = "cosine" and "poly": steps end at a tenth of a tenth',
    ),
    Rule(
        "optim.layer_decay", "model.frozen", lambda recipe: not recipe.model.frozen,
        "training of the whole network: the head alone learns at the full rate",
    ),
    Rule(
        "runtime.parallel", "task", lambda recipe: False,
        "remask pretrain: this task runs in one process",
    ),
)  # fmt: skip

TASK_RULES: dict[str, tuple[Rule, ...]] = {
    "finetune": (
        *LEARNING,
        Rule(
            "augment.jitter", "augment.randaugment", lambda recipe: recipe.augment.randaugment in (None, "off"),
            "training without RandAugment, which replaces it",
        ),
        Rule(
            "augment.mix_prob", "augment.mixup", lambda recipe: bool(recipe.augment.mixup or recipe.augment.cutmix),
            "mixing: set augment.mixup or augment.cutmix above 0",
        ),
        Rule(
            "augment.switch_prob", "augment.mixup",
            lambda recipe: bool(recipe.augment.mixup and recipe.augment.cutmix),
            "mixing in both ways: set augment.mixup and augment.cutmix above 0",
        ),
    ),
    "segment": (
        *LEARNING,
        Rule("model.width model.aux", "model.head", lambda recipe: recipe.model.head == "upernet", 'head = "upernet"'),
        Rule("data.val_masks", "data.val", lambda recipe: recipe.data.val is not None, "test pictures: give data.val"),
    ),
    "detect": (
        *LEARNING,
        Rule(
            "data.val_annotations", "data.val", lambda recipe: recipe.data.val is not None,
            "test pictures: give data.val",
        ),
    ),
}  # fmt: skip
"""Command → rules of its recipes."""

__all__ = ["TASK_RULES", "Rule", "target_rules"]
