"""The data sources of a downstream recipe by role: images, masks, annotations, initial weights."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from remask.downstream.detect.coco import CocoSource
from remask.downstream.segment.mask_source import MaskFiles
from remask.files.paths import home_expanded
from remask.images.sources.fingerprint import THREADS, Inventory, announce, below, inventory, of_file, reader, sizes_of
from remask.recipe.downstream import Downstream
from remask.training.data_record import FIRST, Sources

KEYS = {"data": ("source", "annotations", "annotations"), "val": ("val", "val_annotations", "val annotations")}
"""Role of training and test images → keys of [data] for images and annotations, and role of the annotations."""


def of_task(recipe: Downstream, sources: Mapping[str, tuple[Any, ...]], say: Callable[[str], None]) -> Sources:
    """Inventories of the images, masks or annotations of a downstream task, and of its initial weights.

    sources   by role, "data" (training) and "val" (test); several if one source was split into them
    """
    announce(sum(len(source) for group in sources.values() for source in group), say)
    inventories, addresses = dict[str, Inventory](), dict[str, str]()
    for role, group in sources.items():
        address, annotations, annotations_role = KEYS[role]
        inventories |= _of_any(role, group)
        addresses[role] = str(getattr(recipe.data, address))  # type: ignore[attr-defined]
        if file := getattr(recipe.data, annotations, None):  # type: ignore[attr-defined]
            inventories[annotations_role], addresses[annotations_role] = (
                of_file(home_expanded(file), hash_all=True),
                file,
            )
    weights = file_of(recipe.model.source)  # type: ignore[attr-defined]
    if weights:
        inventories[FIRST], addresses[FIRST] = of_file(weights), weights
    return Sources(inventories, addresses)


def file_of(spec: str | None) -> str | None:
    """The existing local file or folder in a spec like "mae:FILE"; for "run:FOLDER" its exported weights; else None."""
    kind, _, name = (spec or "").partition(":")
    path = Path(home_expanded(name))
    if not name or kind in ("timm", "untrained") or not path.exists():
        return None
    if kind == "run":
        candidates = [folder / "backbone.safetensors" for folder in (path, path / "export")]
        return next((str(file) for file in candidates if file.is_file()), None)
    return str(path)


def _of_any(role: str, group: tuple[Any, ...]) -> dict[str, Inventory]:
    if isinstance(group[0], MaskFiles):
        images, masks = of_masks(*group)
        return {role: images, "masks" if role == "data" else f"{role} masks": masks}
    if isinstance(group[0], CocoSource):
        return {role: of_boxes(group[0])}
    return {role: inventory(group[0], labelled=True)}


def of_masks(*sources: MaskFiles) -> tuple[Inventory, Inventory]:
    """Inventories of images and masks, sorted by name, of a source or of the sources it was split into."""
    first = sources[0]
    pairs = sorted((pair for source in sources for pair in source.pairs), key=lambda pair: pair.image)
    inventories = []
    for what, paths in (("pictures", [pair.image for pair in pairs]), ("masks", [pair.mask for pair in pairs])):
        names = below(paths, os.path.abspath(os.path.expanduser(first.name)))
        facts = {"ids": _tables(sources)} if what == "masks" else {}
        classes = list(first.classes) if what == "masks" else None
        files = Inventory(what, len(paths), names, sizes_of(paths), classes=classes, facts=facts)
        inventories.append(replace(files, read=reader(paths), threads=THREADS))
    return inventories[0], inventories[1]


def of_boxes(source: CocoSource) -> Inventory:
    """Inventory of the images that an annotation file names, in its order."""
    names = [image["file_name"] for image in source.images]
    paths = [os.path.join(source.folder, name) for name in names]
    classes = list(source.classes)
    files = Inventory("pictures", len(names), names, sizes_of(paths), classes=classes)
    return replace(files, read=reader(paths), threads=THREADS)


def _tables(sources: Sequence[MaskFiles]) -> str:
    """A hash of the tables that map ids in the masks to classes."""
    tables = sorted({tuple(map(tuple, table)) for source in sources for table in source.tables})
    return hashlib.blake2b(repr([[[*map(int, column)] for column in table] for table in tables]).encode()).hexdigest()


__all__ = ["file_of", "of_boxes", "of_masks", "of_task"]
