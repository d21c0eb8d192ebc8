"""Parquet files: opened, described, and read by rows, of which no file may unfold to more than it honestly holds.

A page of zeros may unfold to ten thousand times its size, and one value of a dictionary stand in every row.
"""

import errno
import json
import os
from collections.abc import Sequence
from typing import Any

from remask.errors import UserError
from remask.files.bounds import UNFOLDED, UNFOLDED_FREE, open_regular, unfolds_to
from remask.files.system_errors import refuse_shortage
from remask.images.sources.files import printable


def open_parquet(path: str, name: str) -> Any:
    """The file by pyarrow. Raises UserError, with `name` where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{printable(name)} is parquet, which needs pyarrow: pip install 'remask[data]'") from None
    try:
        open_regular(path).close()
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException, ValueError, MemoryError) as error:
        refuse_shortage(error, path)
        raise UserError(f"{printable(path)} cannot be read as parquet: {' '.join(str(error).split())}") from None


def read_rows(file: Any, path: str, group: int, columns: Sequence[str], rows: int) -> list[Any]:
    """The first `rows` rows of a row group, as record batches of these columns.

    Raises OSError for a damaged page, and for rows that unfold to more than `files.bounds` allows.
    """
    import pyarrow

    on_disk = os.path.getsize(path)
    most = UNFOLDED * on_disk + UNFOLDED_FREE
    batches, size, found = list[Any](), 0, 0
    try:
        claimed = max(1, _claimed(file, group, columns))
        why = unfolds_to(claimed, on_disk)
        # no value is longer than its column: so many rows fit in the bound, even where one value stands in all of them
        step = max(1, min(rows, most // (2 * claimed)))
        read = file.iter_batches(step, row_groups=[group], columns=[*columns], use_threads=False)
        while not why and found < rows and (batch := next(read, None)) is not None:
            size, found = size + batch.get_total_buffer_size(), found + batch.num_rows
            why = unfolds_to(size, on_disk)
            batches.append(batch)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError) as error:
        refuse_shortage(error, path)
        raise OSError(errno.EIO, f"damaged in the parquet file: {' '.join(str(error).split())}") from None
    if why:
        raise OSError(errno.EFBIG, why)
    if found < rows:
        raise OSError(errno.EIO, f"damaged in the parquet file: row group {group} has {found} rows, and says {rows}")
    return batches


def _claimed(file: Any, group: int, columns: Sequence[str]) -> int:
    """Bytes of the unfolded pages of some columns, as the file states them."""
    meta = file.metadata.row_group(group)
    chunks = [meta.column(number) for number in range(meta.num_columns)]
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)


def values_of(file: Any, path: str, group: int, column: str, rows: int) -> list[Any]:
    """The first values of a column of a row group, for labels. Raises UserError where they cannot be read."""
    try:
        return [value for batch in read_rows(file, path, group, [column], rows) for value in batch[0].to_pylist()]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{printable(path)}: column {printable(column)} cannot be read: {why}") from None


def features_of(schema: Any) -> dict[str, Any]:
    """The features that the `datasets` library wrote into a file, {column: {"_type": …}}; empty without any."""
    try:
        metadata: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (ValueError, RecursionError):
        return {}
    info = metadata.get("info") if isinstance(metadata, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


__all__ = ["features_of", "open_parquet", "read_rows", "values_of"]
