"""Dropout and drop path draw for the whole batch, and each process takes its rows: together what one process draws."""

from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from remask.training.distributed import World
from remask.training.global_batch import micro_batch, of_rows, with_global_draws


def in_pieces(layer: nn.Module, x: Tensor, processes: int, views: int) -> Tensor:
    """What `processes` make of their rows of x [views · pictures, ...], put together again."""
    pictures, found = len(x) // views, []
    for rank in range(processes):
        world = World(rank, processes)
        own = x.unflatten(0, (views, pictures))[:, world.share(pictures)].flatten(0, 1)
        torch.manual_seed(3)
        with micro_batch(world, pictures, 1, 0):
            found.append(layer(own).unflatten(0, (views, -1)))
    return torch.cat(found, dim=1).flatten(0, 1)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(
    ("make", "shape", "views", "channels_last"),
    [
        (lambda: nn.Dropout(0.3), (7, 5, 6), 1, False),
        (lambda: nn.Dropout(0.3), (7, 5, 6, 4), 1, True),
        (lambda: nn.Dropout2d(0.3), (7, 5, 6, 4), 1, True),
        (lambda: DropPath(0.4), (7, 5, 6), 1, False),
        (lambda: DropPath(0.4), (14, 5, 6), 2, False),
        (lambda: DropPath(0.4, scale_by_keep=False), (7, 5), 1, False),
    ],
)
def test_several_processes_draw_what_one_draws(
    make: Callable[[], nn.Module], shape: tuple[int, ...], views: int, channels_last: bool, processes: int
) -> None:
    x = torch.rand(shape) + 1
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    torch.manual_seed(3)
    one = make()(x)
    assert 0 < int((one == 0).sum()) < one.numel()
    several = nn.Sequential(make())
    with_global_draws(several)
    assert torch.equal(in_pieces(several, x, processes, views), one)
    several.eval()
    assert torch.equal(several(x), x)


def test_micro_batches_draw_for_their_own_rows() -> None:
    """Seven pictures of two processes in two parts: 2 + 2 rows of the first, 2 + 1 of the second."""
    drawn = {}
    for rank in range(2):
        for number in range(2):
            with micro_batch(World(rank, 2), 7, 2, number):
                rows = [2, 2, 2, 1][2 * rank + number]
                drawn[rank, number] = of_rows(rows, lambda total: torch.arange(total)[:, None]).flatten().tolist()
    assert drawn == {(0, 0): [0, 1], (1, 0): [2, 3], (0, 1): [0, 1], (1, 1): [2]}


def test_one_process_draws_as_ever() -> None:
    with micro_batch(World(), 7, 1, 0):
        assert of_rows(5, lambda total: torch.arange(total)[:, None]).flatten().tolist() == [0, 1, 2, 3, 4]
