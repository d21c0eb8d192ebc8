"""Which sources a pre-training recipe has, by the names that a message gives them: pictures, teachers, codebooks."""

from collections.abc import Callable
from pathlib import Path

from remask.downstream.data_sources import file_of
from remask.images.sources.fingerprint import announce, inventory, of_file
from remask.images.sources.opening import Source
from remask.recipe import Recipe
from remask.training.data_record import FIRST, Sources

CODEBOOK = "codebook"
TARGET_FILES = {"codebook": CODEBOOK, "dalle": "tokenizer", "stored": "stored ids"}
"""What method.target.file is, by method.target.tokenizer."""


def of_pretraining(recipe: Recipe, source: Source, probed: Source | None, say: Callable[[str], None]) -> Sources:
    """The pictures of a pre-training, those of kNN on the way with their labels, teachers, codebooks, first weights.

    say   gets a line before sizes are looked up, where they are many
    """
    announce(len(source), say)
    found, addresses = {"data": inventory(source)}, {"data": str(recipe.data.source)}
    if probed is not None and recipe.probe:
        found["probe"], addresses["probe"] = inventory(probed, labelled=True), recipe.probe.source
    files = files_of(recipe)
    return Sources(found | {role: of_file(path) for role, path in files.items()}, addresses | files)


def files_of(recipe: Recipe) -> dict[str, str]:
    """Local files and folders of weights and words that a pre-training reads, by role."""
    found = dict[str, str | None]()
    for section, before in ((recipe.method, ""), (recipe.jd, "visible ")):
        if section:
            target = section.target
            found[before + TARGET_FILES[target.tokenizer]] = target.file
            found[before + "teacher"] = target.weights or file_of(target.teacher)
    for number, teacher in enumerate(recipe.distill.teachers if recipe.distill else (), 1):
        found[f"teacher {number}"] = teacher.weights or file_of(teacher.source)
    found[FIRST] = file_of(recipe.backbone.weights)
    return {role: path for role, path in found.items() if path and Path(path).expanduser().exists()}


__all__ = ["CODEBOOK", "files_of", "of_pretraining"]
