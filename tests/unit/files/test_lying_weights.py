"""Weights that unfold, claim or would run, and what is said of them."""

import io
import json
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remask.errors import UserError
from remask.files.tensors import content_of
from remask.interop.encoders import open_encoder
from remask.targets.dalle import load_dalle
from remask.targets.tokens import StoredIds, read_codebook, save_codebook


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        content_of(path)
    return str(error.value)


def test_tensors_expanded_from_one_number_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1).expand(1 << 20, 1 << 12)}}, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").stat().st_size < 6000
    assert "expanded from few numbers: it would unfold to 17,179,869,184 bytes" in refusal(tmp_path / "x.pth")


def test_many_tensors_over_one_storage_are_refused_and_tied_ones_are_not(tmp_path: Path) -> None:
    numbers = torch.zeros(1 << 20)
    torch.save({f"w{i}": numbers.view(1, -1) for i in range(200)}, tmp_path / "x.pth")
    assert "would unfold to" in refusal(tmp_path / "x.pth")
    torch.save({"a": numbers, "b": numbers, "c": torch.arange(9).expand(1, -1)}, tmp_path / "x.pth")
    assert [*content_of(tmp_path / "x.pth")] == ["a", "b", "c"]


def test_an_archive_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3)}, tmp_path / "y.pth")
    with (
        zipfile.ZipFile(tmp_path / "y.pth") as old,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("y/data/9", bytes(300 << 20))
    assert "claims too much: it would unfold to 314,5" in refusal(tmp_path / "x.pth")


class Runs:
    def __reduce__(self) -> Any:
        return eval, ("open('RAN', 'w')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nobody_is_told_to_load_a_file_as_code(tmp_path: Path, zipped: bool) -> None:
    contents = [{"model": Runs()}, torch.nn.Linear(1, 1), {"a": OrderedDict, "b": torch.nn.Linear}, {"x": io.StringIO}]
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        lines = []
        for read in (content_of, load_dalle, lambda p: open_encoder(f"mae:{p},heads=1")):
            try:
                read(path)
            except UserError as error:
                lines.append(str(error))
        assert lines
        assert not [line for line in lines if "weights_only" in line or "arbitrary" in line]


def test_no_text_of_ours_says_it_either(repo: Path) -> None:
    texts = [*(repo / "src").rglob("*.py"), *(repo / "docs").rglob("*.md"), repo / "README.md"]
    assert not [path for path in texts if "weights_only=False" in path.read_text(encoding="utf-8")]


def test_codebooks_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    for about, centres, words in (
        ("{", torch.zeros(2, 3), "damaged"), ("[1]", torch.zeros(2, 3), "damaged"),
        ("[" * 100_000, torch.zeros(2, 3), "damaged"),
        ("{}", torch.zeros(2), "no table"), ("{}", torch.zeros(0, 3), "no table"),
        ("{}", torch.full((2, 3), float("nan")), "no finite numbers"),
        ("{}", torch.zeros(2, 3, dtype=torch.int64), "no finite"),
    ):  # fmt: skip
        save_file({"centres": centres}, path, {"about": about})
        with pytest.raises(UserError, match=words):
            read_codebook(path)
    save_codebook(path, torch.ones(2, 3), {"target": 1})
    assert read_codebook(path)[1] == json.loads('{"target": 1}')


def test_stored_ids_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "i.safetensors"
    for keys, ids in ((torch.zeros(2, 2), torch.zeros(2, 4)), (torch.arange(2), torch.zeros(2, 4))):
        save_file({"keys": keys, "ids": ids}, path)
        with pytest.raises(UserError, match="no whole numbers"):
            StoredIds(path, (4, 4), 8)
