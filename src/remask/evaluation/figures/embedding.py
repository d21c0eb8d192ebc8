"""Writes features of a source to a file, one row per image: parquet (by pyarrow) or npz (by numpy), atomically."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from remask.backbones import Backbone
from remask.errors import UserError
from remask.evaluation.figures.feature_file import check_file
from remask.evaluation.probing.features import Describe, Pool, Progress, evaluating, reader
from remask.files.escaping import encodable, printable
from remask.files.records import atomic_write
from remask.images.sources.opening import Source

UNKNOWN = -1
"""Label of an unlabelled image in an npz file; in parquet it is null."""


class IndexedImages(Protocol):
    """A batch: images, their class numbers if the source has any, and their numbers in the source."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def index(self) -> Tensor: ...


class Rows(NamedTuple):
    """The columns of the file for a batch of images."""

    index: Int[Tensor, "B"]  # type: ignore[assignment]  # replaces the tuple's method
    path: list[str]
    label: Int[Tensor, "B"] | None
    name: list[str | None]
    feature: Float[Tensor, "B D"]


def embed(
    backbone: Backbone,
    batches: Iterable[IndexedImages],
    source: Source,
    file: Path,
    *,
    layer: int = -1,
    pool: Pool = "mean",
    about: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    writes: bool = True,
) -> int:
    """Write `file` and return its number of rows, which are in the order of `batches`.

    Columns: index, path, label, class, feature [D] float32; label is an index into "classes" of the metadata, class the
    name of the class.
    layer, pool, dtype   see `extract`
    source   gives the paths of images and the names of classes
    writes   False in a process that only reads its share of the images for another
    about    further entries of the metadata, JSON under the key "remask": model, image size, checkpoint …
    Parquet is written batch by batch, npz collected in memory first. An existing file is replaced when the new one is
    complete. Raises UserError for another suffix, no image, a layer or pool that does not exist.
    """
    check_file(file)
    describe = reader(backbone, layer=layer, pool=pool, dtype=dtype)
    known = {"layer": layer, "pool": pool, "source": printable(source.name), "classes": source.classes}
    say = progress or (lambda done, total, words: None)
    rows = _rows(describe, backbone, batches, source, say)
    metadata = json.dumps(encodable({**known, **(about or {})}))
    if not writes:
        return sum(len(row.path) for row in rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as tmp:
        count = (_parquet if file.suffix == ".parquet" else _npz)(tmp, rows, metadata)
        if not count:
            raise UserError("there is no image to embed: the source gave no batch")
    return count


def _rows(
    describe: Describe, backbone: Backbone, batches: Iterable[IndexedImages], source: Source, say: Progress
) -> Iterator[Rows]:
    done = 0
    with evaluating([backbone]):
        for batch in batches:
            with torch.no_grad():
                feature = describe(batch.images)
            paths = [source.where(i) for i in batch.index.tolist()]
            yield Rows(batch.index, paths, batch.labels, _named(batch.labels, len(paths), source.classes), feature)
            done += len(paths)
            say(done, len(source), f"{feature.shape[1]} features each")


def _named(labels: Int[Tensor, "B"] | None, count: int, classes: Sequence[str] | None) -> list[str | None]:
    """The class name of each image, None without a class."""
    return [None] * count if labels is None or classes is None else [classes[label] for label in labels.tolist()]


def _parquet(file: Path, rows: Iterator[Rows], metadata: str) -> int:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    count, writer = 0, None
    try:
        for row in rows:
            width = row.feature.shape[1]
            schema = pa.schema(
                {
                    "index": pa.int64(),
                    "path": pa.string(),
                    "label": pa.int64(),
                    "class": pa.string(),
                    "feature": pa.list_(pa.float32(), width),
                }
            ).with_metadata({"remask": metadata})
            writer = writer or ParquetWriter(file, schema)
            labels = [None] * len(row.path) if row.label is None else row.label.tolist()
            values = pa.FixedSizeListArray.from_arrays(pa.array(row.feature.flatten().numpy()), width)
            columns = [
                pa.array(row.index.tolist(), pa.int64()),
                pa.array(row.path),
                pa.array(labels, pa.int64()),
                pa.array(row.name, pa.string()),
                values,
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(row.path)
    finally:
        if writer:
            writer.close()
    return count


def _npz(file: Path, rows: Iterator[Rows], metadata: str) -> int:
    batches = list(rows)
    if not batches:
        return 0
    unknown = [torch.full_like(row.index, UNKNOWN) if row.label is None else row.label for row in batches]
    columns: dict[str, Any] = {
        "index": torch.cat([row.index for row in batches]).numpy(),
        "path": np.array([path for row in batches for path in row.path]),
        "label": torch.cat(unknown).numpy(),
        "class": np.array([name or "" for row in batches for name in row.name]),
        "feature": torch.cat([row.feature for row in batches]).numpy(),
        "remask": np.array(metadata),
    }
    with open(file, "wb") as stream:
        np.savez(stream, **columns)
    return sum(len(row.path) for row in batches)


__all__ = ["UNKNOWN", "embed"]
