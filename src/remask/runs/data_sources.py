"""The data sources of a pre-training recipe by role: images, teachers, codebooks, initial weights."""

from collections.abc import Callable
from pathlib import Path

from remask.downstream.data_sources import file_of
from remask.files.paths import home_expanded
from remask.images.sources.fingerprint import announce, inventory, of_file
from remask.images.sources.opening import Source
from remask.recipe import Recipe
from remask.training.data_record import FIRST, Sources

CODEBOOK = "codebook"
TARGET_FILES = {"codebook": CODEBOOK, "dalle": "tokenizer", "stored": "stored ids"}
"""method.target.tokenizer → role of method.target.file."""


def of_pretraining(recipe: Recipe, source: Source, probed: Source | None, say: Callable[[str], None]) -> Sources:
    """Inventories of the images, the labelled images of kNN probing, and the files of weights and codebooks.

    say   called with a line before the sizes of many files are looked up
    """
    announce(len(source), say)
    inventories, addresses = {"data": inventory(source)}, {"data": str(recipe.data.source)}
    if probed is not None and recipe.probe:
        inventories["probe"], addresses["probe"] = inventory(probed, labelled=True), recipe.probe.source
    files = files_of(recipe)
    return Sources(inventories | {role: of_file(path) for role, path in files.items()}, addresses | files)


def files_of(recipe: Recipe) -> dict[str, str]:
    """Role → existing local file or folder of weights, codebook or token ids that a pre-training reads."""
    paths = dict[str, str | None]()
    for section, prefix in ((recipe.method, ""), (recipe.jd, "visible ")):
        if section:
            target = section.target
            paths[prefix + TARGET_FILES[target.tokenizer]] = target.file
            paths[prefix + "teacher"] = target.weights or file_of(target.teacher)
    for number, teacher in enumerate(recipe.distill.teachers if recipe.distill else (), 1):
        paths[f"teacher {number}"] = teacher.weights or file_of(teacher.source)
    paths[FIRST] = file_of(recipe.backbone.weights)
    return {role: path for role, path in paths.items() if path and Path(home_expanded(path)).exists()}


__all__ = ["CODEBOOK", "files_of", "of_pretraining"]
