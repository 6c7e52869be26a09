import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ham_dist.data.reader.prefetch import NAME, Prefetched
from ham_dist.errors import DataError

EARLIER: set[threading.Thread] = set()
"""Threads of tests before this one: those of a run that was stopped end when it is garbage collected."""


@pytest.fixture(autouse=True)
def _remember_earlier_threads() -> None:
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def ours() -> list[threading.Thread]:
    """The prefetching threads of this test."""
    return [thread for thread in threading.enumerate() if thread.name == NAME and thread not in EARLIER]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_all_items_in_order_and_no_thread_left() -> None:
    assert list(Prefetched(iter(range(100)), 3)) == list(range(100))
    assert list(Prefetched(iter([]), 1)) == []
    assert ours() == []


def test_items_are_made_on_another_thread_and_only_so_many_ahead() -> None:
    made: list[int] = []
    threads = set()

    def items() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.current_thread())
            made.append(number)
            yield number

    ahead = Prefetched(items(), 4)
    assert next(ahead) == 0
    until(lambda: len(made) == 6)  # one is out, four wait, one waits for room
    time.sleep(0.05)
    assert len(made) == 6
    assert threading.current_thread() not in threads
    ahead.close()
    assert ours() == []
    assert len(made) <= 7
    assert list(ahead) == []


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_consumer_that_is_dropped_leaves_no_thread(taken: int) -> None:
    ahead = Prefetched(iter(range(1000)), 2)
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    del ahead
    until(lambda: ours() == [])


def test_a_consumer_in_a_cycle_can_be_collected_on_its_own_thread() -> None:
    collected = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        dropped.wait()
        gc.collect()
        collected.set()
        yield 2

    dropped = threading.Event()
    cycle: list[object] = [Prefetched(items(), 1)]
    cycle.append(cycle)
    gc.disable()
    try:
        del cycle
        dropped.set()
        assert collected.wait(600)
    finally:
        gc.enable()
    until(lambda: ours() == [])


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("part-00003.parquet: is damaged")

    ahead = Prefetched(items(), 8)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError, match=r"part-00003\.parquet: is damaged"):
        next(ahead)
    assert ours() == []
    with pytest.raises(StopIteration):
        next(ahead)


def test_a_program_that_ends_in_the_middle_ends() -> None:
    program = (
        "from itertools import count; from ham_dist.data.reader.prefetch import Prefetched; "
        "ahead = Prefetched(count(), 2); print(next(ahead))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
