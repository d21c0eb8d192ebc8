"""The reader that an export carries: remask's own code for pixels as one file that needs numpy, Pillow and torch."""

import inspect
import re
from types import ModuleType
from typing import Any

from remask.files import bounds, memory
from remask.images import arrays, decoding, deep, heif, jpeg, levels, shortage, tiff, transforms

HEAD = '''"""Pictures as this network was trained on them: `read_picture(path, config)` gives what it takes.

Decoding (EXIF, alpha, gray, 16 bits, any number of bands), the crop and the range are those of training.
Needs numpy, Pillow, torch and torchvision; TIFFs of several bands or compressed ones need tifffile and imagecodecs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

'''
TAIL = '''
def read_image(path: str, config: dict[str, Any]) -> Tensor:
    """The picture in a file [C, H, W], upright, with the values that it has."""
    return decode(read_file(path), len(config["mean"]), levels=levels_of(config.get("range")))


def normalised(image: Tensor, config: dict[str, Any]) -> Tensor:
    """Values of any type as the network takes them, float32."""
    return (levels_of(config.get("range")) or FULL).normalised(image, config["mean"], config["std"])


def ready(image: Tensor, config: dict[str, Any]) -> Tensor:
    """A picture as remask's networks take it: 8 and 16 bits as they are, which they scale, floats normalised."""
    return normalised(image, config) if image.is_floating_point() else image


@contextlib.contextmanager
def ends_in_one_line(path: str, config: dict[str, Any]) -> Iterator[None]:
    """For a script: a picture that cannot be used ends it with one line, which says what the network takes."""
    try:
        yield
    except (BadImage, UserError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        sys.exit(f"{path}: {why}; this network takes an image of {len(config['mean'])} channels that is not damaged")


def read_picture(path: str, config: dict[str, Any]) -> Tensor:
    """The picture in a file as the network takes it [1, C, height, width]: its centre, resized and normalised."""
    crop = CentreCrop(tuple(config["image_size"]), config["crop_pct"])
    return normalised(crop(read_image(path, config)), config)[None]
'''
NAME = "read_pixels.py"


def reader_text() -> str:
    """The content of read_pixels.py."""
    crop = (transforms.CentreCrop, transforms.resize, transforms.rows_first, transforms._shortened, transforms._check)
    types = "CROP = 224 / 256\nSize = tuple[int, int]\n\n\nclass UserError(Exception):\n    pass\n\n\n"
    sections = [
        _standalone(bounds),
        _standalone(memory),
        _standalone(levels),
        _standalone(arrays),
        _standalone(tiff),
        _standalone(deep),
        _standalone(heif),
        _standalone(jpeg),
        _standalone(shortage),
        _standalone(decoding),
        types,
        _imports(transforms),
        *map(_source, crop),
    ]
    return HEAD + "\n\n".join(sections) + TAIL


def _source(member: Any) -> str:
    return inspect.getsource(member)


def _imports(module: ModuleType) -> str:
    """The import lines of a module, without those of remask and of jaxtyping, whose names stand in annotations only."""
    lines = re.findall(r"^(?:import|from) .*(?:\n(?: .*|\)))*$", inspect.getsource(module), re.MULTILINE)
    return "\n".join(line for line in lines if not re.match(r"from (?:remask|jaxtyping)", line))


def _standalone(module: ModuleType) -> str:
    """A module's text without its docstring, its imports of remask and jaxtyping, and its `__all__`."""
    text = re.sub(r'\A""".*?"""\n', "", inspect.getsource(module), flags=re.DOTALL)
    text = re.sub(r"^from (?:remask|jaxtyping)[^\n]*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^__all__ = \[[^\]]*\]\n", "", text, flags=re.MULTILINE).strip()


__all__ = ["NAME", "reader_text"]
