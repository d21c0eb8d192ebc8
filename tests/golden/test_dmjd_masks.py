"""DMJD's two views against the official sampler: the first from stored noise, the second in count, union and form."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from remask.errors import UserError
from remask.interop import dmjd as interop
from remask.masking import Masking
from remask.types import Grid
from tests.golden.vectors import File, Folder, some

SYSTEM = "dmjd"
FILES = {"forward": "jd_*.safetensors"}
CASE = re.compile(r"(random|block)_L(\d+)_m([\d.]+)_p([\d.]+)\.mask")


class Case(NamedTuple):
    name: str
    masking: tuple[float, int]
    prediction: float
    grid: Grid
    stored: dict[str, Tensor]


def cell_of(mask: Tensor, noise: Tensor) -> int:
    """Tokens along a side of a cell: noise has a number for each cell."""
    return math.isqrt(mask.shape[1] // noise.shape[1])


def cases(folder: Folder) -> list[Case]:
    stored = folder.tensors("masks.safetensors")
    found = some((match for key in stored if (match := CASE.fullmatch(key))), "mask cases")
    return [
        Case(
            match[0].removesuffix(".mask"),
            (float(match[3]), cell_of(stored[match[0]], stored[f"{match[0].removesuffix('mask')}noise"])),
            float(match[4]),
            (math.isqrt(int(match[2])),) * 2,
            stored.below(match[0].removesuffix("mask")),
        )
        for match in found
    ]


def drawn_in_order(*scores: Tensor) -> Callable[..., Tensor]:
    """A score that returns stored numbers, view after view."""
    remaining = list(scores)
    return lambda *_: remaining.pop(0)


def cells(mask: Tensor, grid: Grid, side: int) -> Tensor:
    """One value per cell of `side` × `side` patches; all patches of a cell must agree."""
    blocks = mask.unflatten(-1, grid).unfold(-2, side, side).unfold(-2, side, side).flatten(-2)
    assert (blocks == blocks[..., :1]).all()
    return blocks[..., 0].flatten(-2)


def identical(case: Case) -> bool:
    """Whether the two stored views hide the same: no cell is left to hide anew, by the ratios or by their rounding."""
    first, second = interop.views_of(case.stored["mask"], case.grid).mask
    return torch.equal(first, second)


def disjoint_cases(folder: Folder) -> list[Case]:
    return some((case for case in cases(folder) if not identical(case)), "disjoint mask cases")


def test_first_view_follows_from_the_noise(folder: Folder) -> None:
    for case in cases(folder):
        ratio, cell = case.masking
        noise = case.stored["noise"]
        views = Masking(ratio, drawn_in_order(-noise), cell)(len(noise), case.grid)
        assert torch.equal(views.mask[0], case.stored["mask"][: len(noise)].bool()), case.name


def test_second_view_has_the_official_form(folder: Folder) -> None:
    """The official draw of the new cells is a permutation shared by the batch; given its order, ours is the same."""
    for case in disjoint_cases(folder):
        ratio, cell = case.masking
        noise, official = case.stored["noise"], interop.views_of(case.stored["mask"], case.grid)
        second = cells(~official.mask[1], case.grid, cell).float()
        views = Masking(ratio, drawn_in_order(-noise, second), cell, 2, case.prediction)(len(noise), case.grid)
        assert torch.equal(views.mask, official.mask), case.name


def test_counts_are_the_official_ones(folder: Folder) -> None:
    for case in disjoint_cases(folder):
        ratio, cell = case.masking
        official = interop.views_of(case.stored["mask"], case.grid)
        masking = Masking(ratio, cell=cell, views=2, prediction=case.prediction)
        drawn = masking(len(case.stored["noise"]), case.grid, torch.Generator().manual_seed(0))
        counts = masking.counts(case.grid)
        for views in (official, drawn):
            assert (views.mask.sum(-1) == counts.hidden).all(), case.name
            assert (views.mask.any(0).sum(-1) == counts.predicted).all(), case.name
            assert views.visible.shape[1] == case.stored["ids_keep"].shape[1]
        assert counts.tokens == official.mask.shape[-1]


def test_official_views_are_read_as_they_stand(folder: Folder) -> None:
    for case in cases(folder):
        official = interop.views_of(case.stored["mask"], case.grid)
        assert torch.equal(official.visible, case.stored["ids_keep"].sort(dim=1).values), case.name
        assert torch.equal(case.stored["mask"].gather(1, official.masked), torch.ones(official.masked.shape))


def test_realised_rates(folder: Folder) -> None:
    stored = folder.json("masks_info.json")
    for case in some((case for case in disjoint_cases(folder) if case.name in stored), "stored rates"):
        ratio, cell = case.masking
        counts, info = (
            Masking(ratio, cell=cell, views=2, prediction=case.prediction).counts(case.grid),
            stored[case.name],
        )
        assert counts.hidden / counts.tokens == pytest.approx(info["corruption_realised"], abs=1e-6)
        assert [counts.predicted / counts.tokens] * info["batch"] == pytest.approx(info["union_pred_rate_per_image"])
        assert [counts.predicted - counts.hidden] * info["batch"] == info["newly_masked_in_view2"], case.name


def test_where_official_views_are_identical_ours_are_refused(folder: Folder) -> None:
    found = cases(folder)
    assert all(identical(case) for case in found if case.prediction <= case.masking[0])
    for case in some((case for case in found if identical(case)), "degenerate mask cases"):
        ratio, cell = case.masking
        with pytest.raises(UserError):
            Masking(ratio, cell=cell, views=2, prediction=case.prediction)(1, case.grid)


def test_views_of_the_forward_files(forward: File) -> None:
    config, stored = forward.folder.config.part(forward.stem), forward.tensors
    grid = (math.isqrt(stored["mask"].shape[1]),) * 2
    views = interop.views_of(stored["mask"], grid)
    cell = cell_of(stored["mask"], stored["noise"])
    second = cells(~views.mask[1], views.grid, cell).float()
    score = drawn_in_order(-stored["noise"], second)
    masking = Masking(float(config["mask_ratio"]), score, cell, 2, float(config["prediction"]))
    assert torch.equal(masking(len(stored["noise"]), views.grid).mask, views.mask)
