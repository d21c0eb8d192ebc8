"""Numbers as a person reads them."""


def readable_size(count: float) -> str:
    """A number of bytes with three digits and its unit: 12.3 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"


__all__ = ["readable_size"]
