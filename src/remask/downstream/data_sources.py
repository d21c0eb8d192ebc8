"""Which sources a downstream recipe has, by the names that a message gives them: images, masks, boxes, weights."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from remask.downstream.detect.coco import CocoSource
from remask.downstream.segment.mask_source import MaskFiles
from remask.images.sources.fingerprint import THREADS, Inventory, announce, below, inventory, of_file, reader, sizes_of
from remask.recipe.downstream import Downstream
from remask.training.data_record import FIRST, Sources

KEYS = {"data": ("source", "annotations", "annotations"), "val": ("val", "val_annotations", "val annotations")}
"""Of pictures to learn from and to test on: keys of [data] that name them and their annotations, and what these are."""


def of_task(recipe: Downstream, sources: Mapping[str, tuple[Any, ...]], say: Callable[[str], None]) -> Sources:
    """The pictures, masks or boxes of a downstream task, to learn from and to test on, and its first weights.

    sources   by role, "data" and "val"; several where one was cut into them
    """
    announce(sum(len(one) for group in sources.values() for one in group), say)
    found, addresses = dict[str, Inventory](), dict[str, str]()
    for role, group in sources.items():
        address, annotations, called = KEYS[role]
        found |= _of_any(role, group)
        addresses[role] = str(getattr(recipe.data, address))  # type: ignore[attr-defined]
        if file := getattr(recipe.data, annotations, None):  # type: ignore[attr-defined]
            found[called], addresses[called] = of_file(str(Path(file).expanduser()), hash_all=True), file
    start = file_of(recipe.model.source)  # type: ignore[attr-defined]
    if start:
        found[FIRST], addresses[FIRST] = of_file(start), start
    return Sources(found, addresses)


def file_of(spec: str | None) -> str | None:
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
        images, masks = of_masks(*group)
        return {role: images, "masks" if role == "data" else f"{role} masks": masks}
    if isinstance(group[0], CocoSource):
        return {role: of_boxes(group[0])}
    return {role: inventory(group[0], labelled=True)}


def of_masks(*sources: MaskFiles) -> tuple[Inventory, Inventory]:
    """Pictures and masks of a source, or of the sources that one was cut into, in the order of their names."""
    first = sources[0]
    pairs = sorted((pair for source in sources for pair in source.pairs), key=lambda pair: pair.image)
    found = []
    for what, paths in (("pictures", [pair.image for pair in pairs]), ("masks", [pair.mask for pair in pairs])):
        names = below(paths, os.path.abspath(os.path.expanduser(first.name)))
        facts = {"ids": _tables(sources)} if what == "masks" else {}
        classes = list(first.classes) if what == "masks" else None
        files = Inventory(what, len(paths), names, sizes_of(paths), classes=classes, facts=facts)
        found.append(replace(files, read=reader(paths), threads=THREADS))
    return found[0], found[1]


def of_boxes(source: CocoSource) -> Inventory:
    """Pictures that an annotation file names, in its order."""
    names = [image["file_name"] for image in source.images]
    paths = [os.path.join(source.folder, name) for name in names]
    classes = list(source.classes)
    files = Inventory("pictures", len(names), names, sizes_of(paths), classes=classes)
    return replace(files, read=reader(paths), threads=THREADS)


def _tables(sources: Sequence[MaskFiles]) -> str:
    """A hash of which id in the masks is which class."""
    tables = sorted({tuple(map(tuple, table)) for source in sources for table in source.tables})
    return hashlib.blake2b(repr([[[*map(int, column)] for column in table] for table in tables]).encode()).hexdigest()


__all__ = ["file_of", "of_boxes", "of_masks", "of_task"]
