"""Random numbers as pure functions of a seed and a place: what is random in step s needs no saved state."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Generator


def generator(seed: int, *keys: int | str) -> Generator:
    """A CPU generator that is a pure function of its arguments: what is random in step s needs no saved state."""
    return Generator().manual_seed(derive(seed, *keys))


def derive(seed: int, *keys: int | str) -> int:
    """A 63-bit seed from a seed and a path of names and numbers."""
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(seed: int, *keys: int | str) -> Iterator[None]:
    """Give code that knows no generator (initialisation, drop path) a seed, and restore the global state after."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive(seed, *keys))
        yield


def mix(*numbers: int) -> int:
    """A 64-bit seed out of several numbers: SplitMix64 (Steele et al. 2014) over each, so that no sums coincide."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


__all__ = ["derive", "generator", "mix", "seeded"]
