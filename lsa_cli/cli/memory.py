"""Keep the memory that torch frees in this process."""

import ctypes
import ctypes.util

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**30


def keep_freed_memory() -> None:
    """Ask glibc not to return freed memory to the system. With another C library, do nothing.

    A pass over a batch frees tens of MB that the next one allocates again: page faults would take a tenth of its time.
    Only commands call this, because it changes the whole process.
    """
    library = ctypes.util.find_library("c")
    if library is None:
        return
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
