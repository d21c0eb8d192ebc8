"""Which sources a recipe has, by the names that a message gives them: pictures, masks, boxes, teachers, codebooks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from remask.images.coco import CocoSource
from remask.images.fingerprint import Inventory, inventory, of_boxes, of_file, of_masks
from remask.images.masks import MaskFiles
from remask.images.sources import Source
from remask.recipe import Recipe
from remask.recipe.downstream import Downstream
from remask.training.data_record import FIRST, Sources

MANY = 200_000
"""Pictures whose sizes take more than a moment to look up; on a disk of this machine some seconds."""
CODEBOOK = "codebook"
TARGET_FILES = {"codebook": CODEBOOK, "dalle": "tokenizer", "stored": "stored ids"}
"""What method.target.file is, by method.target.tokenizer."""
KEYS = {"data": ("source", "annotations", "annotations"), "val": ("val", "val_annotations", "val annotations")}
"""Of pictures to learn from and to test on: keys of [data] that name them and their annotations, and what these are."""


def of_pretraining(recipe: Recipe, source: Source, probed: Source | None, say: Callable[[str], None]) -> Sources:
    """The pictures of a pre-training, those of kNN on the way with their labels, teachers, codebooks, first weights.

    say   gets a line before sizes are looked up, where they are many
    """
    _announce(len(source), say)
    found, addresses = {"data": inventory(source)}, {"data": str(recipe.data.source)}
    if probed is not None and recipe.probe:
        found["probe"], addresses["probe"] = inventory(probed, labelled=True), recipe.probe.source
    files = files_of(recipe)
    return Sources(found | {role: of_file(path) for role, path in files.items()}, addresses | files)


def of_task(recipe: Downstream, sources: Mapping[str, tuple[Any, ...]], say: Callable[[str], None]) -> Sources:
    """The pictures, masks or boxes of a downstream task, to learn from and to test on, and its first weights.

    sources   by role, "data" and "val"; several where one was cut into them
    """
    _announce(sum(len(one) for group in sources.values() for one in group), say)
    found, addresses = dict[str, Inventory](), dict[str, str]()
    for role, group in sources.items():
        address, annotations, called = KEYS[role]
        found |= _of_any(role, group)
        addresses[role] = str(getattr(recipe.data, address))  # type: ignore[attr-defined]
        if file := getattr(recipe.data, annotations, None):  # type: ignore[attr-defined]
            found[called], addresses[called] = of_file(str(Path(file).expanduser()), whole=True), file
    start = _file_of(recipe.model.source)  # type: ignore[attr-defined]
    if start:
        found[FIRST], addresses[FIRST] = of_file(start), start
    return Sources(found, addresses)


def files_of(recipe: Recipe) -> dict[str, str]:
    """Local files and folders of weights and words that a pre-training reads, by role."""
    found = dict[str, str | None]()
    for section, before in ((recipe.method, ""), (recipe.jd, "visible ")):
        if section:
            target = section.target
            found[before + TARGET_FILES[target.tokenizer]] = target.file
            found[before + "teacher"] = target.weights or _file_of(target.teacher)
    for number, teacher in enumerate(recipe.distill.teachers if recipe.distill else (), 1):
        found[f"teacher {number}"] = teacher.weights or _file_of(teacher.source)
    found[FIRST] = _file_of(recipe.backbone.weights)
    return {role: path for role, path in found.items() if path and Path(path).expanduser().exists()}


def _file_of(spec: str | None) -> str | None:
    """The local file or folder that "mae:FILE" and the like name; of a run its export's weights."""
    kind, _, name = (spec or "").partition(":")
    path = Path(name).expanduser()
    if not name or kind in ("timm", "untrained") or not path.exists():
        return None
    if kind == "run":
        inside = [folder / "backbone.safetensors" for folder in (path, path / "export")]
        return next((str(file) for file in inside if file.is_file()), None)
    return str(path)


def _of_any(role: str, group: tuple[Any, ...]) -> dict[str, Inventory]:
    if isinstance(group[0], MaskFiles):
        pictures, masks = of_masks(*group)
        return {role: pictures, "masks" if role == "data" else f"{role} masks": masks}
    if isinstance(group[0], CocoSource):
        return {role: of_boxes(group[0])}
    return {role: inventory(group[0], labelled=True)}


def _announce(count: int, say: Callable[[str], None]) -> None:
    """A line before the sizes of so many files are looked up, where that takes more than a moment."""
    if count >= MANY:
        say(f"looking up the sizes of {count:,} files")


__all__ = ["CODEBOOK", "files_of", "of_pretraining", "of_task"]
