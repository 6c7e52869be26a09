"""OpenMP on a machine that other processes use too."""

import os
from collections.abc import MutableMapping

SPINS = "4000"
"""Rounds that a thread of GNU OpenMP spins before it sleeps, tens of microseconds; without a setting, milliseconds.

Long enough for the gap between two kernels of a step, where going to sleep would cost more than waiting; short where the thread that is waited for
has lost its core to another process. perf/bench_busy.py measures both sides.
"""

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Variables by which a user decides how threads wait."""


def limit_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP's threads sleep early at barriers, unless the environment decides how they wait.

    The library reads its environment as it is loaded, so call this before torch is imported, or on the environment of a process that is yet to start.
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = SPINS
