"""What the golden tests of the methods that replace tokens share: stored masks, stored targets, block-wise masks."""

import re
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from remask.masking import Masking
from remask.masking.scores import Blocks
from remask.method import Method
from remask.types import Features, Grid
from remask.views import Views
from tests.golden.vectors import Folder, some


class Stored(nn.Module):
    """A target that returns stored rows, [B, N, P], or stored ids, [B, N, 1]."""

    def __init__(self, rows: Tensor, width: int) -> None:
        super().__init__()
        self.rows, self.width = rows, width

    def forward(self, images: Tensor, views: Views) -> Tensor:
        return self.rows

    def describe(self) -> str:
        return "stored"


def with_eps(module: Any, eps: float) -> Any:
    """The same, its norms with the ε that the vectors were made with."""
    for norm in (part for part in module.modules() if isinstance(part, nn.LayerNorm)):
        norm.eps = eps
    return module


def with_eps_of(settings: Any, module: Any) -> Any:
    """The same, its norms with the ε that settings state, if they do."""
    return with_eps(module, float(settings["norm_eps"])) if "norm_eps" in settings else module


def views_of(mask: Tensor, grid: Grid) -> Views:
    """Masks of a batch as one view; a mask on a finer grid must be whole on the tokens of this one."""
    if mask.ndim == 3:
        down, right = mask.shape[1] // grid[0], mask.shape[2] // grid[1]
        cells = mask.unfold(1, down, down).unfold(2, right, right).flatten(3)
        assert (cells == cells[..., :1]).all()
        mask = cells[..., 0].flatten(1)
    return Views.of(mask.bool()[None], grid)


def encoded(method: Method, images: Tensor, mask: Tensor, layers: tuple[int, ...] = (-1,)) -> dict[int, Features]:
    """Image by image, for official block-wise masks may hide different numbers of tokens."""
    rows = []
    for image, hidden in zip(images.split(1), mask.split(1), strict=True):
        stem = method.backbone.embed(image)
        views = views_of(hidden, method.backbone.grid((image.shape[-2], image.shape[-1])))
        rows.append(method.backbone.encode(stem, views, mask_token=method.sees.mask_token, layers=layers))
    return {i: Features(*(torch.cat(parts) for parts in zip(*(row[i] for row in rows), strict=True))) for i in layers}


def loss_of(method: Method, images: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """The mean over the masked tokens of the batch, however many each image has, with stored targets."""
    grid, losses = method.backbone.grid((images.shape[-2], images.shape[-1])), []
    (branch,) = method.branches
    for image, hidden, rows in zip(images.split(1), mask.split(1), target.split(1), strict=True):
        branch.target = Stored(rows, branch.target.width)
        losses.append(method(image, views_of(hidden, grid))["total"] * hidden.sum())
    return torch.stack(losses).sum() / mask.sum()


class Case(NamedTuple):
    name: str
    code: str
    wanted: int
    masks: Tensor


def block_cases(folder: Folder) -> list[Case]:
    """`<code>.<setting>_<count>.seed<n>` -> stored masks, [draws, rows, columns]."""
    stored = folder.tensors("block_masks.safetensors")
    matches = some((m for key in stored if (m := re.fullmatch(r"(\w+)\.\w+_(\d+)\.seed\d+", key))), "block masks")
    return [Case(m[0], m[1], int(m[2]), stored[m[0]].bool()) for m in matches]


def smallest_of(folder: Folder, case: Case, default: int) -> int:
    """Patches of the smallest block, as config.json states it for these masks, or else the official default."""
    masks = folder.config["masks"]
    setting = masks.get(case.name.split(".")[1], {}) if isinstance(masks, dict) else {}
    return int(setting.get("min", default))


def drawn(case: Case, smallest: int, batch: int) -> Tensor:
    """Our masks of the same count on the same grid: n - int(n · (1 - ratio)) cells are hidden."""
    grid = case.masks.shape[1], case.masks.shape[2]
    n = grid[0] * grid[1]
    masking = Masking((case.wanted - 0.5) / n, Blocks(smallest / n, case.wanted / n))
    return masking(batch, grid, Generator().manual_seed(0)).mask[0].unflatten(1, grid)


def togetherness(masks: Tensor) -> float:
    """Of the neighbours of hidden cells, the share that is hidden: the ratio where cells are drawn one by one."""
    pairs = [(masks[:, 1:], masks[:, :-1]), (masks[:, :, 1:], masks[:, :, :-1])]
    both = sum(int((a & b).sum()) for a, b in pairs)
    either = sum(int((a | b).sum()) for a, b in pairs)
    return 2 * both / (both + either)


def check_block_masks(case: Case, smallest: int) -> None:
    """Ours: exact, and at the border as elsewhere; the official count may be short (never in mmpretrain's).

    Togetherness lies between the share that is hidden and 1. That of a few stored masks is compared with ours to .07,
    by which the generators differ in the middle, and half the range of as many of ours: on a grid of 4×4 it is wide.
    """
    counts, ours = case.masks.flatten(1).sum(1), drawn(case, smallest, 2000)
    assert (counts == case.wanted if case.code == "mmpretrain" else counts <= case.wanted).all(), case.name
    assert (ours.flatten(1).sum(1) == case.wanted).all(), case.name
    share = case.wanted / ours[0].numel()
    assert (ours.float().mean((0, 2)) - share).abs().max() < 0.04, case.name
    assert (ours.float().mean((0, 1)) - share).abs().max() < 0.04, case.name
    if case.code == "mmpretrain":
        assert not case.masks[:, -1].any(), case.name
        assert not case.masks[:, :, -1].any(), case.name
    official = togetherness(case.masks)
    assert official > share + 0.2 * (1 - share), case.name  # blocks, not cells
    several = [togetherness(part) for part in ours.split(len(case.masks)) if len(part) == len(case.masks)]
    apart = abs(togetherness(ours) - official)
    assert apart < 0.07 + (max(several) - min(several)) / 2, case.name
