"""COCO instance annotations (1405.0312): pictures of a folder with boxes, classes and masks, checked before their use.

Segmentations are polygons, run lengths, or compressed run lengths. Crowds are left out here and kept by `truth`, whose
evaluation ignores what is found on them.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import UInt8
from torch import Tensor

from remask.images.files import files_under, printable, sorted_out
from remask.images.left_out import UNNAMED, Patterns
from remask.textfiles import read_json
from remask.types import Size, UserError

Target: TypeAlias = dict[str, Any]
"""What is on a picture: boxes Float[n, 4], labels Int[n], masks UInt8[n, H, W] if the file has any, image_id, size."""

_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
}
"""What an instances file must say, and of what type."""


@dataclass
class CocoSource:
    """Numbered pictures with their annotations. `labels` of a picture run from 1, in the order of the category ids.

    masks     whether every instance has one
    dropped   a line for each annotation that `skip_bad` left out
    """

    name: str
    folder: str
    images: list[dict[str, Any]]
    annotations: list[list[dict[str, Any]]]
    """By picture, crowds among them."""
    classes: list[str]
    categories: list[int]
    """COCO's id of label 1, of label 2, …"""
    masks: bool
    dropped: list[str] = field(default_factory=list)
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
        """Height and width as the file says."""
        return self.images[i]["height"], self.images[i]["width"]

    def where(self, i: int) -> str:
        return printable(os.path.join(self.name, self.images[i]["file_name"]))

    def truth(self) -> dict[str, Any]:
        """The annotations as a COCO file of these pictures, crowds included: what an evaluation is made against.

        Annotations are numbered anew from 1, for COCO's matching takes an id of 0 for "unmatched".
        """
        found = [a for of_picture in self.annotations for a in of_picture]
        return {
            "images": [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in self.images],
            "categories": [{"id": i, "name": name} for i, name in zip(self.categories, self.classes, strict=True)],
            "annotations": [
                {**a, "id": number, "area": a.get("area", a["bbox"][2] * a["bbox"][3]), "iscrowd": a.get("iscrowd", 0)}
                for number, a in enumerate(found, 1)
            ],
        }


def open_coco(
    images: str,
    annotations: str,
    *,
    limit: int | None = None,
    skip_bad: bool = False,
    report: Callable[[str], None] | None = None,
    exclude: Sequence[str] = (),
) -> CocoSource:
    """Pictures of the folder `images` with the instances that the file `annotations` names.

    limit      the first N pictures in the file's order
    skip_bad   leave out annotations that cannot be used, and report each once; otherwise they are an error
    exclude    shell-style patterns of pictures that are left out, with their annotations
    Raises UserError: no such folder or file, no COCO instances, pictures that are missing, annotations of unknown
    pictures or categories, and those of boxes without an area or outside their picture or of masks of another size.
    """
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} images leaves nothing: give 1 or more")
    folder = os.path.expanduser(images)
    if not os.path.isdir(folder):
        raise UserError(f"{printable(images)} is no folder: give the one that holds the pictures of {annotations}")
    data = _load(annotations)
    _check_references(data, annotations)
    patterns = Patterns(exclude, images)
    every = [picture for picture in data["images"] if not patterns.exclude(picture["file_name"])]
    pictures = every[:limit]
    _check_present(folder, pictures, images, annotations)
    chosen = {picture["id"] for picture in pictures}
    known = [a for a in data["annotations"] if a["image_id"] in chosen]
    masks = any(a.get("segmentation") for a in known)
    sound, lines = _sorted_out(known, pictures, masks)
    if lines and not skip_bad:
        raise UserError(
            f"{len(lines)} of {len(known)} annotations of {printable(annotations)} cannot be used ({_first(lines)}): "
            "repair them, or leave them out by data.skip_bad"
        )
    for line in lines if report else ():
        report(line)  # type: ignore[misc]
    categories = sorted(data["categories"], key=lambda category: category["id"])
    names, ids = [printable(c["name"]) for c in categories], [c["id"] for c in categories]
    left_out = {**_unnamed(folder, every, exclude), **patterns.counts}
    return CocoSource(images, os.path.abspath(folder), pictures, sound, names, ids, masks, lines, left_out)


def _unnamed(folder: str, pictures: Sequence[dict[str, Any]], exclude: Sequence[str]) -> Counter[str]:
    """What lies in the folder beside the pictures that the annotations name."""
    named, left_out = {os.path.normpath(picture["file_name"]) for picture in pictures}, Counter[str]()
    others = [path for path in files_under(folder, Patterns(exclude), left_out) if path not in named]
    if count := len(sorted_out(others, left_out)):
        left_out[UNNAMED] = count
    return left_out


def _sorted_out(
    annotations: Sequence[dict[str, Any]], pictures: Sequence[dict[str, Any]], masks: bool
) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """The annotations of each picture that can be used, and a line for each that cannot."""
    by_picture: dict[int, list[dict[str, Any]]] = {picture["id"]: [] for picture in pictures}
    images, lines = {picture["id"]: picture for picture in pictures}, []
    for annotation in annotations:
        image = images[annotation["image_id"]]
        if fault := _fault(annotation, image, masks):
            lines.append(f"annotation {annotation.get('id', '?')} of {printable(image['file_name'])}: {fault}")
        else:
            by_picture[image["id"]].append(annotation)
    return list(by_picture.values()), lines


def decode_mask(segmentation: Any, size: Size) -> UInt8[Tensor, "H W"]:
    """0 and 1 of the polygons or run lengths of one instance."""
    rle = _coco().segmToRle(segmentation, size[1], size[0]) if not _compressed(segmentation) else segmentation
    return torch.from_numpy(_coco().decode(rle))


def encode_mask(mask: UInt8[Tensor, "H W"]) -> dict[str, Any]:
    """Compressed run lengths, as a JSON file holds them."""
    rle = _coco().encode(mask.cpu().t().contiguous().t().numpy())  # columns first: COCO's order
    counts = rle["counts"]
    return {"size": [int(n) for n in mask.shape], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _coco() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise UserError("detection needs the package faster-coco-eval: pip install 'remask[dense]'") from None
    return mask


def _load(path: str) -> dict[str, Any]:
    """The file's lists, every entry with the fields that are needed."""
    shown = printable(path)
    try:
        data = read_json(os.path.expanduser(path), shown)
    except OSError as error:
        raise UserError(f"cannot read the annotations {shown}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{shown} is no COCO file: it is not JSON ({error})") from None
    lacking = [key for key in _FIELDS if not isinstance(data, dict) or not isinstance(data.get(key), list)]
    if lacking:
        raise UserError(f"{shown} is no COCO instances file: it has no list {', '.join(lacking)}")
    if any("segments_info" in a for a in data["annotations"][:1]):
        raise UserError(f"{shown} is a COCO panoptic file: detection needs the instances file of the same pictures")
    for key, fields in _FIELDS.items():
        bad = [f"number {n}" for n, entry in enumerate(data[key]) if not _has(entry, fields)]
        if bad:
            raise UserError(
                f"{shown} is no COCO instances file: {len(bad)} of {len(data[key])} {key} lack one of "
                f"{', '.join(fields)}, or have it of another type ({_first(bad)})"
            )
        ids = Counter(entry["id"] for entry in data[key]) if "id" in fields else Counter()
        if twice := [str(number) for number, times in ids.items() if times > 1]:
            raise UserError(f"{shown} gives {len(twice)} ids of {key} more than once (ids {_first(twice)})")
    for key in ("images", "categories"):
        if not data[key]:
            raise UserError(f"{shown} names no {key}: there is nothing to detect")
    return data


def _has(entry: Any, fields: dict[str, type | tuple[type, ...]]) -> bool:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in fields.items()):
        return False
    box = entry.get("bbox", [0, 0, 0, 0])
    return len(box) == 4 and all(isinstance(number, int | float) for number in box)


def _check_references(data: dict[str, Any], path: str) -> None:
    """Every annotation names a picture and a category of the file."""
    for key, what in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in data[key]}
        lost = [f"annotation {a.get('id', n)}: {what} {a[what]}" for n, a in enumerate(data["annotations"])
                if a[what] not in known]  # fmt: skip
        if lost:
            raise UserError(
                f"{len(lost)} of {len(data['annotations'])} annotations of {printable(path)} name {key} that the file "
                f"does not list ({_first(lost)}): repair it, or export it anew"
            )


def _check_present(folder: str, pictures: Sequence[dict[str, Any]], images: str, path: str) -> None:
    names = [picture["file_name"] for picture in pictures]
    missing = [printable(name) for name in names if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} pictures of {printable(path)} are not in {printable(images)} "
            f"({_first(missing)}): give the folder to which their file_name is relative"
        )


def _fault(annotation: dict[str, Any], image: dict[str, Any], masks: bool) -> str | None:
    """Why an annotation cannot be used."""
    x, y, w, h = annotation["bbox"]
    if not all(map(math.isfinite, (x, y, w, h))):
        return f"a box of {w:g}x{h:g} at {x:g}, {y:g}"
    if w <= 0 or h <= 0:
        return f"a box of {w:g}x{h:g}"
    if x >= image["width"] or y >= image["height"] or x + w <= 0 or y + h <= 0:
        return f"a box at {x:g}, {y:g}, outside the {image['width']}x{image['height']} picture"
    return _fault_of_mask(annotation.get("segmentation"), image) if masks else None


def _fault_of_mask(segmentation: Any, image: dict[str, Any]) -> str | None:
    size = [image["height"], image["width"]]
    if not segmentation:
        return "no mask, where others have one"
    if isinstance(segmentation, list):
        sound = all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)
        return None if sound else "a polygon of fewer than 3 points"
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "a mask that is neither polygons nor run lengths"
    if list(segmentation["size"]) != size:
        return "a mask of {1}x{0}, where the picture has {3}x{2}".format(*segmentation["size"], *size)
    if not _compressed(segmentation) and sum(segmentation["counts"]) != math.prod(size):
        return f"a mask of {sum(segmentation['counts'])} pixels, where the picture has {math.prod(size)}"
    return None


def _compressed(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation["counts"], str | bytes)


def _first(lines: Sequence[str]) -> str:
    return "; ".join(lines[:3]) + ("; …" if len(lines) > 3 else "")


__all__ = ["CocoSource", "Target", "decode_mask", "encode_mask", "open_coco"]
