"""Where the golden vectors lie, and how a test reads one: what is absent skips the test that asks for it."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "golden"


def roots() -> dict[str, Path]:
    """Folders with one folder per system: $REMASK_GOLDEN alone where it is set, else our subset and the whole set."""
    given = os.environ.get("REMASK_GOLDEN")
    if given is None:
        return {name: path for name, path in {"data": HERE / "data", "shared": SHARED}.items() if path.is_dir()}
    if not any(Path(given).glob("*/config.json")):
        raise pytest.UsageError(f"REMASK_GOLDEN={given} holds no folder with a config.json")
    return {"given": Path(given)}


@dataclass(frozen=True)
class Folder:
    """The vectors of one system."""

    path: Path

    @cached_property
    def config(self) -> "Entries":
        return self.json("config.json")

    def json(self, name: str) -> Any:
        """Entries, or the list that the file holds."""
        if not (self.path / name).is_file():
            pytest.skip(f"{name} is absent")
        content = json.loads((self.path / name).read_text())
        return Entries(content, name) if isinstance(content, dict) else content

    def tensors(self, name: str) -> "Entries":
        if not (self.path / name).is_file():
            pytest.skip(f"{name} is absent")
        return Entries(_tensors(self.path / name), name)


@dataclass(frozen=True)
class File:
    """One of the files that a pattern found."""

    folder: Folder
    name: str

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".safetensors")

    @property
    def tensors(self) -> "Entries":
        return self.folder.tensors(self.name)


class Entries(dict[str, Any]):
    """Tensors or settings by name."""

    def __init__(self, entries: dict[str, Any], file: str) -> None:
        super().__init__(entries)
        self.file = file

    def __missing__(self, key: str) -> Any:
        pytest.skip(f"{self.file} holds no {key}")

    def part(self, key: str) -> "Entries":
        """Settings inside settings."""
        return Entries(self[key], f"{self.file}, {key},")

    def below(self, prefix: str) -> dict[str, Any]:
        """Entries whose names start with `prefix`, without it; at least one."""
        found = {key.removeprefix(prefix): value for key, value in self.items() if key.startswith(prefix)}
        if not found:
            pytest.skip(f"{self.file} holds no {prefix}*")
        return found


@cache
def _tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def some(found: Iterable[Any], what: str) -> list[Any]:
    """A list that is not empty."""
    listed = list(found)
    if not listed:
        pytest.skip(f"no {what}")
    return listed


def size_of(side: int | list[int]) -> tuple[int, int]:
    """An image size as config.json states it: one side, or rows and columns."""
    return (side[0], side[-1]) if isinstance(side, list) else (side, side)


def size_unless_square(side: int | list[int]) -> tuple[int, int] | None:
    """The size that has to be stated where weights tell that of square images only."""
    rows, columns = size_of(side)
    return None if rows == columns else (rows, columns)


def layer_decay_of(groups: dict[str, Any]) -> float:
    """What the rate of one depth is to that of the next: the largest scale below the head's, which is 1."""
    return max(float(group["lr_scale"]) for group in groups.values() if group["lr_scale"] < 1)


def activations(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=2e-5, rtol=1e-4)


def losses(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=5e-6, rtol=1e-6)


def trajectory(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, atol=1e-4, rtol=1e-5)


def gradients(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def norms(actual: dict[str, float], expected: dict[str, float]) -> None:
    assert actual == pytest.approx(expected, rel=1e-4, abs=1e-6)
