"""Checks of the name of a file for features. Free of torch."""

from pathlib import Path

from remask.errors import UserError

KINDS = (".parquet", ".npz")


def check_name(file: Path) -> None:
    """Raise UserError for a suffix not in KINDS, and for a folder."""
    if file.suffix not in KINDS:
        raise UserError(f"{file}: features are written to {' or '.join(KINDS)}; choose a file name that ends so")
    if file.is_dir():
        raise UserError(f"{file} is a folder; choose another file name")


def check_file(file: Path) -> None:
    """Raise UserError for an invalid name, or if the library that writes the file is not installed."""
    check_name(file)
    if file.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(f"{file} needs pyarrow: pip install 'remask[data]', or write .npz") from None


__all__ = ["KINDS", "check_file", "check_name"]
