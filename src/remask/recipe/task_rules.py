"""Rules for keys without effect in the recipes of downstream tasks."""

from remask.recipe.rules import Rule

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

__all__ = ["TASK_RULES"]
