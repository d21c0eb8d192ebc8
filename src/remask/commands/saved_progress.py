"""What a long evaluation has computed so far, on disk until its result is written: a killed one continues from it."""

import hashlib
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from remask.commands.subjects import ModelOptions, Subject
from remask.files.escaping import printable
from remask.files.replacing import write_bytes
from remask.files.system_errors import refuse_shortage
from remask.files.tensors import DAMAGED
from remask.training.checkpoint import position
from remask.training.run_folder import RunFolder

MARK = b"remask sha256 "
"""Beginning of a file: this, the digest of all after the line, a line end. Earlier versions began with the rest."""


class SavedProgress:
    """The file FOLDER/eval/.NAME.part, written atomically; without a folder nothing is stored.

    key   fingerprint of the request: what was stored under another key is ignored
    """

    def __init__(self, folder: Path | None, name: str, key: Mapping[str, Any]) -> None:
        self.path = folder / "eval" / f".{name}.part" if folder else None
        self.key = json.dumps(key, sort_keys=True, default=str)

    def read(self) -> dict[str, Any]:
        """What an earlier call stored under the same key; {} where there is nothing, or the file cannot be read."""
        if not self.path or not self.path.is_file():
            return {}
        try:
            content = torch.load(io.BytesIO(_verified(self.path)), weights_only=True, map_location="cpu")
            return dict(content["reached"]) if content["key"] == self.key else {}
        except (OSError, *DAMAGED) as error:
            refuse_shortage(error, self.path)  # what is stored stays, for the next call
            where = printable(self.path)
            print(f"remask: {where} is damaged, so this evaluation begins from the start", file=sys.stderr)
            return {}

    def write(self, reached: Mapping[str, Any]) -> None:
        """Replace the file's content by tensors and plain values."""
        if self.path:
            content = io.BytesIO()
            torch.save({"key": self.key, "reached": dict(reached)}, content)
            digest = hashlib.sha256(content.getbuffer()).hexdigest().encode()
            write_bytes(self.path, MARK + digest + b"\n" + content.getvalue())

    def delete(self) -> None:
        """Remove the file, once the result is written."""
        if self.path:
            self.path.unlink(missing_ok=True)


def _verified(path: Path) -> bytes:
    """Content of a file without its digest. Raises ValueError if it is not what was written."""
    content = path.read_bytes()
    if not content.startswith(MARK):
        return content
    line, _, rest = content.partition(b"\n")
    if line.removeprefix(MARK) != hashlib.sha256(rest).hexdigest().encode():
        raise ValueError("the digest is another")
    return rest


def request_key(subject: Subject, model: ModelOptions, options: Any, *images: Any) -> dict[str, Any]:
    """The values that an evaluation's result depends on: the network's weights, the options, and which images."""
    weights: Any = Path(subject.name.partition(":")[2])
    weights = [str(weights), weights.stat().st_mtime_ns] if weights.exists() else subject.name
    if subject.folder:
        weights = [str(subject.folder), position(RunFolder(subject.folder), model.checkpoint)["step"]]
    # under the names that older versions wrote, so that what they stored is still taken up
    return {"weights": weights, "look": model, "asked": options, "pictures": images, "size": subject.size}


__all__ = ["SavedProgress", "request_key"]
