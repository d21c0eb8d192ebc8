"""MOMA's arithmetic (no official code was found): normalised teacher, one linear head each, smooth-l1, the mean of two.

Stored rows are those of a class token and of visible tokens. Here they come from backbones that return what was stored,
among hidden tokens of which nothing may depend.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remask.backbones.normalise import Normalise
from remask.masking import Masking
from remask.method import Method
from remask.methods import moma
from remask.targets import TokenTeacher
from remask.tokens import grid_of, scatter
from remask.types import Features, Grid, Images, Size
from remask.views import Views
from tests.golden.vectors import Entries, Folder, activations, losses, some

SYSTEM = "moma"
MEAN, STD, PATCH = [0.5], [0.25], (4, 4)


class Stored(nn.Module):
    """A backbone whose only block puts out stored rows: the class token's and those of visible tokens."""

    modes, prefix, depth, channels, stem_width = ("drop",), 1, 1, 1, 0
    patch: Size = PATCH

    def __init__(self, rows: Tensor, views: Views) -> None:
        super().__init__()
        self.rows, self.views, self.width, self.network = rows, views, rows.shape[-1], nn.Identity()
        self.normalise = Normalise(MEAN, STD)

    def grid(self, size: Size) -> Grid:
        return grid_of(size, self.patch)

    def embed(self, images: Images) -> Images:
        return images

    def encode(
        self, stem: Any, views: Views | None = None, fill: Any = None, layers: Sequence[int] = (-1,)
    ) -> dict[int, Features]:
        front, seen = self.rows[:, :1], self.rows[:, 1:]
        whole = torch.full((len(seen), self.views.mask.shape[-1], self.width), 1e6)
        tokens = seen if views is not None else scatter(seen, self.views.visible, whole)
        return {layer: Features(front, tokens) for layer in layers}


def io(folder: Folder) -> Entries:
    return folder.tensors("spec_arithmetic.safetensors")


def seen(folder: Folder) -> tuple[Tensor, Views]:
    """Images on whose tokens as many are visible as were stored, and their views."""
    rows = io(folder)["student"]
    grid = (2, rows.shape[1] - 1)
    return torch.zeros(len(rows), 1, grid[0] * 4, grid[1] * 4), Masking(0.5)(
        len(rows), grid, torch.Generator().manual_seed(0)
    )


def target_of(folder: Folder, name: str) -> TokenTeacher:
    return TokenTeacher(Stored(io(folder)[name], seen(folder)[1]), PATCH, MEAN, STD, name=name)


def names(folder: Folder) -> list[tuple[str, str]]:
    """Teachers, and their heads: "teacher" and "proj", "teacher2" and "proj2"."""
    found = [(f"teacher{n}", f"proj{n}") for n in ("", *map(str, range(2, 10)))]
    return some((pair for pair in found if pair[0] in io(folder)), "teachers")


def method_of(folder: Folder, count: int, beta: float) -> Method:
    """A method of the first `count` teachers, with the stored heads."""
    stored, chosen = io(folder), names(folder)[:count]
    student = Stored(stored["student"], seen(folder)[1])
    method = moma(student, Masking(0.5), [target_of(folder, name) for name, _ in chosen], beta=beta)  # type: ignore[arg-type]
    for branch, (_, head) in zip(method.branches, chosen, strict=True):
        weights = {key: stored[f"{head}_{key}"] for key in ("weight", "bias")}
        branch.head.project.load_state_dict(weights)  # type: ignore[attr-defined]
    return method


def test_targets_are_normalised(folder: Folder) -> None:
    images, views = seen(folder)
    assert folder.config["layer_norm_eps"] == 1e-5
    for name, _ in names(folder):
        rows = target_of(folder, name)(images, views)
        shown = torch.cat([rows[:, :1], views.gather(rows[:, 1:], "visible")], dim=1)
        activations(shown, io(folder)[f"{name}_ln"])


def test_pairs(folder: Folder) -> None:
    images, views = seen(folder)
    pairs = method_of(folder, len(names(folder)), 1.0).pairs(images, views)
    for i, (name, head) in enumerate(names(folder)):
        prediction, target = pairs[f"teacher{i}"]
        activations(prediction, io(folder)[head.replace("proj", "projected")])
        activations(target, io(folder)[f"{name}_ln"])


@pytest.mark.parametrize("kind", ["loss_single_beta", "loss_multi_mean_beta"])
def test_losses(folder: Folder, kind: str) -> None:
    images, views = seen(folder)
    count = 1 if "single" in kind else len(names(folder))
    for beta, expected in io(folder).below(kind).items():
        losses(method_of(folder, count, float(beta))(images, views)["total"], expected)
