"""targets/coarse.py: each token has the target of the larger patch it lies in."""

import pytest
import torch

from remask.errors import UserError
from remask.masking import Masking
from remask.targets import Hog
from remask.targets.coarse import Coarse
from remask.tokens import coarse_ids

MEAN, STD = [0.5] * 3, [0.25] * 3


def test_each_token_has_the_target_of_its_patch() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hog = Hog((8, 12), MEAN, STD, cell=4)
    target, views = Coarse(hog, (2, 3)), Masking(0.5)(2, (4, 6), torch.Generator().manual_seed(0))
    found, patches = target(images, views), hog(images).unflatten(1, (2, 2))
    assert found.shape == (2, 24, hog.width)
    assert (target.width, target.describe()) == (hog.width, hog.describe())
    for row in range(4):
        for column in range(6):
            assert torch.equal(found[:, row * 6 + column], patches[:, row // 2, column // 3])


def test_patches_tile_the_grid() -> None:
    assert coarse_ids((2, 4), (2, 2), torch.device("cpu")).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    with pytest.raises(UserError, match="patches of 2×2 tokens do not tile a grid of 7×8 tokens"):
        coarse_ids((7, 8), (2, 2), torch.device("cpu"))
