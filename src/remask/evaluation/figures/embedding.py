"""Features of a source as a file: one row an image, parquet (by pyarrow) or npz (by numpy), whole or not at all."""

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
"""The label in an npz file of an image that has none; in parquet it is null."""


class IndexedImages(Protocol):
    """A batch: uint8 pictures, their class numbers where the source has any, and their numbers in the source."""

    @property
    def images(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def index(self) -> Tensor: ...


class Rows(NamedTuple):
    """The columns of some images."""

    index: Int[Tensor, "B"]  # type: ignore[assignment]  # the tuple method of this name is not missed
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
) -> int:
    """Write `file` and return its number of rows: index, path, label, class, feature [D] float32, as `batches` go.

    label is the place of the class among the "classes" of the metadata, class its name, such as the number in a list.

    source   tells where an image lies, and the names of the classes
    about    what else goes into the metadata, JSON under the key "remask": model, image size, checkpoint …
    A parquet file is written batch by batch, an npz file is gathered in memory first. A file that is there is replaced
    when the new one is complete. Raises UserError for another suffix, no image, a layer or pool that is not there.
    """
    check_file(file)
    describe = reader(backbone, layer=layer, pool=pool, dtype=dtype)
    known = {"layer": layer, "pool": pool, "source": printable(source.name), "classes": source.classes}
    say = progress or (lambda done, total, words: None)
    rows = _rows(describe, backbone, batches, source, say)
    metadata = json.dumps(encodable({**known, **(about or {})}))
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
    """The class of each image by name, where it has one."""
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
    found = list(rows)
    if not found:
        return 0
    unknown = [torch.full_like(row.index, UNKNOWN) if row.label is None else row.label for row in found]
    columns: dict[str, Any] = {
        "index": torch.cat([row.index for row in found]).numpy(),
        "path": np.array([path for row in found for path in row.path]),
        "label": torch.cat(unknown).numpy(),
        "class": np.array([name or "" for row in found for name in row.name]),
        "feature": torch.cat([row.feature for row in found]).numpy(),
        "remask": np.array(metadata),
    }
    with open(file, "wb") as stream:
        np.savez(stream, **columns)
    return sum(len(row.path) for row in found)


__all__ = ["UNKNOWN", "embed"]
