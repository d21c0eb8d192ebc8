"""Records the data of a run in its folder: data.json, and data.npz with names, sizes and labels.

Before a run is resumed, its sources are compared with the record. Changed data stops it with an error that names the
changes, unless the user accepts them; accepted changes go into the history in data.json, and into the report.
"""

import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from remask.errors import UserError
from remask.files.escaping import quoted
from remask.files.records import atomic_write
from remask.images.sources.differences import differences
from remask.images.sources.files import printable
from remask.images.sources.fingerprint import Inventory, packed_names
from remask.training.changed_settings import record_settings
from remask.training.checkpoint import state_of
from remask.training.optim import epoch_length
from remask.training.run_folder import RunFolder
from remask.training.trainer import Trainer

FIRST = "first weights"
"""Role of the initial weights. Checkpoints supersede them, so a change is only reported and does not stop the run."""
NAMES_KEPT = 4_000_000
"""Sources of up to this many files are recorded with their names (~5 bytes each), larger ones only with a digest."""


class Care(NamedTuple):
    """What a resumed run may find or become other than it was.

    accept   resume although the data changed
    verify   hash all contents: recorded at the start, compared at a resume
    settings   keys of the recipe, which has them already, that are changed by this resume; the run keeps them
    """

    accept: bool = False
    verify: bool = False
    settings: Mapping[str, Any] = MappingProxyType({})


CARE = Care()


class Sources(NamedTuple):
    """Inventories and addresses (spec or path) of a run's sources, by role ("data", "probe", "teacher 1", ...)."""

    found: dict[str, Inventory]
    addresses: dict[str, str]


class Checked(NamedTuple):
    """Result of `DataRecord.check`: accepted changes, lines for the log, and the digest of each source by role.

    known   False if the run has no record of its data, like runs of earlier versions
    """

    changes: list[str]
    lines: list[str]
    digests: dict[str, str]
    known: bool = True


class DataRecord:
    """Compares the present sources of a run with the record in its folder, and updates the record.

    say   called with a line before work that may take long. Only the main process uses a record.
    """

    def __init__(self, run: RunFolder, say: Callable[[str], None]) -> None:
        self.run, self._say = run, say
        self._now = Sources({}, {})
        self._recorded, self._history = dict[str, RecordedSource](), list[dict[str, Any]]()
        self._stale = False

    def check(self, now: Sources, care: Care, fresh: bool, trained: bool = True) -> Checked:
        """Compare the present sources with the run's record. Writes nothing.

        fresh     a new run, which has no record yet
        trained   the run has a checkpoint; without one it depends on its first weights too
        Raises UserError, which names the changes, unless `care` accepts them.
        """
        if care.verify:
            total = sum(inventory.count for inventory in now.found.values())
            self._say(f"reading {total:,} pictures and files, to verify their contents")
            now = now._replace(found={role: inventory.hashed() for role, inventory in now.found.items()})
        self._now, self._stale = now, fresh
        digests = {role: inventory.digest() for role, inventory in now.found.items()}
        if fresh:
            return Checked([], [], digests)
        self._recorded, self._history = _read(self.run)
        changes, reported = self._compared(digests)
        if not trained:
            changes, reported = [*changes, *reported], []
        if changes and not care.accept:
            raise refused(self.run.path, changes)
        lines = (
            []
            if self._recorded
            else ["this run has no fingerprint of its data to compare with; it has one from now on"]
        )
        lines += [f"{change}; the run goes on with the weights of its checkpoint" for change in reported]
        lines += self._verified(changes) if care.verify and self._recorded else []
        lacks_hashes = care.verify and any(recorded.inventory.hashes is None for recorded in self._recorded.values())
        self._stale = bool(changes or reported or lacks_hashes or set(now.found) - set(self._recorded))
        return Checked(changes, lines, digests, known=bool(self._recorded))

    def since(self, now: Sources) -> list[str]:
        """Differences between the given sources and the run's record, in words; raises no error for them."""
        self._now, (self._recorded, self._history) = now, _read(self.run)
        return self._compared({role: inventory.digest() for role, inventory in now.found.items()})[0]

    def add(self, role: str, inventory: Inventory, address: str) -> None:
        """Add a source that was created after `check`."""
        self._now.found[role], self._now.addresses[role] = inventory, address

    def keep(self, changes: list[str], position: Mapping[str, Any]) -> None:
        """Write the record, with accepted changes and their position {"step", "epoch"}; no-op if nothing changed."""
        if self._stale or changes:
            self._write(changes, position)
        self._now, self._recorded = Sources({}, {}), {}  # a large source's names take memory

    def _write(self, changes: list[str], position: Mapping[str, Any]) -> None:
        inventories = self._now.found
        for role, inventory in inventories.items():
            recorded = self._recorded.get(role)
            if recorded and inventory.hashes is None and recorded.digest == inventory.digest():
                inventories[role] = replace(inventory, hashes=recorded.inventory.hashes)
        if changes:
            entry = {"step": position["step"], "epoch": position["epoch"], "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            self._history = [*self._history, {**entry, "changes": changes}]
        _write(self.run, self._now, self._history)

    def _compared(self, digests: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """(Changes that stop a run, changes that are only reported); sources without a record count as neither."""
        changes, reported = list[str](), list[str]()
        for role, recorded in self._recorded.items():
            new = self._now.found.get(role)
            if new is None:
                continue
            phrases = recorded.differences(new, digests[role])
            if phrases:
                (reported if role == FIRST else changes).append(f"{role}: {', '.join(phrases)}")
        return changes, reported

    def _verified(self, changes: list[str]) -> list[str]:
        """A line with the result of verifying hashes; none if there are changes."""
        if not any(recorded.inventory.hashes is not None for recorded in self._recorded.values()):
            return ["this run has no hashes of contents to compare with; they are kept from now on"]
        return [] if changes else ["the contents of the data are those that the run was trained on"]


class RecordedSource(NamedTuple):
    """A source as a run's folder describes it; `named` unless its file names are missing from the record."""

    inventory: Inventory
    digest: str
    named: bool

    def differences(self, new: Inventory, digest: str) -> list[str]:
        """Differences in words; empty if the sources are equal."""
        old = self.inventory
        if digest == self.digest and (old.hashes is None or new.hashes is None):
            return []
        phrases = differences(old, new)
        return phrases or (["names or sizes differ"] if not self.named and digest != self.digest else [])


def resumed(trainer: Trainer, record: DataRecord, checked: Checked, care: Care, folder: Path | None) -> list[str]:
    """Resume a trainer from the checkpoint in `folder` and update the record; returns lines for the log.

    folder   None for a run that ended before its first checkpoint: it begins at step 0
    A run without a record is checked by the number of steps per epoch. Raises UserError if that changed, unless `care`
    accepts it.
    """
    before, changes = state_of(folder) if folder else {"step": 0, "epoch": 0.0}, list(checked.changes)
    if not checked.known and folder:
        changes += _other_steps(before, trainer.schedule.steps_per_epoch)
    if changes and not care.accept:
        raise refused(trainer.run.path, changes)
    if folder:
        trainer.resume(folder)
    else:
        trainer.run.rewind(0)
    trainer.run.note_recovery()
    trainer.world.first(lambda: record.keep(changes, before))
    settings = trainer.world.first(lambda: record_settings(trainer.run, care.settings, before))
    accepted = [f"the data changed, and the run goes on with it: {'; '.join(changes)}"] if changes else []
    return checked.lines + accepted + settings


def refused(path: Path, changes: Sequence[str]) -> UserError:
    """The error that stops a run whose data changed."""
    return UserError(
        f"{path} was trained on other data than is there now: {'; '.join(changes)}; put it back, or go on with "
        f"remask resume {quoted(path)} --accept-changed-data"
    )


def _other_steps(before: Mapping[str, Any], steps: int) -> list[str]:
    """A line if the checkpoint's epochs had another number of steps than the present `steps`."""
    steps_before = epoch_length(before)
    return [] if steps_before in (None, steps) else [f"data: an epoch had {steps_before:,} steps and has {steps:,} now"]


def _read(run: RunFolder) -> tuple[dict[str, RecordedSource], list[dict[str, Any]]]:
    try:
        record = run.read("data.json")
        arrays = _arrays(run.path / "data.npz")
        sources = {role: _recorded(facts, role, arrays) for role, facts in record.get("sources", {}).items()}
        return sources, [dict(entry) for entry in record.get("history", [])]
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{run.path / 'data.json'} is damaged: remove it to go on without a comparison") from None


def _recorded(facts: Mapping[str, Any], role: str, arrays: Mapping[str, np.ndarray]) -> RecordedSource:
    columns = {key: arrays.get(f"{role}/{key}") for key in ("names", "sizes", "labels", "hashes", "digest")}
    digest = columns["digest"]
    named = digest is not None and digest.tobytes() == facts["digest"].encode()
    if not named:  # a run was killed between writing the two files
        columns = dict.fromkeys(columns)
    names = columns["names"]
    paths = names.tobytes().decode("utf-8", "surrogateescape").split("\0") if names is not None and len(names) else []
    sizes = columns["sizes"] if columns["sizes"] is not None else np.empty(0, np.int64)
    inventory = Inventory(
        facts["what"], facts["count"], paths, sizes, columns["labels"], facts["classes"], facts["facts"],
        columns["hashes"],
    )  # fmt: skip
    return RecordedSource(inventory, facts["digest"], named and facts["named"])


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of data.npz; {} if it is absent or damaged, for data.json holds the digests."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError):
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
