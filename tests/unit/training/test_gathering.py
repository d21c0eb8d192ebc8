"""training/gathering.py: two processes compute the loss and the gradients of one, however the rows are shared out."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from remask.distances import uniformity
from remask.training.distributed import World
from remask.training.gathering import all_rows

ROOT = Path(__file__).resolve().parents[3]
PICTURES, WIDTH = 7, 6


class Compared(nn.Module):
    """A loss of all pairs of pictures, with parameters before the rows meet and one behind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(4, WIDTH), nn.Parameter(torch.tensor([0.7]))

    def forward(self, images: Tensor) -> Tensor:
        """Of images [V, B, 4]."""
        rows = all_rows(self.layer(images), dim=1)
        return self.scale * uniformity(rows.unsqueeze(2), rows.new_zeros(*rows.shape[:2], 1, 0)).mean()


def images() -> Tensor:
    return torch.randn(2, PICTURES, 4, generator=torch.Generator().manual_seed(1))


def found(share: slice, world: World) -> dict[str, list[float]]:
    """Loss and gradients of these pictures, weighted as the trainer weighs a process's share."""
    model = Compared()
    called = model if world.alone else DistributedDataParallel(model)
    loss = called(images()[:, share])
    (loss * world.size * (share.stop - share.start) / PICTURES).backward()
    order = all_rows(images()[:, share], dim=1)
    gradients = {name: p.grad.flatten().tolist() for name, p in model.named_parameters()}
    return {"loss": [loss.item()], "order": order.flatten().tolist(), **gradients}


def one_of_two(rank: int, folder: Path) -> None:
    """What each of two processes finds, with four pictures and with three; also with as many in both."""
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    world = World(rank, 2, rank, 2)
    torch.save(found(world.share(PICTURES), world), folder / f"{rank}.pt")
    alike = torch.full((2, 3), float(rank), dtype=torch.float64)
    assert all_rows(alike).tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert all_rows(torch.full((1,), rank)).tolist() == [0, 1]
    assert all_rows(torch.empty(3, 2, device="meta")).shape == (3, 2)
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    """A loss of all pairs: the same number in each process, and after DDP's average the same gradients."""
    code = "import sys, pathlib; from tests.unit.training.test_gathering import one_of_two as f; "
    code += "f(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    alone = found(slice(0, PICTURES), World())
    for rank in (0, 1):
        two = torch.load(tmp_path / f"{rank}.pt")
        assert two.keys() == alone.keys() == {"loss", "order", "layer.weight", "layer.bias", "scale"}
        for name, expected in alone.items():
            assert two[name] == pytest.approx(expected, rel=1e-5, abs=1e-8), name
    assert max(map(abs, alone["layer.weight"])) > 1e-3


def test_a_process_alone_gets_back_what_it_gives() -> None:
    rows = torch.ones(2, 3)
    assert all_rows(rows) is rows
