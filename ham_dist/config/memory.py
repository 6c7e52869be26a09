"""What the C library does with memory that is freed."""

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have freed memory of any size stay with this process, for its next allocation. Does nothing where the C library has no such switch.

    glibc gives blocks of more than 32 MiB back to the kernel at once, and the kernel fills each page with zeros when it is touched again: for a
    gradient as large as the tables, which is made anew in each step, that takes longer than the step's arithmetic, and it is a seventh of the time
    that preparing raw data takes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Give all of it back to the system: after work that is done seldom, and takes as much as the tables do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
