"""What a run was trained on, kept in its folder: data.json, and data.npz with names, sizes and labels.

A run that is resumed on something else is told what changed before anything is written, and goes on only where that is
accepted. What it went on with stands in the history of data.json, and in the report.
"""

import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from remask.errors import UserError
from remask.files.escaping import quoted
from remask.files.records import atomic_write
from remask.images.sources.differences import differences
from remask.images.sources.files import printable
from remask.images.sources.fingerprint import Inventory, packed_names
from remask.training.checkpoint import position
from remask.training.optim import epoch_length
from remask.training.run_folder import RunFolder
from remask.training.trainer import Trainer

FIRST = "first weights"
"""What a run started from. Its checkpoints hold all of it, so that a change is said and does not stop the run."""
NAMES_KEPT = 4_000_000
"""Names of a source that are kept, some 5 bytes each; of a larger one the digest alone, which cannot name a change."""


class Care(NamedTuple):
    """How careful a run is with its data.

    accept   go on where the data changed
    verify   hash all contents: kept at the start, compared at a resume
    """

    accept: bool = False
    verify: bool = False


CARE = Care()


class Sources(NamedTuple):
    """Inventories of a run's sources by the names that a message gives them, and where each lies."""

    found: dict[str, Inventory]
    addresses: dict[str, str]


class Checked(NamedTuple):
    """What a look at the data found: changes that were accepted, lines for a person, and a digest of each source.

    known   whether the run says what it was trained on; those of earlier versions do not
    """

    changes: list[str]
    lines: list[str]
    digests: dict[str, str]
    known: bool = True


class DataRecord:
    """The sources of a run as they are now, beside what its folder says of them. Of many processes one has it.

    say   gets a line before work that may take long
    """

    def __init__(self, run: RunFolder, say: Callable[[str], None]) -> None:
        self.run, self._say = run, say
        self._now = Sources({}, {})
        self._kept, self._history = dict[str, Kept](), list[dict[str, Any]]()
        self._stale = False

    def check(self, now: Sources, care: Care, fresh: bool) -> Checked:
        """Compare what is there with what the run was trained on. Writes nothing.

        Raises UserError naming what changed, unless that is accepted.
        """
        if care.verify:
            total = sum(one.count for one in now.found.values())
            self._say(f"reading {total:,} pictures and files, to verify their contents")
            now = now._replace(found={role: one.hashed() for role, one in now.found.items()})
        self._now, self._stale = now, fresh
        digests = {role: one.digest() for role, one in now.found.items()}
        if fresh:
            return Checked([], [], digests)
        self._kept, self._history = _read(self.run)
        changes, noted = self._compared(digests)
        if changes and not care.accept:
            raise refused(self.run.path, changes)
        lines = (
            [] if self._kept else ["this run has no fingerprint of its data to compare with; it has one from now on"]
        )
        lines += [f"{change}; the run goes on with the weights of its checkpoint" for change in noted]
        lines += self._verified(changes) if care.verify and self._kept else []
        bare = care.verify and any(kept.inventory.hashes is None for kept in self._kept.values())
        self._stale = bool(changes or noted or bare or set(now.found) - set(self._kept))
        return Checked(changes, lines, digests, known=bool(self._kept))

    def since(self, now: Sources) -> list[str]:
        """What differs from what the run was trained on, of the sources that are looked at; nothing is refused."""
        self._now, (self._kept, self._history) = now, _read(self.run)
        return self._compared({role: one.digest() for role, one in now.found.items()})[0]

    def add(self, role: str, one: Inventory, address: str) -> None:
        """A source that came to be after `check`."""
        self._now.found[role], self._now.addresses[role] = one, address

    def keep(self, changes: list[str], position: Mapping[str, Any]) -> None:
        """Write what there is, and that changes were accepted at a position; nothing where all is as it was."""
        if self._stale or changes:
            self._write(changes, position)
        self._now, self._kept = Sources({}, {}), {}  # a large source's names take memory

    def _write(self, changes: list[str], position: Mapping[str, Any]) -> None:
        found = self._now.found
        for role, one in found.items():
            kept = self._kept.get(role)
            if kept and one.hashes is None and kept.digest == one.digest():
                found[role] = replace(one, hashes=kept.inventory.hashes)
        if changes:
            when = {"step": position["step"], "epoch": position["epoch"], "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            self._history = [*self._history, {**when, "changes": changes}]
        _write(self.run, self._now, self._history)

    def _compared(self, digests: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Changes that stop a run, and those that are said; sources that the run did not have before are neither."""
        changes, noted = list[str](), list[str]()
        for role, kept in self._kept.items():
            new = self._now.found.get(role)
            if new is None:
                continue
            phrases = kept.differences(new, digests[role])
            if phrases:
                (noted if role == FIRST else changes).append(f"{role}: {', '.join(phrases)}")
        return changes, noted

    def _verified(self, changes: list[str]) -> list[str]:
        """What verifying came to, in a line."""
        if not any(kept.inventory.hashes is not None for kept in self._kept.values()):
            return ["this run has no hashes of contents to compare with; they are kept from now on"]
        return [] if changes else ["the contents of the data are those that the run was trained on"]


class Kept(NamedTuple):
    """A source as a run's folder describes it. `named`: its names are known, where it has any."""

    inventory: Inventory
    digest: str
    named: bool

    def differences(self, new: Inventory, digest: str) -> list[str]:
        """What differs, in words; empty for the same."""
        old = self.inventory
        if digest == self.digest and (old.hashes is None or new.hashes is None):
            return []
        found = differences(old, new)
        return found or (["names or sizes differ"] if not self.named and digest != self.digest else [])


def resumed(trainer: Trainer, record: DataRecord, checked: Checked, care: Care) -> list[str]:
    """Let a trainer go on from its run's last checkpoint, also on data that changed where that is accepted.

    Returns lines for a person. Raises UserError where a run without a fingerprint had epochs of other lengths, unless
    that is accepted.
    """
    before, changes = position(trainer.run), list(checked.changes)
    if not checked.known:
        changes += _other_steps(before, trainer.schedule.steps_per_epoch)
    if changes and not care.accept:
        raise refused(trainer.run.path, changes)
    trainer.resume()
    trainer.world.first(lambda: record.keep(changes, before))
    accepted = [f"the data changed, and the run goes on with it: {'; '.join(changes)}"] if changes else []
    return checked.lines + accepted


def refused(path: Path, changes: Sequence[str]) -> UserError:
    """What stops a run whose data changed, in a line."""
    return UserError(
        f"{path} was trained on other data than is there now: {'; '.join(changes)}; put it back, or go on with "
        f"remask resume {quoted(path)} --accept-changed-data"
    )


def _other_steps(before: Mapping[str, Any], steps: int) -> list[str]:
    """A change that a checkpoint tells by the number of its steps, `steps` being those of an epoch now."""
    had = epoch_length(before)
    return [] if had in (None, steps) else [f"data: an epoch had {had:,} steps and has {steps:,} now"]


def _read(run: RunFolder) -> tuple[dict[str, Kept], list[dict[str, Any]]]:
    try:
        about = run.read("data.json")
    except ValueError:
        raise UserError(f"{run.path / 'data.json'} is damaged: remove it to go on without a comparison") from None
    arrays = _arrays(run.path / "data.npz")
    kept = {}
    for role, facts in about.get("sources", {}).items():
        found = {key: arrays.get(f"{role}/{key}") for key in ("names", "sizes", "labels", "hashes", "digest")}
        named = found["digest"] is not None and found["digest"].tobytes().decode() == facts["digest"]
        if not named:  # written by a run that was killed between the two files
            found = dict.fromkeys(found)
        names = found["names"]
        texts = (
            names.tobytes().decode("utf-8", "surrogateescape").split("\0") if names is not None and len(names) else []
        )
        sizes = found["sizes"] if found["sizes"] is not None else np.empty(0, np.int64)
        inventory = Inventory(
            facts["what"], facts["count"], texts, sizes, found["labels"], facts["classes"], facts["facts"],
            found["hashes"],
        )  # fmt: skip
        kept[role] = Kept(inventory, facts["digest"], named and facts["named"])
    return kept, about.get("history", [])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """What data.npz holds; nothing where it is absent or damaged: the digests are in data.json."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}


def _write(run: RunFolder, now: Sources, history: list[dict[str, Any]]) -> None:
    arrays, sources = dict[str, np.ndarray](), dict[str, Any]()
    for role, one in now.found.items():
        named = len(one.names) <= NAMES_KEPT
        digest = one.digest()
        arrays[f"{role}/digest"] = np.frombuffer(digest.encode(), np.uint8)
        columns = {"labels": one.labels, "hashes": one.hashes}
        if named:
            columns |= {"names": np.frombuffer(packed_names(one.names), np.uint8), "sizes": one.sizes}
        arrays |= {f"{role}/{key}": column for key, column in columns.items() if column is not None}
        sources[role] = {
            "source": printable(now.addresses.get(role, "")), "what": one.what, "count": one.count,
            "bytes": int(one.sizes[one.sizes > 0].sum()), "digest": digest, "classes": one.classes, "facts": one.facts,
            "named": named, "hashed": one.hashes is not None,
        }  # fmt: skip
    with atomic_write(run.path / "data.npz") as tmp, open(tmp, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    run.write("data.json", {"sources": sources, "history": history})


__all__ = ["CARE", "FIRST", "Care", "Checked", "DataRecord", "Sources", "resumed"]
