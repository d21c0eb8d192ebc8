"""Which images of a source are shown."""


def evenly_spread(total: int, count: int) -> list[int]:
    """`count` numbers over 0 … total - 1: neighbours in a folder often look alike."""
    return [i * total // min(count, total) for i in range(min(count, total))]


__all__ = ["evenly_spread"]
