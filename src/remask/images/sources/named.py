"""Sets known by name: digits, crops and photos come with installed libraries, others are downloaded when named."""

import importlib.util
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from remask.errors import UserError
from remask.files.bounds import read_file
from remask.files.records import sync_folder, sync_tree
from remask.images.decoding import decode
from remask.images.sources import crops
from remask.images.sources.columns import Columns, LabelColumn, joined, label_column, why_none
from remask.images.sources.files import Files, files_under, open_files, sorted_out
from remask.images.sources.left_out import further

CROPS_PER_PHOTO = 64

PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png",
    "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
"""The photographs and micrographs inside the scikit-image wheel; its drawings and test patterns are left out."""


@dataclass
class Arrays:
    """Images that lie in memory as uint8 [n, H, W] or [n, H, W, C]."""

    name: str
    images: np.ndarray
    labels: list[int] | None
    classes: list[str] | None
    left_out: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, i: int) -> np.ndarray:
        return self.images[i]

    def where(self, i: int) -> str:
        return f"{self.name}: picture {i}"

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """No names or sizes, and the shape of an image as a fact; see `fingerprint`."""
        return [], [], {"shape": list(self.images.shape[1:])}


@dataclass
class Crops(Arrays):
    """Crops of photographs. `portrait` gives a whole photograph; `captions` say how crops are cut."""

    captions = (
        "Crops to learn from lie left of the dark band, crops to test on right of it: 24 to 64 pixels a side, scaled "
        "to 32, grey, turned, mirrored, in other contrast and brightness.",
    )

    def portrait(self, label: int) -> np.ndarray:
        """The photograph that the crops of a class come from, HWC."""
        return crops.portrait(list(crops.PHOTOGRAPHS)[label])


@dataclass
class Photos:
    """Few large images, each many times over: item i is image i % n, and the random crop makes it another one."""

    name: str
    paths: list[str]
    length: int
    labels: list[int] | None = None
    classes: list[str] | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    _decoded: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.length

    def read(self, i: int) -> np.ndarray:
        path = self.paths[i % len(self.paths)]
        if path not in self._decoded:
            self._decoded[path] = decode(Path(path).read_bytes()).permute(1, 2, 0).numpy()
        return self._decoded[path]

    def where(self, i: int) -> str:
        return f"{self.name}: {os.path.basename(self.paths[i % len(self.paths)])}"

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """Names and sizes in bytes of the few files; see `fingerprint`."""
        return [os.path.basename(path) for path in self.paths], [os.path.getsize(path) for path in self.paths], {}


@dataclass
class Hub:
    """A set of the Hugging Face `datasets` library, whose rows lie in memory-mapped files."""

    name: str
    rows: Any
    column: str
    labels: list[int] | None
    classes: list[str] | None
    left_out: dict[str, int] = field(default_factory=dict)
    unlabelled: str = ""
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, i: int) -> bytes:
        value = self.rows[i][self.column]
        if value["bytes"] is None and value["path"]:
            return read_file(value["path"])
        return value["bytes"] or b""

    def where(self, i: int) -> str:
        return f"{self.name}: row {i}"

    def entries(self) -> tuple[list[str], list[int], dict[str, Any]]:
        """No names or sizes, and the column of images as a fact; see `fingerprint`."""
        return [], [], {"columns": [self.column]}


def open_digits(name: str, split: str, limit: int | None) -> Arrays:
    """The 1,797 handwritten digits of 8x8 pixels in scikit-learn; of each class the same fifth is `val`."""
    from sklearn.datasets import load_digits

    data = load_digits()
    held_out = np.zeros(len(data.target), dtype=bool)
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(data.target))
    for digit in range(10):
        members = shuffled[data.target[shuffled] == digit]
        held_out[members[: len(members) // 5]] = True
    keep = np.flatnonzero({"": np.ones_like(held_out), "train": ~held_out, "val": held_out}[split])[:limit]
    images = np.rint(data.images[keep] * (255 / 16)).astype(np.uint8)
    return Arrays(name, images, data.target[keep].tolist(), [str(digit) for digit in range(10)])


def open_crops(name: str, split: str, limit: int | None) -> Crops:
    """Crops of 16 photographs, 6,400 `train` (the default), 1,280 `val` and 1,280 `test`; see `crops`."""
    images, labels = _drawn_crops(split or "train", limit)
    return Crops(name, images, list(labels), list(crops.PHOTOGRAPHS))


@lru_cache(maxsize=4)
def _drawn_crops(split: str, limit: int | None) -> tuple[np.ndarray, list[int]]:
    """Drawn once in a process, which takes seconds: a run opens its images for training and again for its figure."""
    return crops.crops(split, limit)


def open_photos(name: str, split: str, limit: int | None) -> Photos:
    """The photographs that scikit-image ships, 64 times each; nothing is downloaded and nothing is labelled."""
    spec = importlib.util.find_spec("skimage")
    root = Path(spec.origin).parent / "data" if spec and spec.origin else Path()
    paths = [str(root / photo) for photo in PHOTOS if (root / photo).is_file()]
    if not paths:
        raise UserError("photos: the installed scikit-image brings no photographs; reinstall it, or name a folder")
    length = CROPS_PER_PHOTO * len(paths)
    return Photos(name, paths, length if limit is None else min(limit, length))


def open_cifar10(name: str, split: str, limit: int | None) -> Arrays:
    """CIFAR-10 by torchvision: 50,000 `train` (the default), 10,000 `test` or `val`."""
    from torchvision.datasets import CIFAR10

    root = _fetched("cifar10", lambda folder: CIFAR10(folder, download=True))
    data = CIFAR10(root, train=split in ("", "train"))
    return Arrays(name, data.data[:limit], [int(label) for label in data.targets][:limit], list(data.classes))


def open_imagenette(name: str, split: str, limit: int | None) -> Files:
    """Imagenette at 320 pixels by torchvision: 9,469 `train` (the default), 3,925 `val` or `test`."""
    from torchvision.datasets import Imagenette

    root = _fetched("imagenette", lambda folder: Imagenette(folder, size="320px", download=True))
    folder = os.path.join(root, "imagenette2-320", "train" if split in ("", "train") else "val")
    left_out = Counter[str]()
    images = sorted_out(files_under(folder, left_out=left_out), left_out)
    source = open_files(folder, folder, images, limit, left_out)
    source.name = name
    return source


def open_hub(name: str, limit: int | None) -> Hub:
    """`hf:USER/SET[:split]`, split `train` unless named."""
    repository, _, split = name.removeprefix("hf:").partition(":")
    try:
        from datasets import ClassLabel, Image, load_dataset
    except ImportError:
        raise UserError(f"{name} needs the datasets library: pip install 'remask[data]'") from None
    try:
        rows = load_dataset(repository, split=split or "train")
    except Exception as error:  # the library raises its own, the hub's, the network's and built-in errors
        raise UserError(f"{name} could not be loaded: {_line(error)}") from None
    images = [column for column, kind in rows.features.items() if isinstance(kind, Image)]
    if not images:
        raise UserError(f"{name} has no column of images among {', '.join(rows.features)}")
    rows = rows.cast_column(images[0], Image(decode=False))
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    left_out = further(images[1:], len(rows))
    kinds = {
        column: "ClassLabel" if isinstance(kind, ClassLabel) else _kind(kind) for column, kind in rows.features.items()
    }
    label = label_column(kinds)
    used = [images[0], *([label] if label else [])]
    columns = Columns(used, [column for column in rows.features if column not in (*used, *images)])
    if label is None:
        hub = Hub(name, rows, images[0], None, None, left_out)
    else:
        names = list(rows.features[label].names) if kinds[label] == "ClassLabel" else None
        label_columns = [LabelColumn(rows[label], names, name)]
        labels, classes = joined(label_columns)
        hub = Hub(name, rows.select_columns(images[:1]), images[0], labels, classes, left_out)
        hub.unlabelled = why_none(label_columns)
    hub.remarks = columns.remarks()
    return hub


def _kind(kind: Any) -> str:
    """The kind of a column by the `datasets` library's name of its type."""
    stored = str(getattr(kind, "dtype", ""))
    numeric = "int" in stored or stored.startswith("float")  # integers beside missing values are stored as floats
    return "integer" if numeric else "text" if stored in ("string", "large_string", "bool") else stored


NAMED: dict[str, Callable[[str, str, int | None], Arrays | Photos | Files]] = {
    "digits": open_digits,
    "photos": open_photos,
    "crops": open_crops,
    "cifar10": open_cifar10,
    "imagenette": open_imagenette,
}
"""What `--data NAME[:split]` opens; `addresses` has checked the split."""


def _fetched(name: str, fetch: Callable[[str], object]) -> str:
    """The folder of a downloaded set, under $REMASK_CACHE or ~/.cache/remask. A failed download leaves nothing."""
    cache = Path(os.environ.get("REMASK_CACHE") or Path.home() / ".cache" / "remask")
    final = cache / name
    if final.is_dir():
        return str(final)
    missing = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    tmp = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tmp = tempfile.mkdtemp(prefix=f".{name}-", dir=cache)
        fetch(tmp)
        sync_tree(Path(tmp))
        os.replace(tmp, final)
        sync_folder(cache)
    except Exception as error:  # urllib, tarfile, the file system: whichever it is, there is no set
        raise UserError(f"{name} could not be downloaded to {cache} ({_line(error)}): check network and disk") from None
    finally:
        if tmp is not None and not final.is_dir():
            shutil.rmtree(tmp, ignore_errors=True)
        if not final.is_dir():
            for folder in missing:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
    return str(final)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
