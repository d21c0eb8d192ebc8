"""tensor_files.py: whatever lies beside the weights, nothing is executed; what is no checkpoint is one line."""

import argparse
import bz2
import collections
import enum
import gzip
import lzma
import os
import pathlib
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from remask.errors import UserError
from remask.files.tensors import Foreign, content_of, described, refuse_non_finite

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.zeros(3)}


class Settings:
    """Of a package that is not there when the file is read."""

    def __init__(self) -> None:
        self.rate, self.path, self.inner = np.float32(3), pathlib.PurePosixPath("/data"), [Names(a=1), Rows([1, 2])]


class Names(dict[str, int]):
    """A dictionary with attributes, as Lightning keeps hyper-parameters."""


class Rows(list[int]):
    pass


class Kind(enum.Enum):
    ONE = 1

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:  # as Python 3.11.0 to 3.11.4 do
        return getattr, (Kind, "ONE")


class Runs:
    """What a pickle calls when it is loaded."""

    def __init__(self, what: Callable[..., Any], *arguments: Any) -> None:
        self.what, self.arguments = what, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what, self.arguments


BESIDE: dict[str, Any] = {
    "numpy number": np.float64(71.2),
    "numpy array": np.arange(3),
    "numpy type": np.dtype("f4"),
    "arguments": argparse.Namespace(out=pathlib.PurePosixPath("/x"), seed=np.int64(0), nested=argparse.Namespace(a=1)),
    "path": pathlib.PosixPath("/data/out"),
    "settings": Settings(),
    "hyper-parameters": Names(lr=1),
    "list of its own": Rows([1, 2, 3]),
    "deque": collections.deque([1, 2], maxlen=5),
    "default dictionary": collections.defaultdict(list, {"a": [1]}),
    "set and complex": [{1, 2}, frozenset((3,)), 1 + 2j],
    "class": Settings,
    "enumeration": Kind.ONE,
    "bound method": Names(a=1).keys,
    "network": nn.Linear(2, 2),
    "optimizer": torch.optim.AdamW([nn.Parameter(torch.zeros(2))]).state_dict(),
}


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        content_of(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", BESIDE)
def test_weights_are_read_whatever_is_beside_them(tmp_path: Path, beside: str, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"before": BESIDE[beside], "model": WEIGHTS, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    if beside == "network" and not zipped:  # the older form keeps the code of a pickled network
        assert "it holds a whole network, not its weights" in refusal(path)
        return
    content = content_of(path)
    assert content["epoch"] == 3
    assert content["model"].keys() == WEIGHTS.keys()
    assert all(torch.equal(content["model"][key], value) for key, value in WEIGHTS.items())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("what", "named"),
    [
        (Runs(os.system, "touch RAN"), "posix.system"),
        (Runs(eval, "open('RAN', 'w')"), "builtins.eval"),
        (Runs(exec, "open('RAN', 'w')"), "builtins.exec"),
    ],
)
def test_what_would_run_is_refused_by_the_name_of_its_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Runs, named: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in ({"model": WEIGHTS, "hook": what, "epoch": 1}, {"hook": [1, what]}):
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
        line = refusal(tmp_path / "x.pth")
        assert f'could run code: its entry "hook" calls {named}' in line
        assert "torch.save(" in line
    assert not (tmp_path / "RAN").exists()


def test_any_other_call_stays_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": WEIGHTS, "x": Runs(os.mkdir, "RAN")}, "x.pth")
    assert "posix.mkdir" in refusal(tmp_path / "x.pth")
    torch.save({"model": WEIGHTS, "y": Runs(tempfile.mkdtemp, "", "", ".")}, "x.pth")
    assert isinstance(content_of(Path("x.pth"))["y"], Foreign)
    assert sorted(os.listdir()) == ["x.pth"]


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pth", "w"])
def test_safetensors_by_what_it_is(tmp_path: Path, name: str) -> None:
    save_file(WEIGHTS, tmp_path / name)
    assert torch.equal(content_of(tmp_path / name)["a.weight"], WEIGHTS["a.weight"])


def test_a_torch_file_called_safetensors(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(WEIGHTS, tmp_path / "w.safetensors", _use_new_zipfile_serialization=zipped)
        assert torch.equal(content_of(tmp_path / "w.safetensors")["a.weight"], WEIGHTS["a.weight"])


def saved(zipped: bool = True) -> bytes:
    import io

    file = io.BytesIO()
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def tensors() -> bytes:
    from safetensors.torch import save

    return save(WEIGHTS)


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty, 0 bytes"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
    "page": (b"\n <!DOCTYPE html><html lang='en'>", "is a web page"),
    "another page": (b"<html><body>Not found", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
    "text": ("Gewichte, größere\r\n".encode() * 40, "is a text file, not weights"),
    "json": (b'{"model": [1, 2]}', "is a text file, not weights"),
    "gzip": (gzip.compress(saved()), "is compressed by gzip"),
    "bzip2": (bz2.compress(saved()), "is compressed by bzip2"),
    "xz": (lzma.compress(saved()), "is compressed by xz"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(99), "is one array of numpy"),
    "noise": (bytes(range(256)), "is damaged or no checkpoint"),
    "cut zip": (saved()[:-40], "is damaged or cut off"),
    "cut in the middle": (saved()[:200], "is damaged or cut off"),
    "cut older form": (saved(False)[:-9], "is damaged or no checkpoint"),
    "older form without its end": (saved(False)[:60], "is damaged or no checkpoint"),
    "cut safetensors": (tensors()[:-4], "is damaged or no checkpoint"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "is damaged or no checkpoint"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_checkpoint(tmp_path: Path, kind: str, suffix: str) -> None:
    content, complaint = FILES[kind]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert complaint in refusal(path)


def test_archives_of_others(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    assert "archive of numpy arrays" in refusal(tmp_path / "x.npz")
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "x.pt")
    assert "is a TorchScript archive" in refusal(tmp_path / "x.pt")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x.pt", "x.pt")
    assert "is a tar archive" in refusal(tmp_path / "x.tar")
    assert "it is a folder" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "absent.pth")


def test_a_whole_network_is_called_by_its_class(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "x.pth")
    assert described(content_of(tmp_path / "x.pth")) == "a torch.nn.modules.container.Sequential"
    torch.save([np.zeros(2), np.float32(1)], tmp_path / "x.pth")
    assert [described(each) for each in content_of(tmp_path / "x.pth")] == ["a numpy array", "a numpy number"]
    assert [described(each) for each in (None, 3, "x", [])] == ["None", "an int", "a str", "a list"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_not_finite_is_counted(value: float, dtype: torch.dtype) -> None:
    state: dict[str, Tensor] = {"a": torch.zeros(4, dtype=dtype), "b": torch.zeros(3, 2), "n": torch.tensor(3)}
    refuse_non_finite(state, "x")
    state["b"][1, 1] = value
    with pytest.raises(UserError, match=r"^x holds weights that are not finite: b has 1 of 6 values NaN or infinite;"):
        refuse_non_finite(state, "x")
    state["a"][:3] = value
    with pytest.raises(UserError, match=r"a has 3 of 4 values NaN or infinite, and so do 1 other tensors"):
        refuse_non_finite(state, "x")
