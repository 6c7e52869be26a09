"""A store for the rendezvous that only the ranks of this start use.

torchrun keeps one store over all restarts, and torch writes the addresses of ranks into it under the same
keys each time. After a restart, an early rank can therefore read the address of a rank that has died. (Seen
with torch 2.13 on gloo: "connectFullMesh failed ... Connection refused" after a restart.)
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from ham_dist.errors import LostRankError

POLL_SECONDS = 0.02


def fresh_store(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Returns `store` with a key prefix that all ranks of this start share and no other start uses.

    Each rank writes a unique request id, and rank 0 answers it with the prefix. Requests and answers that an
    earlier start left in the store have other ids and are ignored.

    Args:
        store: The store of the launcher.
        rank: This rank.
        world_size: W.
        timeout: How long to wait for the other ranks.
    Raises:
        LostRankError: Rank 0 got no request from some rank, or another rank got no answer, within `timeout`.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    if rank != 0:
        request = uuid.uuid4().hex
        store.set(f"request/{rank}", request)
        while not store.check([f"answer/{request}"]):
            _pause(deadline, "rank 0", timeout)
        name = store.get(f"answer/{request}").decode()
        store.set(f"{name}/joined/{rank}", "")
        return dist.PrefixStore(name, store)
    name = f"start-{uuid.uuid4().hex}"
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"request/{other}"]):
                store.set(f"answer/{store.get(f'request/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"{name}/joined/{other}"])}
        if missing:
            _pause(deadline, f"rank {', '.join(map(str, sorted(missing)))}", timeout)
    return dist.PrefixStore(name, store)


def _pause(deadline: float, missing: str, timeout: timedelta) -> None:
    if time.monotonic() > deadline:
        minutes = timeout.total_seconds() / 60
        raise LostRankError(
            f"{missing} did not join within {minutes:g} minutes (ranks.timeout_minutes), so the run cannot "
            "start.\n"
            "  Check that all ranks were started and can reach one another, or set a longer "
            "ranks.timeout_minutes."
        )
    time.sleep(POLL_SECONDS)
