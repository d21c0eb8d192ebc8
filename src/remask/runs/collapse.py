"""A guard for methods that learn from their own average: are the features of different images still different?"""

from remask.errors import UserError
from remask.evaluation.health import deviation, rank_me
from remask.evaluation.probing.features import extract
from remask.images.sources.opening import Source
from remask.images.sources.subset import Subset
from remask.method import Method
from remask.recipe import Recipe
from remask.runs.knn import batches, full_method
from remask.training.runtime import Runtime
from remask.training.trainer import Hook

IMAGES = 256
LEAST = 0.01
"""Of the deviation of unit features. Untrained networks were seen at .35 to .6; where all images are alike it is 0."""


def collapse_guard(recipe: Recipe, method: Method, runtime: Runtime, source: Source) -> Hook:
    """Hook that returns {"health/rank", "health/deviation"} of pooled features after every epoch.

    They are those of up to 256 images, spread evenly over the source. Raises UserError in all processes where features
    have become alike, which a loss near zero would not show.
    """
    subset = Subset(source, range(0, len(source), -(-len(source) // IMAGES)))

    def hook(epoch: int) -> dict[str, float]:
        found, model = dict[str, float](), full_method(recipe, method, runtime)
        if runtime.world.main:
            found = _health(recipe, model, runtime, subset)
        (collapsed,) = runtime.world.any(found.get("health/deviation", 1.0) < LEAST)
        if collapsed:
            raise UserError(
                f"after epoch {epoch} the features of all images are alike, within {LEAST:g} of their length: the "
                "network learns from its own average and has found that a constant is easiest to predict. Lower "
                "optim.base_lr or optim.lr, raise average.decay, or add a target that is not its own, as jd.target hog"
            )
        return found

    return hook


def _health(recipe: Recipe, method: Method, runtime: Runtime, source: Source) -> dict[str, float]:
    """Effective rank and deviation; nothing where no image can be used, of which the loader speaks."""
    try:
        features, _ = extract(method.backbone, batches(recipe, source, max_bad=1.0), device=runtime.device)
    except UserError:
        return {}
    if len(features) < 2 or not bool(features.isfinite().all()):
        return {}
    return {"health/rank": rank_me(features), "health/deviation": deviation(features)}


__all__ = ["collapse_guard"]
