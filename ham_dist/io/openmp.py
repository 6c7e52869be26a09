"""OpenMP settings for machines that are shared with other processes."""

import os
from collections.abc import MutableMapping

SPINS = "8000"
"""Spin count of GNU OpenMP: threads spin tens of microseconds before they sleep (default: milliseconds).

Long enough for the gap between two kernels of a step, where sleeping would cost more than spinning. Short
enough when the thread that others wait for has lost its core to another process. perf/bench_busy.py measures
both.
"""

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Environment variables by which a user sets how threads wait."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes OpenMP threads sleep early at barriers, unless the environment sets how they wait.

    Args:
        environment: Environment to set: that of this process, before torch is imported (OpenMP reads it when
            it is loaded), or that of a process not yet started.
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = SPINS
