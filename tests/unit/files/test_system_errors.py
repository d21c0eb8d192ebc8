"""Errors of the machine are recognised however a library raises them; those of the program are not."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import remask
from remask.files.system_errors import CURES, SHARED_MEMORY, no_memory, system_line


@pytest.mark.parametrize("number", CURES)
def test_every_number_is_a_line_with_a_cure(number: int) -> None:
    line = system_line(OSError(number, os.strerror(number), "/data/a.png"))
    assert line is not None
    assert len(line.split(": ")[-1].split("; ")) == 2 or ", or " in line, "a cause and a cure"
    assert number in (errno.ENOMEM,) or line.startswith("/data/a.png: ")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError(
            "[enforce fail at inline_container.cc:668] . "
            "PytorchStreamWriter failed writing file data/2: file write failed"
        ),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 128 vs 22"),
    ],
)
def test_a_full_disk_in_each_library(error: Exception) -> None:
    assert "the disk is full" in str(system_line(error))
    assert "free some space" in str(system_line(error))


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    """/dev/full refuses every byte; a limit on a file's size stands for a quota."""
    with pytest.raises(OSError, match="No space") as found, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    assert "the disk is full" in str(system_line(found.value))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(SafetensorError) as limited:
            save_file({"a": torch.zeros(9999)}, tmp_path / "a.safetensors")
        with pytest.raises((RuntimeError, OSError)) as torchs:
            torch.save({"a": torch.zeros(9999)}, tmp_path / "a.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "file may not grow" in str(system_line(limited.value))
    assert system_line(torchs.value), torchs.value


def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    for write in (lambda path: save_file({"a": torch.zeros(1)}, path), lambda path: torch.save(1, path)):
        with pytest.raises((RuntimeError, OSError, SafetensorError)) as found:
            write(tmp_path / "gone" / "file")
        assert "was removed meanwhile" in str(system_line(found.value)), found.value


def test_memory_that_runs_out_for_real() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60, dtype=torch.uint8)
    assert no_memory(found.value)
    with pytest.raises(MemoryError) as pythons:
        bytearray(2**62)
    assert no_memory(pythons.value)
    assert no_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert "memory runs out" in str(system_line(found.value))


def test_too_many_open_files_for_real() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), before[1]))
    try:
        with pytest.raises(OSError, match="Too many") as found:
            [os.open(os.devnull, os.O_RDONLY) for _ in range(999)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert "too many files are open" in str(system_line(found.value))


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)",
        "unable to write to file </torch_1_2_3>: No space left on device (28)",
        "unable to mmap 128 bytes from file </torch_1_2_3>: Success (0)",
    ],
)
def test_shared_memory(text: str) -> None:
    assert system_line(RuntimeError(text)) == SHARED_MEMORY


def test_faults_of_the_program_are_none() -> None:
    """So is a file of this package that is not there, and what only sounds alike."""
    inside = Path(remask.__file__).parent / "recipes" / "gone.toml"
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file", str(inside)),
        FileNotFoundError(errno.ENOENT, "No such file"),
        OSError("cannot identify image file"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"),
        RuntimeError("expected (3)"),
        ValueError("no space left on device (os error 28)"),
        KeyError("memory"),
    ):
        assert system_line(error) is None, error
        assert not no_memory(error)
