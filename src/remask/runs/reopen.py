"""Runs that are there already: their recipe, and their networks at any image size."""

from pathlib import Path

from remask.build.pretraining import build_method
from remask.errors import UserError
from remask.files.escaping import quoted
from remask.method import Method
from remask.recipe import Recipe, load_recipe
from remask.recipe.formats import rules_of
from remask.runs.progressive import at_size, grow, phase_of, phases
from remask.training.checkpoint import load_weights, position
from remask.training.run_folder import RunFolder, find, is_task_run
from remask.types import Size


def open_run(path: Path) -> tuple[RunFolder, Recipe]:
    """A run folder and the recipe it was made with."""
    run = RunFolder.open(path)
    if is_task_run(path):
        raise UserError(
            f"{path} is a run of a downstream task, and this is for pre-training; remask report {quoted(path)} shows "
            f"its result, and after remask export {quoted(path)} remask embed and attention take it"
        )
    return run, _beside(load_recipe(path / "recipe.toml", rules_of(run.format), environment={}, strict=False), path)


def untrained(recipe: Recipe, size: Size | None = None) -> Method:
    """The method with its first weights, drawn at random even where the run started from a model's."""
    name = recipe.backbone.name.partition(".")[0]  # without the tag of published weights
    backbone = recipe.backbone.model_copy(update={"weights": None, "name": name})
    return build_method(at_size(recipe.model_copy(update={"backbone": backbone}), size or recipe.data.image_size))


def _beside(recipe: Recipe, folder: Path) -> Recipe:
    """A codebook that a run keeps in its own folder is found wherever the folder is moved."""
    file = recipe.method.target.file
    if file is None or not (folder / file).is_file():
        return recipe
    target = recipe.method.target.model_copy(update={"file": str(folder / file)})
    return recipe.model_copy(update={"method": recipe.method.model_copy(update={"target": target})})


def trained(run: RunFolder, recipe: Recipe, name: str = "last", size: Size | None = None) -> Method:
    """The method of a run with the weights of a checkpoint, for images of `size` pixels; the recipe's own by default.

    Tables of positions are resized where the checkpoint was written at another size. Raises UserError where the network
    does not take the size, or the checkpoint does not fit.
    """
    folder = find(run, name)
    written = phases(recipe)[phase_of(recipe, position(run, name)["epoch"]) if recipe.progress else 0].recipe
    before, after = written.data.image_size, size or recipe.data.image_size
    method = build_method(written, start=False)
    load_weights(folder / "model.safetensors", method)
    if before == after:
        return method
    other = build_method(at_size(recipe, after), start=False)
    other.load_state_dict(grow(method.state_dict(), other, before, after))
    return other


__all__ = ["open_run", "trained", "untrained"]
