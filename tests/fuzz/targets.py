"""One target for each reader: how its inputs are made, and what reads them.

A reader may take an input, or refuse it by UserError; reading one picture may also raise OSError and BadImage, which
the loader counts by `data.max_bad`. Any other exception is a finding.
"""

import contextlib
import functools
import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from remask.errors import UserError
from remask.images.decoding import BadImage, decode
from tests.fuzz import mutate, official, runs
from tests.fuzz.mutate import Mutator, repaired, text
from tests.fuzz.official import OFFICIAL

Reader = Callable[[bytes, Path], None]
"""The content of an input, and an empty folder for it; raises UserError where the input is refused."""


class Target(NamedTuple):
    """pending: why it is not run unless it is named, a reader that is not yet as it should be."""

    read: Reader
    mutate: Mutator
    slow: bool = False
    pending: str = ""


def picture(data: bytes, folder: Path) -> None:
    """Decoded as training does it and as eight bits do, its header read, the words about it found."""
    from remask.images.levels import RAW
    from remask.images.orientation import header_of
    from remask.images.sources.stored import stored

    channels, levels = ((3, None), (1, RAW))[zlib.crc32(data) & 1]  # one of them, so that the time is that of one
    header_of(data)
    stored(data)
    try:
        decode(data, channels, levels=levels)
    except BadImage as error:
        reason = str(error)
        if not reason or "\n" in reason:
            raise ValueError("no reason, or one of several lines") from None
        raise UserError("refused") from None


def mask(data: bytes, folder: Path) -> None:
    from remask.downstream.segment.label_map import read_mask, table

    read = 0
    for coloured in (False, True):
        with contextlib.suppress(BadImage):
            ids = read_mask(data, coloured, palettes=not coloured)
            read += 1
            table({number: number for number in range(5)}).apply(ids.ids)
    if not read:
        raise UserError("refused")


def classes(data: bytes, folder: Path) -> None:
    from remask.downstream.segment.label_map import declared, numbered

    (folder / "classes.json").write_bytes(data)
    numbered(declared(str(folder), None, None), [0, 1], False, "here")


def _pictures(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    pixels = np.zeros((24, 40, 3), np.uint8)
    for number, name in enumerate(names):
        pixels[:8] = [number + 1, 0, 0]
        Image.fromarray(pixels).save(folder / name)


def panoptic(data: bytes, folder: Path) -> None:
    from remask.downstream.segment.mask_source import open_masks

    _pictures(folder / "p", "a.png", "b.png")
    _pictures(folder / "m", "a.png", "b.png")
    (folder / "m.json").write_bytes(data)
    source = open_masks(str(folder / "p"), str(folder / "m.json"))
    for i in range(len(source)):
        with contextlib.suppress(BadImage):
            source.read(i)


def coco(data: bytes, folder: Path) -> None:
    """All is checked when the file is opened: afterwards every target must be read."""
    from remask.downstream.detect.coco import open_coco

    _pictures(folder / "p", "a.png", "b.png")
    (folder / "c.json").write_bytes(data)
    opened = []
    for skip in (True, False):
        with contextlib.suppress(UserError):
            opened.append(open_coco(str(folder / "p"), str(folder / "c.json"), skip_bad=skip))
    for source in opened:
        for i in range(len(source)):
            source.read(i)
        json.dumps(source.truth())
        source.notes()
    if not opened:
        raise UserError("refused")


def recipe(data: bytes, folder: Path) -> None:
    from remask.recipe import load_recipe
    from remask.recipe.write import dump

    (folder / "r.toml").write_bytes(data)
    dump(load_recipe(folder / "r.toml", environment={}))


def setting(data: bytes, folder: Path) -> None:
    from remask.recipe import load_recipe
    from remask.recipe.write import dump

    dump(load_recipe("mae-vit-b", [data.decode("utf-8", "surrogateescape")], environment={}))


def source(name: str) -> Reader:
    """A source of images under a file's name: opened, and its first images read."""

    def read(data: bytes, folder: Path) -> None:
        from remask.images.sources.fingerprint import inventory
        from remask.images.sources.opening import open_source

        _pictures(folder / "p", "a.png", "b.png")
        (folder / name).write_bytes(data)
        opened = []
        for options in ({}, {"limit": 2}, {"labelled": True}):
            with contextlib.suppress(UserError):
                opened.append(open_source(str(folder / name), **options))  # type: ignore[arg-type]
        for images in opened:
            for i in range(min(len(images), 8)):
                assert "\n" not in images.where(i), "an address of several lines"
                with contextlib.suppress(OSError):
                    images.read(i)
            inventory(images, labelled=True).digest()
            if images.labels is not None:
                assert images.classes is not None, "numbers without names"
                assert all(0 <= number < len(images.classes) for number in images.labels), "a number without a name"
        if not opened:
            raise UserError("refused")

    return read


def encoder(kind: str) -> Reader:
    def read(data: bytes, folder: Path) -> None:
        from remask.interop.encoders import open_encoder

        (folder / "w.pth").write_bytes(data)
        options = {"normalise": "imagenet"} if kind == "dino" else {}
        heads = None if kind in ("beit", "simmim") else 2
        open_encoder(f"{kind}:{folder / 'w.pth'}", heads=heads, **options)  # type: ignore[arg-type]

    return read


def dalle(data: bytes, folder: Path) -> None:
    from remask.targets.dalle import load_dalle

    (folder / "d.pkl").write_bytes(data)
    load_dalle(folder / "d.pkl")


@functools.cache
def _recipe() -> Any:
    from remask.recipe import load_recipe

    return load_recipe("mae-vit-b", environment={})


def codebook(data: bytes, folder: Path) -> None:
    from remask.build.pretraining import build_target
    from remask.recipe import Target as Section

    (folder / "c.safetensors").write_bytes(data)
    section = Section.model_validate({"kind": "tokens", "norm": "none", "file": str(folder / "c.safetensors")})
    build_target(section, _recipe(), (4, 4))


def ids(data: bytes, folder: Path) -> None:
    from remask.targets.tokens import StoredIds

    (folder / "i.safetensors").write_bytes(data)
    StoredIds(folder / "i.safetensors", (4, 4), 8)


def checkpoint(name: str) -> Reader:
    """A file of a run's checkpoint, beside the others as they should be."""

    def read(data: bytes, folder: Path) -> None:
        import torch

        from remask.training import checkpoint as checkpoints
        from remask.training.run_folder import RunFolder

        model = torch.nn.Linear(2, 1, bias=False)
        optimizer = torch.optim.AdamW(model.parameters())
        checkpoints.save(RunFolder(folder), "last", model, optimizer, {"step": 3})
        (folder / "checkpoints" / "last" / name).write_bytes(data)
        checkpoints.restore(folder / "checkpoints" / "last", model, optimizer)

    return read


def partial(data: bytes, folder: Path) -> None:
    from remask.commands.saved_progress import SavedProgress

    (folder / "eval").mkdir()
    (folder / "eval" / ".x.part").write_bytes(data)
    SavedProgress(folder, "x", {}).read()


TOML = text(
    "[data]\n",
    "= ",
    '"',
    "'''",
    "[[",
    "{",
    "}",
    "extends = ",
    "off",
    "on",
    "nan",
    "-inf",
    "1e999",
    "rows",
    "x.y.z",
    "2020-01-01",
    "0x10",
)
LISTS = text(
    "\t",
    ",",
    ";",
    " ",
    "path,label\n",
    "p/a.png",
    "#",
    '"',
    "/dev/zero",
    "~nobody/x.png",
    "http://x/y.png",
    "9" * 25,
    "-1",
    "nan",
    "\\",
    "‌",
    "﻿",
)
CHANGED = mutate.mutate_bytes

TARGETS: dict[str, Target] = {
    **{kind: Target(picture, CHANGED) for kind in ("jpeg", "tiff", "gif", "bmp", "ppm", "tga")},
    "png": Target(picture, repaired(mutate.png)),
    "webp": Target(picture, repaired(mutate.riff)),
    "jp2": Target(picture, CHANGED),
    "avif": Target(picture, CHANGED),
    "npy": Target(picture, mutate.either(mutate.archive, CHANGED)),
    "stack": Target(source("x.npz"), mutate.either(mutate.archive, CHANGED)),
    "mask": Target(mask, repaired(mutate.png)),
    "recipe": Target(recipe, TOML, slow=True),
    "set": Target(setting, TOML, slow=True),
    "list": Target(source("l.txt"), LISTS),
    "classes": Target(classes, mutate.mutate_json),
    "panoptic": Target(panoptic, mutate.mutate_json, slow=True),
    "coco": Target(coco, mutate.mutate_json, slow=True),
    "tar": Target(source("t.tar"), repaired(mutate.tar)),
    "parquet": Target(source("x.parquet"), CHANGED),
    "packed": Target(source("x.remask"), repaired(mutate.packed, mutate.packed_table)),
    **{
        kind: Target(encoder(kind), mutate.weights, slow=True)
        for kind in ("mae", "dino", "mocov3", "beit", "simmim", "maskfeat")
    },
    "dalle": Target(dalle, mutate.weights, slow=True),
    "codebook": Target(codebook, mutate.safetensors),
    "ids": Target(ids, mutate.safetensors),
    **{kind: Target(official.reader(kind), mutate.weights, slow=True) for kind in OFFICIAL},
    "optimizer": Target(checkpoint("optimizer.pt"), mutate.weights, slow=True),
    "partial": Target(partial, runs.partial, slow=True),
    **{
        name: Target(runs.reader(name), mutate.mutate_json, slow=True)
        for name in ("state", "status", "settings", "task", "env")
    },
    "manifest": Target(runs.reader("manifest"), runs.manifest, slow=True),
    "run": Target(runs.reader("run"), TOML, slow=True),
}
SEEDS_OF = {"stack": "npy"}
"""Targets that have the seeds of another."""
FAST, SLOW = 100_000, 10_000
"""Inputs of a fast and of a slow target in `make fuzz`."""


def seeds_of(name: str) -> list[bytes]:
    """The seeds of a target, in the order of their names."""
    folder = Path(__file__).parent / "seeds" / SEEDS_OF.get(name, name)
    contents = ((path.suffix, path.read_bytes()) for path in sorted(folder.iterdir()))
    return [gzip.decompress(content) if suffix == ".gz" else content for suffix, content in contents]


def made(name: str, number: int, seeds: list[bytes]) -> bytes:
    """Input `number` of a target."""
    draw = random.Random(f"{name} {number}")
    return TARGETS[name].mutate(draw.choice(seeds), draw, seeds)


__all__ = ["FAST", "SLOW", "TARGETS", "Target", "made", "seeds_of"]
