"""Rebuilds the method of an existing run, at any image size."""

from remask.build.pretraining import build_method
from remask.method import Method
from remask.recipe import Recipe
from remask.runs.progressive import at_size, grow, phase_of, phases
from remask.training.checkpoint import intact, load_weights, state_of
from remask.training.run_folder import RunFolder
from remask.types import Size


def untrained(recipe: Recipe, size: Size | None = None) -> Method:
    """The method with random initial weights, even if the run started from pre-trained ones."""
    name = recipe.backbone.name.partition(".")[0]  # without the tag of published weights
    backbone = recipe.backbone.model_copy(update={"weights": None, "name": name})
    return build_method(at_size(recipe.model_copy(update={"backbone": backbone}), size or recipe.data.image_size))


def trained(run: RunFolder, recipe: Recipe, name: str = "last", size: Size | None = None) -> Method:
    """The method of a run with the weights of the checkpoint `name`, for images of `size` pixels (None: the recipe's).

    Position tables are resized if the checkpoint was written at another size. Raises UserError if the network does not
    take the size, or the checkpoint does not fit.
    """
    folder = intact(run, name)
    written = phases(recipe)[phase_of(recipe, state_of(folder)["epoch"]) if recipe.progress else 0].recipe
    before, after = written.data.image_size, size or recipe.data.image_size
    method = build_method(written, start=False)
    load_weights(folder / "model.safetensors", method)
    if before == after:
        return method
    resized = build_method(at_size(recipe, after), start=False)
    resized.load_state_dict(grow(method.state_dict(), resized, before, after))
    return resized


__all__ = ["trained", "untrained"]
