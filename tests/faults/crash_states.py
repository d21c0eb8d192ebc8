"""What a power cut may leave of recorded operations, by a model of a disk with inodes.

A name is an entry of its folder's inode, a content belongs to its file's. A change of a name is on the disk when the
folders it stands in were synced, a content when its file was, whatever they are called meanwhile. Until then each
change may be lost while later ones are there; a rename or an exchange is there wholly or not at all, and two changes
of one name keep their order, as in a journal.
"""

from collections.abc import Iterator
from typing import NamedTuple

Tree = dict[str, bytes | None]
"""Content of every file by its name in the folder; None for a folder."""
ROOT = 0


class Operation(NamedTuple):
    """A change, or a sync. Names are relative to the recorded folder, "" is that folder itself.

    kind   create (a file), write (content), make (a folder), rename, exchange, link (name, other), remove, sync
    """

    kind: str
    name: str
    other: str = ""
    content: bytes = b""


class Change(NamedTuple):
    """An operation in terms of inodes. entries: (folder, name, inode or None) set at once; inode: of the content."""

    entries: tuple[tuple[int, str, int | None], ...] = ()
    inode: int | None = None
    content: bytes = b""
    synced: int | None = None

    @property
    def needs(self) -> frozenset[int]:
        """The inodes whose sync makes it durable."""
        return frozenset({folder for folder, _, _ in self.entries} if self.inode is None else {self.inode})


class Disk:
    """Inodes of a folder: entries of folders, contents of files."""

    def __init__(self, before: Tree) -> None:
        self.folders: dict[int, dict[str, int]] = {ROOT: {}}
        self.files, self._next = dict[int, bytes](), 1
        for name, content in sorted(before.items()):
            folder, last = self.parent(name)
            inode = self.folders[folder][last] = self._new(content is None)
            if content is not None:
                self.files[inode] = content

    def copy(self) -> "Disk":
        """Another one of the same content."""
        other = Disk({})
        other.folders = {inode: dict(entries) for inode, entries in self.folders.items()}
        other.files, other._next = dict(self.files), self._next
        return other

    def find(self, name: str) -> int | None:
        """The inode of a name."""
        inode: int | None = ROOT
        for part in name.split("/") if name else ():
            inode = self.folders.get(inode, {}).get(part) if inode is not None else None
        return inode

    def parent(self, name: str) -> tuple[int, str]:
        """The inode of the folder that a name stands in, and its last part."""
        above, _, last = name.rpartition("/")
        folder = self.find(above)
        assert folder is not None, name
        return folder, last

    def translate(self, operation: Operation) -> Change | None:
        """The change that an operation makes of this disk; None for a file that is unknown, such as an unlinked one."""
        kind, name, other, content = operation
        if kind == "sync":
            return Change(synced=inode) if (inode := self.find(name)) is not None else None
        if kind in ("create", "make"):
            return Change(((*self.parent(name), self._new(kind == "make")),))
        inode = self.find(name)
        if inode is None:
            return None
        if kind == "write":
            return Change(inode=inode, content=content)
        if kind == "remove":
            return Change(((*self.parent(name), None),))
        if kind == "link":
            return Change(((*self.parent(other), inode),))
        swapped = self.find(other) if kind == "exchange" else None
        return Change(((*self.parent(name), swapped), (*self.parent(other), inode)))

    def apply(self, change: Change, how: str = "all") -> None:
        """Make a change; of a content, "empty" and "half" are what was written of it. Inodes are never reused."""
        if change.inode is not None:
            earlier = self.files.get(change.inode, b"")  # what a file was that is appended to stays
            kept = len(earlier) if change.content.startswith(earlier) else 0
            length = {"all": len(change.content), "half": (kept + len(change.content)) // 2, "empty": kept}[how]
            self.files[change.inode] = change.content[:length]
        for folder, name, inode in change.entries:
            if inode is None:
                self.folders[folder].pop(name, None)
            else:
                self.folders[folder][name] = inode

    def tree(self, inode: int = ROOT, above: str = "") -> Tree:
        """What a reader finds."""
        found: Tree = {}
        for name, child in sorted(self.folders[inode].items()):
            if child in self.folders:
                found |= {f"{above}{name}": None} | self.tree(child, f"{above}{name}/")
            else:
                found[f"{above}{name}"] = self.files.get(child, b"")
        return found

    def _new(self, folder: bool) -> int:
        inode, self._next = self._next, self._next + 1
        if folder:
            self.folders[inode] = {}
        return inode


def translated(before: Tree, operations: list[Operation]) -> tuple[Disk, list[Change | None]]:
    """(the disk before, the change of each operation). All folders exist in it, named or not."""
    disk, changes = Disk(before), list[Change | None]()
    for operation in operations:
        change = disk.translate(operation)
        changes.append(change)
        if change:
            disk.apply(change)
    start = Disk(before)
    start.folders = {**{inode: {} for inode in disk.folders}, **start.folders}
    return start, changes


def replayed(before: Tree, operations: list[Operation], lost: dict[int, str]) -> Tree:
    """The folder after the operations without the lost ones, by number; how: nothing, empty, half (of a content)."""
    disk, changes = translated(before, operations)
    return _left(disk, changes, lost)


def states(before: Tree, operations: list[Operation]) -> Iterator[tuple[int, str, Tree]]:
    """(operations done, what was lost, the folder) for every prefix of the operations, without repetitions.

    Of each prefix: all that is not synced is kept, all is lost, each one alone is lost, each one alone is kept, and the
    last one is kept without those right before it, however many: it has moved before them. A content that is lost is
    empty, cut in half, or the one before. An operation that moves behind later ones is lost in the prefixes between.
    """
    disk, changes = translated(before, operations)
    known = set[tuple[int, int]]()
    durable = disk.copy()
    first = 0
    for end in range(len(changes) + 1):
        while first < end and _is_synced(changes[:end], first):
            if change := changes[first]:
                durable.apply(change)
            first += 1
        recent = changes[first:end]
        unsynced = [i for i in range(len(recent)) if not _is_synced(recent, i)]
        for lost, how in _losses(recent, unsynced):
            tree = _left(durable, recent, dict.fromkeys(lost, how))
            key = (end if not lost else -1, hash(tuple(sorted(tree.items()))))
            if key not in known:
                known.add(key)
                said = f"{how} of {[operations[first + i][:3] for i in lost]}" if lost else "all there"
                yield end, f"{end} done, {said}", tree


def _losses(recent: list[Change | None], unsynced: list[int]) -> Iterator[tuple[tuple[int, ...], str]]:
    yield (), "nothing"
    sets = [tuple(unsynced), *((i,) for i in unsynced), *(tuple(j for j in unsynced if j != i) for i in unsynced)]
    if unsynced and unsynced[-1] == len(recent) - 1:
        sets += [tuple(unsynced[i:-1]) for i in range(len(unsynced) - 1)]
    for lost in dict.fromkeys(filter(None, sets)):
        contents = any((change := recent[i]) and change.inode is not None for i in lost)
        for how in ("nothing", "empty", "half") if contents else ("nothing",):
            yield lost, how


def _left(start: Disk, changes: list[Change | None], lost: dict[int, str]) -> Tree:
    disk = start.copy()
    for i, change in enumerate(changes):
        how = lost.get(i, "all")
        if change and (how == "all" or (change.inode is not None and how != "nothing")):
            disk.apply(change, how)
    return disk.tree()


def _is_synced(done: list[Change | None], i: int) -> bool:
    """Whether a change is on the disk for certain: syncs of all that it needs follow."""
    change = done[i]
    if change is None or change.synced is not None:
        return True
    return change.needs <= {later.synced for later in done[i + 1 :] if later and later.synced is not None}


__all__ = ["Operation", "Tree", "replayed", "states"]
