"""COCO instance annotations (1405.0312): images of a folder with boxes, classes and masks, checked when opened.

Segmentations are polygons, run lengths, or compressed run lengths. Targets exclude crowds; `truth` includes them, and
the evaluation ignores detections on them. If EXIF turns an image whose annotations belong to the stored pixels, the
annotations are turned too: boxes and masks fit the decoded image.
"""

import contextlib
import errno
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
from remask.files.bounds import MOST_PIXELS, open_regular, read_file
from remask.images.orientation import INVERSE, Exif, Header, agreed, read_header, turned_box, turned_size
from remask.images.sources.files import files_under, printable, sorted_out
from remask.images.sources.left_out import UNNAMED, Patterns
from remask.types import Size

Target: TypeAlias = dict[str, Any]
"""Instances of an image: boxes Float[n, 4], labels Int[n], masks UInt8[n, H, W] if the file has any, image_id, size."""


@dataclass
class CocoSource:
    """Numbered images with their annotations. Labels of instances start at 1, in the order of the category ids.

    images     entries of the file, "height" and "width" as decoded; "turned": the orientation by which EXIF turned the
               image and its annotations
    masks      whether every instance has a mask
    dropped    a line for each annotation that `skip_bad` left out
    unused     a line for each image that `skip_bad` left out
    """

    name: str
    folder: str
    images: list[dict[str, Any]]
    annotations: list[list[dict[str, Any]]]
    """Annotations of each image, with crowds."""
    classes: list[str]
    categories: list[Any]
    """COCO's ids of labels 1, 2, …"""
    masks: bool
    dropped: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """Numbers of files in the folder that the source does not contain, by reason."""
    labels: None = None
    """Always None: images have no class, unlike those of other sources."""

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> tuple[bytes, Target]:
        """The encoded image and its target: boxes x0 y0 x1 y1 in pixels, clipped to the image. Raises OSError."""
        return read_file(os.path.join(self.folder, self.images[i]["file_name"])), self.target(i)

    def target(self, i: int) -> Target:
        """The target of an image, without reading its file."""
        height, width = self.size(i)
        instances = self.instances(i)
        boxes = torch.tensor([a["bbox"] for a in instances], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes.clamp_(torch.zeros(4), torch.tensor([width, height, width, height], dtype=torch.float32))
        labels = torch.tensor([self.categories.index(a["category_id"]) + 1 for a in instances], dtype=torch.int64)
        target: Target = {"boxes": boxes, "labels": labels, "image_id": self.images[i]["id"], "size": (height, width)}
        if self.masks:
            masks = [decode_mask(a["segmentation"], (height, width)) for a in instances]
            target["masks"] = torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8)
        return target

    def instances(self, i: int) -> list[dict[str, Any]]:
        """The annotations of an image, without crowds."""
        return [a for a in self.annotations[i] if not a.get("iscrowd")]

    def size(self, i: int) -> Size:
        """Height and width of the decoded image."""
        return self.images[i]["height"], self.images[i]["width"]

    def where(self, i: int) -> str:
        return printable(os.path.join(self.name, self.images[i]["file_name"]))

    def skipped(self) -> dict[str, int]:
        """{"annotations", "pictures"}: numbers of those that `skip_bad` left out."""
        return {"annotations": len(self.dropped), "pictures": len(self.unused)}

    def all_skipped(self) -> list[str]:
        """A line for each image and annotation that `skip_bad` left out, with the folder of the images."""
        return [f"{printable(self.name)}: {line}" for line in (*self.unused, *self.dropped)]

    def notes(self) -> list[str]:
        """Lines about skipped, outside and turned images, for the start of the log."""
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
        """The annotations of the images `numbers`, or of all, as the content of a COCO file, for evaluation.

        Includes crowds. Annotations get new ids from 1, for COCO's matching takes an id of 0 for "unmatched". A missing
        area is that of the mask, or else of the box.
        """
        chosen = range(len(self)) if numbers is None else sorted(set(numbers))
        annotations = [self._judged(a, self.size(i)) for i in chosen for a in self.annotations[i]]
        images = [self.images[i] for i in chosen]
        return {
            "images": [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in images],
            "categories": [{"id": i, "name": name} for i, name in zip(self.categories, self.classes, strict=True)],
            "annotations": [{**a, "id": number} for number, a in enumerate(annotations, 1)],
        }

    def _judged(self, annotation: Entry, size: Size) -> Entry:
        """The keys of an annotation that an evaluation reads."""
        area, shape = annotation.get("area"), annotation.get("segmentation") if self.masks else None
        if area is None:
            area = area_of(shape, size) if shape else annotation["bbox"][2] * annotation["bbox"][3]
        copied = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        copied |= {"area": area, "iscrowd": annotation.get("iscrowd", 0)}
        return copied | ({"segmentation": shape} if shape else {})

    def as_annotated(self, results: Sequence[Entry]) -> list[Entry]:
        """Results on decoded images, turned back to the images of the file if EXIF turned them."""
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
    """Images of the folder `images` with the instances of the file `annotations`.

    limit      use the first N images in the file's order
    skip_bad   leave out unusable images and annotations, and report each once; else they are an error
    exif       "stored" or "upright": the image to which annotations belong, if EXIF turns it and sizes do not decide
    report     called with a line for each entry that `skip_bad` leaves out
    exclude    shell-style patterns of images to leave out, with their annotations
    Raises UserError, in one line with the first offenders: no such folder or file, no COCO instances, duplicate ids;
    images that are missing, of another size, of unknown orientation, or listed twice; annotations of unknown images or
    categories, with boxes without an area or outside the image, with masks that do not fit it.
    Unreadable images are not detected here, but when they are decoded.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    folder = annotated_folder(images, annotations)
    data = load(annotations)
    ids, names = categories_of(data["categories"], annotations)
    image_faults, faults = Faults(skip_bad), Faults(skip_bad)
    patterns = Patterns(exclude, images)
    listed_images = images_of(data["images"], annotations, image_faults)
    for entry in listed_images:  # all, for `_unnamed` compares them with the files of the folder
        entry["file_name"] = _file_name(entry["file_name"], folder)
    every = [p for p in listed_images if not patterns.exclude(p["file_name"])]
    entries = _matched(every[:limit], folder, (images, annotations), exif, image_faults)
    listed = frozenset(key_of(entry.get("id")) for entry in data["images"] if isinstance(entry, dict))
    known = Known(listed, {key_of(entry["id"]): entry for entry in entries}, ids)
    valid, masks = annotations_of(data["annotations"], known, annotations, faults)
    for entry, annotations_of_image in zip(entries, valid, strict=True):
        if "turned" in entry:
            annotations_of_image[:] = [_turned(a, entry) for a in annotations_of_image]
            size = entry["height"], entry["width"]
            entry["height"], entry["width"] = turned_size(size, entry["turned"])
    for line in [*image_faults.lines, *faults.lines] if report else ():
        report(line)  # type: ignore[misc]
    root, left_out = os.path.abspath(folder), {**_unnamed(folder, every, exclude), **patterns.counts}
    return CocoSource(
        images, root, entries, valid, names, [*ids.values()], masks, faults.lines, image_faults.lines, left_out
    )


def _unnamed(folder: str, entries: Sequence[dict[str, Any]], exclude: Sequence[str]) -> Counter[str]:
    """Numbers of files in the folder, by reason, that the annotations do not name."""
    named, left_out = {os.path.normpath(entry["file_name"]) for entry in entries}, Counter[str]()
    others = [path for path in files_under(folder, Patterns(exclude), left_out) if path not in named]
    if count := len(sorted_out(others, left_out)):
        left_out[UNNAMED] = count
    return left_out


def _matched(
    entries: list[Entry], folder: str, typed: tuple[str, str], exif: Exif | None, faults: Faults
) -> list[Entry]:
    """The entries whose file exists, is listed once, and has the annotated size, turned by EXIF or not."""
    images, path = map(printable, typed)
    paths = [os.path.join(folder, entry["file_name"]) for entry in entries]
    chunks = [paths[begin : begin + 64] for begin in range(0, len(paths), 64)]
    with ThreadPoolExecutor(8, "remask-headers") as pool:
        headers = [header for found in pool.map(lambda chunk: [*map(_header, chunk)], chunks) for header in found]
    names = [printable(entry["file_name"]) for entry in entries]
    missing = [name for name, header in zip(names, headers, strict=True) if header == MISSING]
    description = f"pictures of {path} are not in {images}"
    cure = "give the folder to which their file_name is relative"
    if any(header == MISSING and os.path.isabs(p["file_name"]) for p, header in zip(entries, headers, strict=True)):
        cure = "write each file_name relative to that folder"
    faults.add(missing, len(names), description, cure)
    lines, valid, known = list[str](), list[Entry](), dict[str, Any]()
    for entry, name, header in zip(entries, names, headers, strict=True):
        turn: int | str = 1
        if header == MISSING:
            continue
        if isinstance(header, Header):
            turn = agreed((entry["height"], entry["width"]), header, exif)
        if entry["height"] * entry["width"] > MOST_PIXELS:  # its masks would be drawn before it is refused
            turn = f"{entry['width']}x{entry['height']} is more than {MOST_PIXELS:,} pixels"
        if (other := known.setdefault(os.path.normpath(entry["file_name"]), entry["id"])) != entry["id"]:
            turn = f"it is picture {printable(str(entry['id']))} and {printable(str(other))}"
        if isinstance(turn, str):
            lines.append(f"{name}: {turn}")
        else:
            valid.append(entry if turn == 1 else {**entry, "turned": turn})
    description = f"pictures of {path} cannot be used"
    unsure = any("EXIF" in line for line in lines)
    cure = "say --set data.exif=stored or data.exif=upright, or leave them out by data.skip_bad (--skip-bad)"
    faults.add(lines, len(names), description, *([cure] if unsure else []))
    if not valid:
        raise UserError(f"none of the {len(names)} pictures of {path} can be used ({first(faults.lines)})")
    return valid


MISSING = "missing"


def _header(path: str) -> Header | str | None:
    """The header of an image file; MISSING if there is no file, None if it cannot be read."""
    try:
        with open_regular(path, buffering=4096) as file:
            return read_header(file)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return MISSING
    except OSError as error:
        return MISSING if error.errno == errno.EINVAL else None  # no regular file, or a name that none can have


def _file_name(name: str, folder: str) -> str:
    """The name of an existing image relative to the folder, else `name` unchanged.

    Tries the name as written, with "/" for Windows' "\\", and without the folder's name at the beginning. An absolute
    path into the folder becomes relative.
    """
    if os.path.isabs(name) or os.pardir in name.split("/"):
        inside = _below(os.path.join(os.path.abspath(folder), name), folder)
        return inside or name
    if os.path.isfile(os.path.join(folder, name)):
        return name
    with_slashes = name.replace("\\", "/")
    folder_name = os.path.basename(os.path.abspath(folder)) + "/"
    for candidate in (with_slashes, with_slashes.removeprefix("./").removeprefix(folder_name)):
        if candidate != name and os.path.isfile(os.path.join(folder, candidate)):
            return candidate
    return name


def _below(path: str, folder: str) -> str | None:
    """A path relative to the folder, if it leads into it by its text or through links; else None."""
    with contextlib.suppress(OSError, ValueError):  # a NUL byte, or half a surrogate
        for root, absolute in ((os.path.abspath(folder), path), (os.path.realpath(folder), os.path.realpath(path))):
            if os.path.normpath(absolute).startswith(root.rstrip(os.sep) + os.sep):
                return os.path.relpath(absolute, root)
    return None


def _leads_out(name: str) -> bool:
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def _turned(entry: Entry, image: Entry, back: bool = False) -> Entry:
    """An annotation of the stored pixels, turned like the image by EXIF; with `back` a result turned back."""
    orientation, size = image["turned"], (image["height"], image["width"])
    turned = {**entry, "bbox": turned_box(entry["bbox"], size, INVERSE[orientation] if back else orientation)}
    if "segmentation" in entry:
        shape = entry["segmentation"]
        turned["segmentation"] = turned_segmentation(shape, size, INVERSE[orientation] if back else orientation)
    return turned


__all__ = ["CocoSource", "Target", "decode_mask", "encode_mask", "open_coco"]
