"""The C library's allocator, told to keep what is freed.

By default glibc hands large freed blocks back to the system, and who allocates next pays a page fault for every
4 KiB: two thirds of the time of a net's weight preparation, charged to whoever follows a larger contender.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_ON_HEAP = 32 * 2**20  # the most that glibc accepts


def keep_freed_memory() -> bool:
    """From now on in this process, where its C library is glibc; whether it is."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no such switch
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
