"""A store that only the ranks of this start write to.

torchrun keeps one store over all restarts, and torch writes the addresses of ranks into it under the same names each time: a rank that is early reads
the address of one that has died. (Seen with torch 2.13 on gloo: "connectFullMesh failed ... Connection refused" after a restart.)
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from ham_dist.errors import LostRankError

POLL_SECONDS = 0.02


def fresh_store(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """A part of `store` under a name that all ranks of this start share, and no other start.

    Each rank calls with a number of its own, and rank 0 answers under that number with the name: what an earlier start has left in the store is a
    call that nobody waits for, or an answer that nobody asked for.

    raises: LostRankError if the others do not call, or rank 0 does not answer, within `timeout`.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    if rank != 0:
        call = uuid.uuid4().hex
        store.set(f"call/{rank}", call)
        while not store.check([f"answer/{call}"]):
            _pause(deadline, "rank 0", timeout)
        name = store.get(f"answer/{call}").decode()
        store.set(f"{name}/heard/{rank}", "")
        return dist.PrefixStore(name, store)
    name = f"start-{uuid.uuid4().hex}"
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"call/{other}"]):
                store.set(f"answer/{store.get(f'call/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"{name}/heard/{other}"])}
        if missing:
            _pause(deadline, f"rank {', '.join(map(str, sorted(missing)))}", timeout)
    return dist.PrefixStore(name, store)


def _pause(deadline: float, missing: str, timeout: timedelta) -> None:
    if time.monotonic() > deadline:
        minutes = timeout.total_seconds() / 60
        raise LostRankError(
            f"{missing} did not come within {minutes:g} minutes (ranks.timeout_minutes), so the ranks cannot start"
        )
    time.sleep(POLL_SECONDS)
