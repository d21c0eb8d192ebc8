"""files/memory.py: memory that runs out is the machine's fault, and a claim beyond what a file holds the file's."""

import io
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from remask.commands.saved_progress import SavedProgress
from remask.errors import UserError
from remask.files import system_errors
from remask.files.memory import has_room, no_memory, unfolding
from remask.files.system_errors import refuse_shortage
from remask.files.tensors import content_of
from remask.images.sources.opening import open_source
from remask.images.sources.stacks import open_stack
from remask.targets.tokens import save_ids

LIMITED = """
import resource
from pathlib import Path
import pyarrow.parquet, torch
from remask.commands.saved_progress import SavedProgress
from remask.errors import UserError
from remask.files.tensors import content_of
from remask.images.sources.parquet_rows import open_parquet, read_rows
from remask.images.sources.stacks import open_stack
from remask.targets.tokens import StoredIds
from remask.training.checkpoint import _load_tensors, load_weights

progress = SavedProgress(Path("."), "x", {})

readers = {
    "safetensors": lambda: content_of(Path("large.safetensors")),
    "zip": lambda: content_of(Path("large.pt")),
    "old": lambda: content_of(Path("large-old.pt")),
    "load_weights": lambda: load_weights(Path("large.safetensors"), torch.nn.Linear(2, 1, bias=False)),
    "ids": lambda: StoredIds(Path("ids"), (64, 64), 8),
    "npz": lambda: open_stack("a.npz", "a.npz", None),
    "parquet": lambda: read_rows(open_parquet("a.parquet", "a"), "a.parquet", 0, ["image"], 10),
    "progress": progress.read,
    "optimizer": lambda: _load_tensors(Path("large.pt")),
}

for name in ("small.pt", "small.safetensors"):
    content_of(Path(name))  # loads the libraries
status = open("/proc/self/status").read()
used = int(status.split("VmSize:")[1].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
for name, read in readers.items():
    try:
        read()
        print(name, "READ")
    except UserError as error:
        print(name, error)
    except BaseException as error:
        print(name, "RAISED", type(error).__name__, error)
"""


def write(folder: Path) -> None:
    """Files of 120 MiB for all readers, and small ones."""
    for name, columns in (("large", 30 << 10), ("small", 2)):
        state = {"weight": torch.zeros(columns, 1 << 10)}
        save_file(state, folder / f"{name}.safetensors")
        torch.save(state, folder / f"{name}.pt")
        torch.save(state, folder / f"{name}-old.pt", _use_new_zipfile_serialization=False)
    save_ids(folder / "ids", torch.arange(1 << 12), torch.zeros(1 << 12, 1 << 12, dtype=torch.int64), 8)
    np.savez(folder / "a.npz", images=np.zeros((120 << 10, 16, 16, 4), np.uint8))
    table = pyarrow.table({"image": [os.urandom(12 << 20)] * 10})
    parquet.write_table(table, folder / "a.parquet", use_dictionary=False)
    (folder / "eval").mkdir()
    SavedProgress(folder, "x", {}).write(state | {"large": torch.zeros(30 << 10, 1 << 10)})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_that_is_short_for_good_files_is_never_the_files_fault(tmp_path: Path) -> None:
    write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 9, done.stdout + done.stderr
    for line in lines:
        assert " cannot be read: memory runs out; end other programs" in line, line
        assert "damaged" not in done.stdout + done.stderr
    assert (tmp_path / "eval" / ".x.part").is_file()


def test_files_that_claim_more_than_they_hold_are_at_fault(tmp_path: Path) -> None:
    """Their claims fail to be allocated on any machine, and there is room for all that such a file may hold."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 50}, 2, 2, 3), }}\n".encode()
    array = np.lib.format.MAGIC_PREFIX + b"\1\0" + struct.pack("<H", len(header)) + header
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images.npy", array)
    with pytest.raises(UserError, match="cannot be read as numpy's"):
        open_stack("a.npz", str(tmp_path / "a.npz"), None)
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(content.replace(b"K\x03", b"\x8a\x07" + bytes(6) + b"\x10"))
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        content_of(tmp_path / "w.pt")


def test_what_is_said_follows_the_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pt").write_bytes(b"x" * 1000)
    failed = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 12")
    asked: list[int] = []
    monkeypatch.setattr(system_errors, "has_room", lambda size: bool(asked.append(size)))
    with pytest.raises(UserError, match=r"w\.pt cannot be read: memory runs out"):
        refuse_shortage(failed, tmp_path / "w.pt")
    assert asked == [unfolding(1000)]
    refuse_shortage(ValueError("it is damaged"), tmp_path / "w.pt")
    assert asked == [unfolding(1000)]
    monkeypatch.setattr(system_errors, "has_room", lambda size: True)
    refuse_shortage(failed, tmp_path / "w.pt")


def test_room() -> None:
    assert has_room(0)
    assert has_room(1 << 20)
    assert not has_room(1 << 60)
    assert not has_room(1 << 90)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(2, "out of memory.png"), False),
        (OSError("decoder error: out of memory"), True),
        (RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left (28)"), False),
        (ValueError("broken PNG file"), False),
    ],
)
def test_errors_of_libraries(error: Exception, short: bool) -> None:
    assert no_memory(error) is short


def test_a_row_of_parquet_that_memory_is_short_for_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OSError would count its pictures as unusable ones."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    parquet.write_table(pyarrow.table({"image": [stream.getvalue()] * 2}), tmp_path / "a.parquet")
    source: Any = open_source(str(tmp_path / "a.parquet"))
    source._cache.clear()

    def short(*_: object, **__: object) -> None:
        raise pyarrow.ArrowMemoryError("malloc of size 251658368 failed")

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", short)
    monkeypatch.setattr(system_errors, "has_room", lambda size: False)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read: memory runs out"):
        source.read(0)
