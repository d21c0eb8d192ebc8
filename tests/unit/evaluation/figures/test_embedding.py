"""evaluation/embedding.py: a row an image, whole files or none, the same content in both kinds of file."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.evaluation.figures.embedding import UNKNOWN, embed
from remask.evaluation.figures.feature_file import check_file
from remask.evaluation.probing.features import extract


class Some(NamedTuple):
    images: Tensor
    labels: Tensor | None
    index: Tensor  # type: ignore[assignment]


class Source:
    """Where seven images lie; the fourth cannot be used."""

    def __init__(self) -> None:
        self.name = "toys"
        self.labels: list[int] | None = [0, 1, 0, 1, 0, 1, 0]
        self.classes: list[str] | None = ["ball", "doll"]

    def __len__(self) -> int:
        return 7

    def read(self, i: int) -> bytes:
        return b""

    def where(self, i: int) -> str:
        return f"toys/ß {i}.png"


def backbone() -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    return create_vit("vit_micro", (8, 8), [0.5], [0.25], overrides=sizes, drop_path=0.5).train()


def batches(labelled: bool = True) -> list[Some]:
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([0, 1, 2, 4, 5, 6])
    images = torch.randint(0, 256, (6, 1, 8, 8), generator=generator, dtype=torch.uint8)
    parts = zip(images.split(4), index.split(4), strict=True)
    return [Some(part, numbers % 2 if labelled else None, numbers) for part, numbers in parts]


def read(file: Path) -> dict[str, Any]:
    """The columns of a file, and its metadata."""
    if file.suffix == ".npz":
        with np.load(file) as stored:
            found: dict[str, Any] = dict(stored)
        return {**found, "path": found["path"].tolist(), "remask": json.loads(str(found["remask"]))}
    from pyarrow.parquet import read_table

    table = read_table(file)
    columns = {name: table.column(name).to_pylist() for name in ("index", "path", "label", "class")}
    feature = np.array(table.column("feature").to_pylist(), dtype=np.float32)
    kind = table.schema.field("feature").type
    assert (kind.list_size, str(kind.value_type)) == (16, "float")
    return {**columns, "feature": feature, "remask": json.loads(table.schema.metadata[b"remask"])}


@pytest.mark.parametrize("kind", [".parquet", ".npz"])
def test_rows(tmp_path: Path, kind: str) -> None:
    file, network, told = tmp_path / "new" / f"toys{kind}", backbone(), list[tuple[int, int]]()
    about = {"model": "vit_micro", "image_size": [8, 8]}
    count = embed(
        network, batches(), Source(), file, layer=1, about=about,
        progress=lambda done, total, words: told.append((done, total)),
    )  # fmt: skip
    found, expected = read(file), extract(network, batches(), layer=1)[0]
    assert count == 6
    assert list(found["index"]) == [0, 1, 2, 4, 5, 6]
    assert found["path"] == [f"toys/ß {i}.png" for i in (0, 1, 2, 4, 5, 6)]
    assert list(found["label"]) == [0, 1, 0, 0, 1, 0]
    assert list(found["class"]) == ["ball", "doll", "ball", "ball", "doll", "ball"]
    assert found["feature"].dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found["feature"]), expected)
    assert found["remask"] == {
        "layer": 1, "pool": "mean", "source": "toys", "classes": ["ball", "doll"], **about
    }  # fmt: skip
    assert told == [(4, 7), (6, 7)]
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(("kind", "label"), [(".parquet", None), (".npz", UNKNOWN)])
def test_without_labels(tmp_path: Path, kind: str, label: int | None) -> None:
    file = tmp_path / f"x{kind}"
    embed(backbone(), batches(labelled=False), Source(), file, pool="cls")
    assert list(read(file)["label"]) == [label] * 6


@pytest.mark.parametrize("kind", [".parquet", ".npz"])
def test_nothing_half_written(tmp_path: Path, kind: str) -> None:
    """What was there before stays until the new file is complete."""
    file = tmp_path / f"x{kind}"
    embed(backbone(), batches(), Source(), file)
    before = file.read_bytes()

    def breaking() -> Iterator[Some]:
        yield batches()[0]
        raise UserError("the second batch cannot be read")

    with pytest.raises(UserError, match="second batch"):
        embed(backbone(), breaking(), Source(), file)
    assert file.read_bytes() == before
    with pytest.raises(UserError, match="second batch"):
        embed(backbone(), breaking(), Source(), tmp_path / f"y{kind}")
    with pytest.raises(UserError, match="no image"):
        embed(backbone(), [], Source(), tmp_path / f"z{kind}")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    for name, keys, message in (
        ("x.csv", {}, r"\.parquet or \.npz"),
        ("folder.npz", {}, "is a folder"),
        ("x.npz", {"layer": 2}, "layer 2 does not exist"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            embed(backbone(), batches(), Source(), tmp_path / name, **keys)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npz"]


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"or write \.npz"):
        check_file(tmp_path / "x.parquet")
