"""Rendezvous in a store that earlier starts have written to."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from ham_dist.distributed.ranks.rendezvous import fresh_store
from ham_dist.errors import LostRankError


def start(store: dist.Store, ranks: int, late: int) -> dict[int, dist.Store]:
    """Returns the stores of the ranks of one start, which are threads; rank `late` joins after the others."""
    found: dict[int, dist.Store] = {}

    def join(rank: int) -> None:
        if rank == late:
            time.sleep(0.1)
        found[rank] = fresh_store(store, rank, ranks, timedelta(minutes=10))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_each_start_has_its_own_part_of_the_store() -> None:
    store = dist.HashStore()
    for number, (ranks, late) in enumerate([(3, 0), (3, 2), (2, 0), (4, 1)]):
        parts = start(store, ranks, late)
        assert not parts[0].check(["address"]), "written by an earlier start"
        parts[ranks - 1].set("address", str(number))
        assert [parts[rank].get("address").decode() for rank in range(ranks)] == [str(number)] * ranks


def test_ranks_that_do_not_join_are_named() -> None:
    store = dist.HashStore()
    start(store, 3, late=0)
    with pytest.raises(LostRankError, match=r"rank 1, 2 did not join within 0.005 minutes"):
        fresh_store(store, 0, 3, timedelta(seconds=0.3))
    with pytest.raises(LostRankError, match=r"rank 0 did not join"):
        fresh_store(store, 2, 3, timedelta(seconds=0.3))
