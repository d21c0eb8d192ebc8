"""Processes that start together find one name, whatever others left in the store before them."""

import threading

import torch.distributed as dist

from remask.training.meeting import common_name


def names(store: dist.Store, size: int) -> list[str]:
    found = [""] * size

    def meet(rank: int) -> None:
        found[rank] = common_name(store, rank, size)

    threads = [threading.Thread(target=meet, args=(rank,)) for rank in reversed(range(size))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found


def test_all_of_a_start_have_one_name_and_each_start_another() -> None:
    """Of three processes, then two, then three again in the same store, as when a machine leaves and one joins."""
    store, seen = dist.HashStore(), set[str]()
    for size in (3, 2, 3, 1):
        found = names(store, size)
        assert len({*found}) == 1
        assert found[0]
        seen.add(found[0])
    assert len(seen) == 4
