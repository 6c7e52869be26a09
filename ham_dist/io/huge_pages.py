"""What the operating system's memory is like for this process: the size of its pages, and what becomes of what is freed."""

import ctypes
import os
from collections.abc import MutableMapping

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def use_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have torch ask Linux for pages of 2 MiB for every block on the CPU that is larger than one.

    Of use before torch's first tensor alone, and TorchRec makes one as it is imported; or in the environment of a process that is yet to start.

    Rows are looked up all over a table: with pages of 4 KiB nearly each of them misses the processor's list of pages. It buys up to a tenth of a step
    (perf/results/search_cost_cpu_2026-11.md).
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own switch; 0 leaves it off.


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
