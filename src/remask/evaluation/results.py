"""Result files in RUN/eval/: the latest of each kind as KIND.json, and every one as KIND-DATA-KEY.json."""

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.files.replacing import link_beside
from remask.training.run_folder import RunFolder

_LONGEST = 40
"""Maximum number of characters of a file name that describe the data."""


def keep(
    run: RunFolder, kind: str, result: dict[str, Any], data: str, about: Mapping[str, Any],
    files: Mapping[str, list[Any]] | None = None,
) -> None:  # fmt: skip
    """Write eval/KIND.json, and the same under the unique name that becomes `result["protocol"]["kept_as"]`.

    data    address of the test data, for the unique name
    about   identifies the evaluation: a repetition with the same `about` replaces the earlier result
    files   {file name: list} to write into eval/, also under unique names
    """
    names = [f"{kind}.json", *(files or {})]
    if earlier := _read(run, names[0]):  # versions before kept only this one
        _keep_under_unique_names(run, names, kind, _unique_name(kind, earlier))
    protocol = result.setdefault("protocol", {})
    protocol["kept_as"] = unique_name = name_of(kind, data, about)
    for name, content in (files or {}).items():
        run.write(f"eval/{name}", content)
    run.write(f"eval/{names[0]}", result)
    _keep_under_unique_names(run, names, kind, unique_name, replace=True)


def name_of(kind: str, data: str, about: Mapping[str, Any]) -> str:
    """Unique name like "probe-digits-val-0a1b2c3d.json": last two parts of the address, hash of `about`."""
    address = "/".join(data.rstrip("/").split("/")[-2:])
    words = re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-.")[-_LONGEST:].strip("-.") or "data"
    text = json.dumps(about, sort_keys=True, default=str)
    return f"{kind}-{words}-{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}.json"


def _unique_name(kind: str, result: Mapping[str, Any]) -> str:
    """The unique name of an existing result."""
    protocol = result.get("protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    tested = protocol.get("val") if "/" in str(protocol.get("val")) else protocol.get("data")
    stored = protocol.get("kept_as")
    return stored if isinstance(stored, str) and stored == Path(stored).name else name_of(kind, str(tested), protocol)


def _keep_under_unique_names(
    run: RunFolder, names: Sequence[str], kind: str, unique_name: str, replace: bool = False
) -> None:
    """Give each file its unique name too, unless that exists and `replace` is False; as a hard link if possible.

    Links are safe, for files of a run are replaced and never modified.
    """
    for name in names:
        file, copy = run.path / "eval" / name, run.path / "eval" / (Path(name).stem + unique_name.removeprefix(kind))
        if not run.writes or not file.is_file() or (copy.exists() and not replace):
            continue
        link_beside(file, copy)


def _read(run: RunFolder, name: str) -> dict[str, Any]:
    """An earlier result; {} if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((run.path / "eval" / name).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


__all__ = ["keep", "name_of"]
