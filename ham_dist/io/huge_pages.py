"""Memory of this process: huge pages, and whether freed memory is kept or returned to the system."""

import ctypes
import os
from collections.abc import MutableMapping

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def use_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes torch request huge pages (2 MiB) from Linux for every CPU allocation larger than one page.

    Lookups access rows all over a table: with pages of 4 KiB nearly every lookup misses the TLB. Huge pages
    save up to a tenth of the step time (perf/results/search_cost_cpu_2026-11.md).

    Args:
        environment: Environment to set the switch in: that of this process, before torch's first tensor (and
            before importing TorchRec, which makes a tensor), or that of a process not yet started.
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch's own switch; 0 turns it off


def keep_freed_memory() -> None:
    """Makes this process keep freed memory of any size for later allocations.

    Does nothing if the C library has no `mallopt`.

    glibc returns freed blocks of more than 32 MiB to the kernel at once, and the kernel zeroes each page when
    it is touched again. For a gradient as large as the tables, which is allocated in each step, this takes
    longer than the step's arithmetic; in preparing raw data, it takes a seventh of the time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed_memory() -> None:
    """Returns freed memory to the system; for use after rare work that needs as much memory as the tables."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
