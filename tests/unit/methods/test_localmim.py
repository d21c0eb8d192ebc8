"""methods/localmim.py: its row of the table, and each branch against HOG that is computed apart from it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from remask.backbones.vit import ViT, create_vit
from remask.errors import UserError
from remask.method import Method
from remask.methods import dm, localmim
from remask.targets import Hog
from remask.targets.hog import sobel_gradient
from remask.types import END

MEAN, STD = [0.5] * 3, [0.25] * 3
SIDE, PATCH = 32, 8


def vit(depth: int = 8, **overrides: object) -> ViT:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": depth, "num_heads": 2, "patch_size": PATCH, **overrides}
    return create_vit("vit_micro", (SIDE, SIDE), MEAN, STD, overrides=sizes)  # type: ignore[arg-type]


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=Generator().manual_seed(1))


def small(**keys: object) -> Method:
    return localmim(vit(), 0.75, width=16, heads=2, **keys)  # type: ignore[arg-type]


def histograms(pixels: Tensor, cell: int) -> Tensor:
    """[B, channel, bin, row, column]: magnitudes summed by orientation, each cell of length 1."""
    down, right = sobel_gradient(pixels.float())
    bins = (torch.atan2(right, down) / torch.pi * 9 + 1e-6).floor().long() % 9
    magnitude = (down.square() + right.square()).sqrt()
    planes = torch.stack([magnitude * (bins == i) for i in range(9)], dim=2)
    return F.normalize(F.avg_pool2d(planes.flatten(1, 2), cell).unflatten(1, (3, 9)), dim=2)


def test_it_is_its_row_of_the_table() -> None:
    method = small()
    assert [branch.name for branch in method.branches] == ["block1", "block3", "block5", "end"]
    assert [branch.layer for branch in method.branches] == [1, 3, 5, END]
    assert [branch.weight for branch in method.branches] == [1.0] * 4
    words = str(method)
    for line in (
        "at block 1 ; HOG sobel 2 px, l2",
        "at block 3 ; HOG sobel 4 px, l2",
        "at block 5 ; HOG sobel 8 px, l2",
    ):
        assert f"decoder of 1 block, width 16 {line}" in words
    assert "decoder of 1 block, width 16, means of 2×2 tokens ; HOG sobel 16 px, l2" in words
    norms = [branch.head.norm for branch in method.branches]  # type: ignore[attr-defined]
    assert [norm is None for norm in norms] == [False, False, False, True]
    assert len({id(norm) for norm in norms}) == 4


@pytest.mark.parametrize("branch", range(4))
def test_targets_are_histograms_computed_apart(branch: int) -> None:
    """Cell by cell; one that is larger than a token is the same for all tokens in it."""
    method, pixels = dm(small(), 2), images()
    views, cell = method.draw(pixels, Generator().manual_seed(0)), (2, 4, 8, 16)[branch]
    name = method.branches[branch].name
    wanted, expected = method.pairs(pixels, views)[name][1], histograms(pixels, cell)
    for row in range(len(views.masked)):
        for i, token in enumerate(views.masked[row].tolist()):
            top, left = token // 4 * PATCH // cell, token % 4 * PATCH // cell
            count = max(PATCH // cell, 1)
            cells = expected[row % 3, :, :, top : top + count, left : left + count]
            assert torch.allclose(wanted[row, i], cells.flatten(), atol=1e-4)


def test_losses_are_means_over_cells_by_their_masked_share() -> None:
    """As the published loss has it: finer cells of masked patches, coarser ones by how much of them is masked."""
    method, pixels = small(), images()
    views = method.draw(pixels, Generator().manual_seed(0))
    losses, pairs = method(pixels, views), method.pairs(pixels, views)
    mask = views.mask[0].unflatten(1, (4, 4)).float()
    for branch, cell in zip(method.branches, (2, 4, 8, 16), strict=True):
        predicted = pairs[branch.name][0]
        errors = torch.zeros(3, SIDE // cell, SIDE // cell)
        expected = histograms(pixels, cell)
        for b in range(3):
            for i, token in enumerate(views.masked[b].tolist()):
                count, top, left = max(PATCH // cell, 1), token // 4 * PATCH // cell, token % 4 * PATCH // cell
                own = predicted[b, i].view(3, 9, count, count)
                there = slice(top, top + count), slice(left, left + count)
                errors[b][there] = (own - expected[b][(slice(None), slice(None), *there)]).square().mean((0, 1))
        share = F.interpolate(mask[:, None], scale_factor=PATCH / cell, mode="area" if cell > PATCH else "nearest")[
            :, 0
        ]
        by_hand = (errors * share).sum() / share.sum()
        assert losses[branch.name].item() == pytest.approx(by_hand.item(), rel=1e-4)
    assert losses["total"].item() == pytest.approx(sum(losses[b.name].item() for b in method.branches), rel=1e-5)


def test_the_central_flavour_has_its_own_order_of_values() -> None:
    method, pixels = small(flavour="central", norm="layer"), images()
    views = method.draw(pixels, Generator().manual_seed(0))
    hog = Hog((PATCH, PATCH), MEAN, STD, cell=2)
    assert torch.equal(method.pairs(pixels, views)["block1"][1], views.gather(hog(pixels), "masked"))
    head = method.branches[0].head
    assert not head.decoder.predict.values_first  # type: ignore[attr-defined]


def test_fewer_layers_have_the_coarser_cells() -> None:
    method = localmim(vit(depth=3), 0.5, width=16, heads=2)
    assert [branch.name for branch in method.branches] == ["block0", "block1", "end"]
    assert [branch.target.describe() for branch in method.branches] == [
        "HOG sobel 4 px, l2", "HOG sobel 8 px, l2", "HOG sobel 16 px, l2",
    ]  # fmt: skip
    chosen = localmim(vit(), 0.5, layers=[2, END], cells=[8, 4], width=16, heads=2)
    assert [branch.name for branch in chosen.branches] == ["block2", "end"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"layers": [1, 9]}, "layers: there is no layer 9; the backbone has blocks 0 to 7"),
        ({"layers": [1, END], "cells": [4]}, "cells: 1 for 2 layers; name one for each"),
        ({"layers": [1], "cells": [3]}, "cells: a cell of 3 px does not fit patches of 8×8 px"),
        ({"layers": [1], "cells": [12]}, "cells: a cell of 12 px does not fit patches of 8×8 px"),
        ({"layers": [1], "cells": [24]}, "cells: cells of 24 px are 3×3 tokens, which do not tile the grid of 4×4"),
    ],
)
def test_what_does_not_fit_is_one_line(keys: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small(**keys)
