"""What a long evaluation has computed so far, on disk until its result is written: a killed one continues from it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from remask.commands.subjects import ModelOptions, Subject
from remask.training.checkpoint import position
from remask.training.run_folder import RunFolder


class SavedProgress:
    """The file FOLDER/eval/.NAME.part, written atomically; without a folder nothing is stored.

    key   fingerprint of the request: what was stored under another key is ignored
    """

    def __init__(self, folder: Path | None, name: str, key: Mapping[str, Any]) -> None:
        self.path = folder / "eval" / f".{name}.part" if folder else None
        self.key = json.dumps(key, sort_keys=True, default=str)

    def read(self) -> dict[str, Any]:
        """What an earlier call stored under the same key; {} where there is nothing, or the file cannot be read."""
        try:
            content = torch.load(self.path, weights_only=True, map_location="cpu") if self.path else {}
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError):
            return {}
        found = content.get("reached", {}) if content.get("key") == self.key else {}
        return dict(found)

    def write(self, reached: Mapping[str, Any]) -> None:
        """Replace the file's content by tensors and plain values."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tmp = self.path.with_suffix(".new")
            torch.save({"key": self.key, "reached": dict(reached)}, tmp)
            os.replace(tmp, self.path)

    def delete(self) -> None:
        """Remove the file, once the result is written."""
        if self.path:
            self.path.unlink(missing_ok=True)


def request_key(subject: Subject, model: ModelOptions, options: Any, *images: Any) -> dict[str, Any]:
    """The values that an evaluation's result depends on: the network's weights, the options, and which images."""
    weights: Any = Path(subject.name.partition(":")[2])
    weights = [str(weights), weights.stat().st_mtime_ns] if weights.exists() else subject.name
    if subject.folder:
        weights = [str(subject.folder), position(RunFolder(subject.folder), model.checkpoint)["step"]]
    # under the names that older versions wrote, so that what they stored is still taken up
    return {"weights": weights, "look": model, "asked": options, "pictures": images, "size": subject.size}


__all__ = ["SavedProgress", "request_key"]
