"""COCO instance annotations (1405.0312): pictures of a folder with boxes, classes and masks, checked before their use.

Segmentations are polygons, run lengths, or compressed run lengths. Crowds are left out here and kept by `truth`, whose
evaluation ignores what is found on them. Where EXIF turns a picture whose annotations are those of the pixels in the
file, they are turned with it: boxes and masks are those of the picture as it is decoded.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from remask.downstream.detect.coco_annotations import Known, annotations_of
from remask.downstream.detect.coco_file import Entry, Faults, categories_of, first, images_of, key_of, load
from remask.downstream.detect.coco_masks import area_of, decode_mask, encode_mask, turned_segmentation
from remask.downstream.inputs import annotated_folder
from remask.errors import UserError
from remask.images.orientation import INVERSE, Exif, Header, agreed, read_header, turned_box, turned_size
from remask.images.sources.files import files_under, printable, sorted_out
from remask.images.sources.left_out import UNNAMED, Patterns
from remask.types import Size

Target: TypeAlias = dict[str, Any]
"""What is on a picture: boxes Float[n, 4], labels Int[n], masks UInt8[n, H, W] if the file has any, image_id, size."""


@dataclass
class CocoSource:
    """Numbered pictures with their annotations. `labels` of a picture run from 1, in the order of the category ids.

    images     entries of the file, "height" and "width" as decoded; "turned": the orientation by which EXIF turned the
               picture and its annotations
    masks      whether every instance has one
    dropped    a line for each annotation that `skip_bad` left out
    unused     a line for each picture that it left out
    """

    name: str
    folder: str
    images: list[dict[str, Any]]
    annotations: list[list[dict[str, Any]]]
    """By picture, crowds among them."""
    classes: list[str]
    categories: list[Any]
    """COCO's id of label 1, of label 2, …"""
    masks: bool
    dropped: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """How many files of the folder it does not take, by reason."""
    labels: None = None
    """A picture has no class of its own."""

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> tuple[bytes, Target]:
        """The encoded picture and what is on it: boxes x0 y0 x1 y1 in pixels, cut to the picture. Raises OSError."""
        with open(os.path.join(self.folder, self.images[i]["file_name"]), "rb") as file:
            return file.read(), self.target(i)

    def target(self, i: int) -> Target:
        """What is on the picture, without reading it."""
        height, width = self.size(i)
        found = self.instances(i)
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes.clamp_(torch.zeros(4), torch.tensor([width, height, width, height], dtype=torch.float32))
        labels = torch.tensor([self.categories.index(a["category_id"]) + 1 for a in found], dtype=torch.int64)
        target: Target = {"boxes": boxes, "labels": labels, "image_id": self.images[i]["id"], "size": (height, width)}
        if self.masks:
            masks = [decode_mask(a["segmentation"], (height, width)) for a in found]
            target["masks"] = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8)
        return target

    def instances(self, i: int) -> list[dict[str, Any]]:
        """The annotations of a picture that are no crowds."""
        return [a for a in self.annotations[i] if not a.get("iscrowd")]

    def size(self, i: int) -> Size:
        """Height and width of the picture as it is decoded."""
        return self.images[i]["height"], self.images[i]["width"]

    def where(self, i: int) -> str:
        return printable(os.path.join(self.name, self.images[i]["file_name"]))

    def skipped(self) -> dict[str, int]:
        """How many annotations and pictures `skip_bad` left out."""
        return {"annotations": len(self.dropped), "pictures": len(self.unused)}

    def all_skipped(self) -> list[str]:
        """A line for each of them, with the folder of the pictures."""
        return [f"{printable(self.name)}: {line}" for line in (*self.unused, *self.dropped)]

    def notes(self) -> list[str]:
        """Lines for a person who begins to use the pictures."""
        lines = list[str]()
        if self.unused or self.dropped:
            lines.append(
                f"data.skip_bad leaves out {len(self.unused)} pictures and {len(self.dropped)} annotations of "
                f"{printable(self.name)} ({first([*self.unused, *self.dropped])})"
            )
        if outside := sum(_leads_out(image["file_name"]) for image in self.images):
            lines.append(f"{outside} images do not lie in {printable(self.name)}: their file_name leads elsewhere")
        if turned := sum("turned" in image for image in self.images):
            lines.append(f"EXIF turns {turned} pictures of {printable(self.name)}, and their annotations with them")
        return lines

    def truth(self, numbers: Iterable[int] | None = None) -> dict[str, Any]:
        """The annotations of these pictures, or of all, as a COCO file: what an evaluation is made against.

        Crowds are among them. They are numbered anew from 1, for COCO's matching takes an id of 0 for "unmatched". One
        without an area has that of its mask, or else of its box.
        """
        chosen = range(len(self)) if numbers is None else sorted(set(numbers))
        found = [self._judged(a, self.size(i)) for i in chosen for a in self.annotations[i]]
        images = [self.images[i] for i in chosen]
        return {
            "images": [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in images],
            "categories": [{"id": i, "name": name} for i, name in zip(self.categories, self.classes, strict=True)],
            "annotations": [{**a, "id": number} for number, a in enumerate(found, 1)],
        }

    def _judged(self, annotation: Entry, size: Size) -> Entry:
        """What an evaluation reads of an annotation."""
        area, shape = annotation.get("area"), annotation.get("segmentation") if self.masks else None
        if area is None:
            area = area_of(shape, size) if shape else annotation["bbox"][2] * annotation["bbox"][3]
        kept = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        return (
            kept | {"area": area, "iscrowd": annotation.get("iscrowd", 0)} | ({"segmentation": shape} if shape else {})
        )

    def as_annotated(self, results: Sequence[Entry]) -> list[Entry]:
        """Results on the decoded pictures as results on the pictures of the file, where EXIF turned some."""
        turned = {image["id"]: image for image in self.images if "turned" in image}
        return [_turned(r, turned[r["image_id"]], back=True) if r["image_id"] in turned else r for r in results]


def open_coco(
    images: str,
    annotations: str,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    exif: Exif | None = None,
    report: Callable[[str], None] | None = None,
    exclude: Sequence[str] = (),
) -> CocoSource:
    """Pictures of the folder `images` with the instances that the file `annotations` names.

    limit      the first N pictures in the file's order
    skip_bad   leave out pictures and annotations that cannot be used, and report each once; else they are an error
    exif       "stored" or "upright": what the annotations lie on where EXIF turns a picture and sizes do not tell
    exclude    shell-style patterns of pictures that are left out, with their annotations
    Raises UserError, in one line with the first offenders: no such folder or file, no COCO instances, one id for two;
    pictures that are missing, of another size, turned one knows not how, or there twice; annotations of unknown
    pictures or categories, of boxes without an area or outside their picture, of masks that cannot be those of it.
    A picture that cannot be read is not looked for here: that is found when it is decoded.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    folder = annotated_folder(images, annotations)
    data = load(annotations)
    ids, names = categories_of(data["categories"], annotations)
    lost, wrong = Faults(skip_bad), Faults(skip_bad)
    patterns = Patterns(exclude, images)
    told = images_of(data["images"], annotations, lost)
    for entry in told:  # of all, since what the annotations name is compared with what the folder holds
        entry["file_name"] = _file_name(entry["file_name"], folder)
    every = [p for p in told if not patterns.exclude(p["file_name"])]
    entries = _matched(every[:limit], folder, (images, annotations), exif, lost)
    listed = frozenset(key_of(entry.get("id")) for entry in data["images"] if isinstance(entry, dict))
    known = Known(listed, {key_of(entry["id"]): entry for entry in entries}, ids)
    sound, masks = annotations_of(data["annotations"], known, annotations, wrong)
    for entry, found in zip(entries, sound, strict=True):
        if "turned" in entry:
            found[:] = [_turned(a, entry) for a in found]
            size = entry["height"], entry["width"]
            entry["height"], entry["width"] = turned_size(size, entry["turned"])
    for line in [*lost.lines, *wrong.lines] if report else ():
        report(line)  # type: ignore[misc]
    where, left_out = os.path.abspath(folder), {**_unnamed(folder, every, exclude), **patterns.counts}
    return CocoSource(images, where, entries, sound, names, [*ids.values()], masks, wrong.lines, lost.lines, left_out)


def _unnamed(folder: str, entries: Sequence[dict[str, Any]], exclude: Sequence[str]) -> Counter[str]:
    """What lies in the folder beside the images that the annotations name."""
    named, left_out = {os.path.normpath(entry["file_name"]) for entry in entries}, Counter[str]()
    others = [path for path in files_under(folder, Patterns(exclude), left_out) if path not in named]
    if count := len(sorted_out(others, left_out)):
        left_out[UNNAMED] = count
    return left_out


def _matched(
    entries: list[Entry], folder: str, typed: tuple[str, str], exif: Exif | None, faults: Faults
) -> list[Entry]:
    """Pictures with their files: there, once, and of the size that the annotations say, turned or not."""
    images, path = map(printable, typed)
    with ThreadPoolExecutor(8, "remask-headers") as pool:
        headers = list(pool.map(_header, (os.path.join(folder, p["file_name"]) for p in entries), chunksize=64))
    names = [printable(entry["file_name"]) for entry in entries]
    missing = [name for name, header in zip(names, headers, strict=True) if header == MISSING]
    words = f"pictures of {path} are not in {images}"
    cure = "give the folder to which their file_name is relative"
    if any(header == MISSING and os.path.isabs(p["file_name"]) for p, header in zip(entries, headers, strict=True)):
        cure = "write each file_name relative to that folder"
    faults.add(missing, len(names), words, cure)
    lines, sound, known = list[str](), list[Entry](), dict[str, Any]()
    for entry, name, header in zip(entries, names, headers, strict=True):
        turn: int | str = 1
        if header == MISSING:
            continue
        if isinstance(header, Header):
            turn = agreed((entry["height"], entry["width"]), header, exif)
        if (other := known.setdefault(os.path.normpath(entry["file_name"]), entry["id"])) != entry["id"]:
            turn = f"it is picture {printable(str(entry['id']))} and {printable(str(other))}"
        if isinstance(turn, str):
            lines.append(f"{name}: {turn}")
        else:
            sound.append(entry if turn == 1 else {**entry, "turned": turn})
    words = f"pictures of {path} cannot be used"
    unsure = any("EXIF" in line for line in lines)
    cure = "say --set data.exif=stored or data.exif=upright, or leave them out by data.skip_bad (--skip-bad)"
    faults.add(lines, len(names), words, *([cure] if unsure else []))
    if not sound:
        raise UserError(f"none of the {len(names)} pictures of {path} can be used ({first(faults.lines)})")
    return sound


MISSING = "missing"


def _header(path: str) -> Header | str | None:
    """None where a file cannot be read."""
    try:
        with open(path, "rb", buffering=4096) as file:
            return read_header(file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
        return MISSING
    except OSError:
        return None


def _file_name(name: str, folder: str) -> str:
    """The name under which a picture is in the folder, where one is: as it is written, with the slashes that Windows
    turns round, or without the folder's own name before it. A whole path becomes one below the folder, if it leads
    there."""
    if os.path.isabs(name) or os.pardir in name.split("/"):
        inside = _below(os.path.join(os.path.abspath(folder), name), folder)
        return inside or name
    if os.path.isfile(os.path.join(folder, name)):
        return name
    straight = name.replace("\\", "/")
    own = os.path.basename(os.path.abspath(folder)) + "/"
    for other in (straight, straight.removeprefix("./").removeprefix(own)):
        if other != name and os.path.isfile(os.path.join(folder, other)):
            return other
    return name


def _below(path: str, folder: str) -> str | None:
    """A whole path relative to the folder, where it leads into it by its text or over links."""
    with contextlib.suppress(OSError, ValueError):  # a NUL byte, or half a surrogate
        for root, absolute in ((os.path.abspath(folder), path), (os.path.realpath(folder), os.path.realpath(path))):
            if os.path.normpath(absolute).startswith(root.rstrip(os.sep) + os.sep):
                return os.path.relpath(absolute, root)
    return None


def _leads_out(name: str) -> bool:
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def _turned(entry: Entry, image: Entry, back: bool = False) -> Entry:
    """An annotation of the pixels in a file on the picture as EXIF turns it, or a result back again."""
    orientation, size = image["turned"], (image["height"], image["width"])
    turned = {**entry, "bbox": turned_box(entry["bbox"], size, INVERSE[orientation] if back else orientation)}
    if "segmentation" in entry:
        shape = entry["segmentation"]
        turned["segmentation"] = turned_segmentation(shape, size, INVERSE[orientation] if back else orientation)
    return turned


__all__ = ["CocoSource", "Target", "decode_mask", "encode_mask", "open_coco"]
