"""targets/neighbours.py: the queue and its neighbours against loops, and what of it is kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from remask.errors import UserError
from remask.heads import InstanceHead
from remask.targets.neighbours import EMPTY, Neighbours
from remask.types import Features
from remask.views import Views

WIDTH, OUT = 6, 5


def head(seed: int = 0) -> InstanceHead:
    torch.manual_seed(seed)
    return InstanceHead(WIDTH, OUT, (8, 9), "mean")


def target(queue: int = 8, neighbours: int = 3) -> Neighbours:
    return Neighbours(head(), -1, queue, neighbours).train()


def features(count: int, seed: int) -> dict[tuple[int, str], Features]:
    tokens = torch.randn(count, 4, WIDTH, generator=Generator().manual_seed(seed))
    return {(-1, "block"): Features(torch.zeros(count, 0, WIDTH), tokens)}


def views(index: list[int], chance: list[float]) -> Views:
    mask = torch.zeros(1, len(index), 4, dtype=torch.bool)
    return Views(mask, (2, 2), 0, chance=torch.tensor(chance), index=torch.tensor(index))


def projected(one: Neighbours, count: int, seed: int) -> Tensor:
    return F.normalize(one.projector(features(count, seed)[-1, "block"].tokens.mean(1)), dim=-1)


def test_while_nothing_is_known_the_positive_is_the_other_crop() -> None:
    one = target()
    found = one.combine(features(4, 0), views([7, 7, 3, 3], [0.1, 0.5, 0.9, 0.99]))  # type: ignore[arg-type]
    other = projected(one, 4, 0)[[1, 0, 3, 2]]
    assert torch.equal(found[:, 0], torch.cat([other, other], dim=1))
    assert not found.requires_grad


def test_neighbours_are_those_of_a_loop_over_the_queue() -> None:
    """Six batches through a queue of 8: nearest first, never the image itself, the last entries alone."""
    one, student = target(), head()
    kept: list[tuple[int, Tensor]] = []
    random = Generator().manual_seed(5)
    for step in range(6):
        index = [n for n in torch.randint(0, 5, (2,), generator=random).tolist() for _ in range(2)]
        chance = torch.rand(4, generator=random).tolist()
        found = one.combine(features(4, step), views(index, chance))  # type: ignore[arg-type]
        own = projected(one, 4, step)
        for row in range(4):
            x = own[row ^ 1]
            others = sorted((v for i, v in kept if i != index[row]), key=lambda v, x=x: -float(v @ x))[:3]
            expected = others[int(chance[row] * len(others))] if others else x
            assert torch.allclose(found[row, 0, :OUT], expected, atol=1e-6), (step, row)
            assert torch.allclose(found[row, 0, OUT:], x, atol=1e-6)
        one.follow(student, 1.0)
        kept = [*kept, *zip(index, own.detach(), strict=True)][-8:]
    assert sorted(one.owners.tolist()) == sorted(i for i, _ in kept)
    assert int(one.written) == 24


def test_a_batch_larger_than_the_queue_leaves_its_end() -> None:
    one = target(queue=4)
    one.combine(features(6, 1), views([0, 0, 1, 1, 2, 2], [0.0] * 6))  # type: ignore[arg-type]
    one.follow(head(), 1.0)
    assert sorted(one.owners.tolist()) == [1, 1, 2, 2]


def test_the_projector_follows_the_heads() -> None:
    one, student = target(), head(seed=1)
    before = [p.clone() for p in one.projector.parameters()]
    one.follow(student, 0.75)
    for old, now, theirs in zip(before, one.projector.parameters(), student.project.parameters(), strict=True):
        assert torch.allclose(now, 0.75 * old + 0.25 * theirs, atol=1e-6)
        assert not now.requires_grad
    assert (one.owners == EMPTY).all(), "without a batch nothing is written"


def test_outside_training_nothing_is_kept() -> None:
    one = target().eval()
    one.combine(features(4, 0), views([0, 0, 1, 1], [0.0] * 4))  # type: ignore[arg-type]
    one.follow(head(), 1.0)
    assert (one.owners == EMPTY).all()


def test_images_without_numbers_are_others() -> None:
    one = target()
    mask = torch.zeros(1, 2, 4, dtype=torch.bool)
    unnumbered = Views(mask, (2, 2), 0, chance=torch.zeros(2))
    one.combine(features(2, 0), unnumbered)  # type: ignore[arg-type]
    one.follow(head(), 1.0)
    found = one.combine(features(2, 0), unnumbered)[:, 0, :OUT]  # type: ignore[arg-type]
    assert torch.allclose(found, projected(one, 2, 0)[[1, 0]], atol=1e-6), "its own entry of before is the nearest"


def test_queue_and_projector_are_in_the_state() -> None:
    one, again = target(), target()
    one.combine(features(4, 0), views([0, 0, 1, 1], [0.0] * 4))  # type: ignore[arg-type]
    one.follow(head(seed=1), 0.5)
    again.load_state_dict(one.state_dict())
    now = views([2, 2, 3, 3], [0.4] * 4)
    assert torch.equal(one.combine(features(4, 9), now), again.combine(features(4, 9), now))  # type: ignore[arg-type]


@pytest.mark.parametrize(("queue", "neighbours"), [(4, 5), (4, 0)])
def test_neighbours_must_be_in_the_queue(queue: int, neighbours: int) -> None:
    with pytest.raises(UserError, match=f"of a queue of {queue} 1 to all are neighbours, not {neighbours}"):
        target(queue, neighbours)


def test_crops_come_in_pairs() -> None:
    with pytest.raises(UserError, match="a batch of 3 crops is not one of pairs"):
        target().combine(features(3, 0))  # type: ignore[arg-type]


def test_autocast_rounds_no_similarity() -> None:
    """Two entries whose cosines differ by 1e-4 are told apart in bf16 too."""
    one = target(queue=2, neighbours=1)
    one.projector = nn.Identity()
    near, nearer = torch.zeros(OUT), torch.zeros(OUT)
    near[:2], nearer[:2] = torch.tensor([0.9998, 0.02]), torch.tensor([0.9999, 0.0141])
    one.queue[:], one.owners[:] = torch.stack([near, nearer]), torch.tensor([5, 6])
    x = torch.zeros(2, OUT)
    x[:, 0] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = one._near(x, torch.tensor([0, 0]), torch.zeros(2))
    assert torch.equal(found, torch.stack([nearer, nearer]))
