"""Memory that runs out while a file is read: whether an error says so, and whether a file of that size needs as much.

Free of the rest of the library: exports carry this text.
"""

import errno
import mmap
import re

from remask.files.bounds import UNFOLDED, UNFOLDED_FREE

_OF_TORCH = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|alloc_cpu|bad_alloc|unable to mmap .* memory|"
    r"cuda error: out of memory|_status_alloc_failed"
)
"""In messages of torch, CUDA and C++ where an allocation failed, in lower case."""
_OF_OTHERS = re.compile(r"can't allocate|cannot allocate|unable to allocate|not enough memory|out of memory|bad_alloc")
"""In those of Pillow, numpy and decoders, which have exceptions of their own."""


def no_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a CPU or a GPU, whatever the library that says so raises."""
    if isinstance(error, OSError) and error.errno:
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = _OF_TORCH if type(error) is RuntimeError else _OF_OTHERS
    return bool(words.search(str(error).lower()))


def has_room(size: int) -> bool:
    """Whether so many bytes of memory could be had now; they are not touched."""
    try:
        mmap.mmap(-1, max(size, 1)).close()
    except (OSError, OverflowError):
        return False
    return True


def unfolding(on_disk: int) -> int:
    """Bytes of memory that a file of weights or parquet may honestly take, see `bounds.unfolds_to`."""
    return UNFOLDED * on_disk + UNFOLDED_FREE


__all__ = ["has_room", "no_memory", "unfolding"]
