import os
import sys
import time

import pytest
import torch
import torch.distributed as dist

from ham_dist.errors import ShardingError
from tests.support.ranks import run_on_ranks


def _sum_of_ranks(start: int) -> torch.Tensor:
    total = torch.tensor([float(start + dist.get_rank())])
    dist.all_reduce(total)
    return total


def _process() -> int:
    return os.getpid()


def _fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ShardingError("does not fit")
    dist.barrier()


class _Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def _fail_unpicklable() -> None:
    raise _Unpicklable(1, 2)


def _hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(600)


def _die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(7)
    dist.barrier()


@pytest.mark.parametrize("world_size", [1, 3])
def test_results_come_by_rank(world_size: int) -> None:
    results = run_on_ranks(world_size, _sum_of_ranks, 10)
    assert results == [10 * world_size + sum(range(world_size))] * world_size


def test_ranks_live_on() -> None:
    assert run_on_ranks(2, _process) == run_on_ranks(2, _process)


def test_failure_is_raised_with_rank_and_traceback_and_does_not_poison() -> None:
    before = run_on_ranks(2, _process)
    with pytest.raises(ShardingError, match="does not fit") as caught:
        run_on_ranks(2, _fail_on, 1)
    (note,) = caught.value.__notes__
    assert note.startswith("on rank 1 of 2:")
    assert "in _fail_on" in note
    assert set(run_on_ranks(2, _process)).isdisjoint(before)


def test_failure_that_cannot_be_pickled_comes_as_text() -> None:
    with pytest.raises(RuntimeError, match="_Unpicklable: odd"):
        run_on_ranks(1, _fail_unpicklable)


def test_timeout_names_the_busy_ranks_and_where_they_stand() -> None:
    # On a busy machine rank 0 may need longer to answer; rank 1 never does.
    for seconds in (3, 12, 48, 192):
        run_on_ranks(2, _process)
        with pytest.raises(
            TimeoutError, match=f"after {seconds} s still busy with _hang_on: rank "
        ) as caught:
            run_on_ranks(2, _hang_on, 1, timeout=seconds)
        if "rank 1 of 2" in str(caught.value):
            break
    assert "_hang_on: rank 1 of 2" in str(caught.value)
    (note,) = caught.value.__notes__
    assert note.startswith("rank 1 stands at:")
    assert "in _hang_on" in note


def test_dead_rank_is_named() -> None:
    with pytest.raises(RuntimeError, match="rank 0 of 2 died with exit code 7"):
        run_on_ranks(2, _die_on, 0)


def _imported() -> bool:
    return "torchrec" in sys.modules


def test_new_ranks_have_imported_torchrec_already() -> None:
    with pytest.raises(RuntimeError, match="_Unpicklable: odd"):
        run_on_ranks(1, _fail_unpicklable)
    assert run_on_ranks(1, _imported) == [True]
