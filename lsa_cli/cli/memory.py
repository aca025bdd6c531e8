"""How this process treats memory that torch gives back: it is kept."""

import ctypes
import ctypes.util

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**30


def keep_freed_memory() -> None:
    """Ask glibc not to hand freed memory back to the system; elsewhere do nothing.

    A pass over a batch frees tens of MB and the next one asks for them again: without this, every pass takes thousands
    of page faults, a tenth of its time. It is for a process that is ours, and so not for the library.
    """
    library = ctypes.util.find_library("c")
    if library is None:
        return
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _LARGEST)
