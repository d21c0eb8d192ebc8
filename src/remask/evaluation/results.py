"""Results side by side in RUN/eval/: the latest of a kind as KIND.json, and each one as KIND-DATA-KEY.json."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remask.training.run_folder import RunFolder

_LONGEST = 40
"""Characters of a file's name that tell the data."""


def keep(
    run: RunFolder, kind: str, result: dict[str, Any], data: str, about: Mapping[str, Any],
    files: Mapping[str, list[Any]] | None = None,
) -> None:  # fmt: skip
    """Write eval/KIND.json, and the same under a name of its own, which `result["protocol"]["kept_as"]` then says.

    data    what was tested on, from which the name is made
    about   all that tells this evaluation from others of its kind: the same one again takes the place of the earlier
    files   lists that belong to it, by names of files in eval/, which are kept likewise
    """
    names = [f"{kind}.json", *(files or {})]
    if earlier := _read(run, names[0]):  # of a version that kept one alone
        _keep_under_own_names(run, names, kind, _kept_as(kind, earlier))
    protocol = result.setdefault("protocol", {})
    protocol["kept_as"] = own = name_of(kind, data, about)
    for name, content in (files or {}).items():
        run.write(f"eval/{name}", content)
    run.write(f"eval/{names[0]}", result)
    _keep_under_own_names(run, names, kind, own, replace=True)


def name_of(kind: str, data: str, about: Mapping[str, Any]) -> str:
    """ "probe-digits-val-0a1b2c3d.json": the last two steps of an address, and eight digits of all that tells it."""
    told = "/".join(data.rstrip("/").split("/")[-2:])
    words = re.sub(r"[^A-Za-z0-9.]+", "-", told).strip("-.")[-_LONGEST:].strip("-.") or "data"
    text = json.dumps(about, sort_keys=True, default=str)
    return f"{kind}-{words}-{hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}.json"


def _kept_as(kind: str, result: Mapping[str, Any]) -> str:
    """The own name of a result that is there."""
    protocol = result.get("protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    tested = protocol.get("val") if "/" in str(protocol.get("val")) else protocol.get("data")
    kept = protocol.get("kept_as")
    return kept if isinstance(kept, str) and kept == Path(kept).name else name_of(kind, str(tested), protocol)


def _keep_under_own_names(run: RunFolder, names: Sequence[str], kind: str, own: str, replace: bool = False) -> None:
    """Each file under its own name too, where it is not there or is to be replaced: one file with two names where the
    disk can do that, as a file of a run is replaced and never changed.
    """
    for name in names:
        file, kept_file = run.path / "eval" / name, run.path / "eval" / (Path(name).stem + own.removeprefix(kind))
        if not run.writes or not file.is_file() or (kept_file.exists() and not replace):
            continue
        tmp = kept_file.with_suffix(".part")
        tmp.unlink(missing_ok=True)
        try:
            os.link(file, tmp)
        except OSError:
            shutil.copyfile(file, tmp)
        if kept_file.exists():  # a rename onto another name of the same file would leave both
            kept_file.unlink()
        os.replace(tmp, kept_file)


def _read(run: RunFolder, name: str) -> dict[str, Any]:
    """An earlier result; {} where there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((run.path / "eval" / name).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


__all__ = ["keep", "name_of"]
