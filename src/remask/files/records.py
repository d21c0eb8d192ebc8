"""Atomic replacement of files, and reading of JSON Lines files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remask.files.text import tmp_beside


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on exit it replaces `path`, after an error it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = tmp_beside(path)
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON Lines file, [] if it does not exist. Skips lines that are cut off or hold no object."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    objects = []
    for line in text.splitlines(keepends=True):
        try:
            content = json.loads(line) if line.endswith("\n") else None
        except json.JSONDecodeError:
            continue
        if isinstance(content, dict):
            objects.append(content)
    return objects


__all__ = ["atomic_write", "read_json_lines"]
