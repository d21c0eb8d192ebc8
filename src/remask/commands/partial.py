"""What a long evaluation has reached, kept beside its result until it is there: a killed one goes on where it was."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from remask.commands.subject import Look, Subject
from remask.training.checkpoint import position
from remask.training.run_folder import RunFolder


class Partial:
    """FOLDER/eval/.NAME.part, replaced whole; without a folder nothing is kept.

    key   what was asked for: what another call left is not taken up
    """

    def __init__(self, folder: Path | None, name: str, key: Mapping[str, Any]) -> None:
        self.path = folder / "eval" / f".{name}.part" if folder else None
        self.key = json.dumps(key, sort_keys=True, default=str)

    def read(self) -> dict[str, Any]:
        """What was kept by a call that asked for the same; {} where there is none, or it cannot be read."""
        try:
            content = torch.load(self.path, weights_only=True, map_location="cpu") if self.path else {}
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError):
            return {}
        found = content.get("reached", {}) if content.get("key") == self.key else {}
        return dict(found)

    def write(self, reached: Mapping[str, Any]) -> None:
        """Replace it: tensors and plain values."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self.path.with_suffix(".new")
            torch.save({"key": self.key, "reached": dict(reached)}, whole)
            os.replace(whole, self.path)

    def forget(self) -> None:
        """The result is there."""
        if self.path:
            self.path.unlink(missing_ok=True)


def key_of(seen: Subject, look: Look, asked: Any, *named: Any) -> dict[str, Any]:
    """All that an evaluation's result depends on: the network's weights, what was asked, which pictures."""
    weights: Any = Path(seen.name.partition(":")[2])
    weights = [str(weights), weights.stat().st_mtime_ns] if weights.exists() else seen.name
    if seen.folder:
        weights = [str(seen.folder), position(RunFolder(seen.folder), look.checkpoint)["step"]]
    return {"weights": weights, "look": look, "asked": asked, "pictures": named, "size": seen.size}


__all__ = ["Partial", "key_of"]
