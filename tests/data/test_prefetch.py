import threading
import time
from collections.abc import Iterator

import pytest

from ham_dist.data.prefetch import prefetched
from ham_dist.errors import DataError


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ham_dist prefetch"]


def until(condition: object) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.001)


def test_all_items_in_order_and_no_thread_left() -> None:
    assert list(prefetched(iter(range(100)), 3)) == list(range(100))
    assert list(prefetched(iter([]), 1)) == []
    assert ours() == []


def test_items_are_made_on_another_thread_and_only_so_many_ahead() -> None:
    made: list[int] = []
    threads = set()

    def items() -> Iterator[int]:
        for number in range(100):
            threads.add(threading.current_thread())
            made.append(number)
            yield number

    ahead = prefetched(items(), 4)
    assert made == []
    assert next(ahead) == 0
    until(lambda: len(made) == 6)  # one is out, four wait, one waits for room
    time.sleep(0.05)
    assert len(made) == 6
    assert threading.current_thread() not in threads
    ahead.close()  # type: ignore[attr-defined]
    assert ours() == []
    assert len(made) <= 7


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_a_consumer_that_stops_early_leaves_no_thread(taken: int) -> None:
    ahead = prefetched(iter(range(1000)), 2)
    assert [next(ahead) for _ in range(taken)] == list(range(taken))
    del ahead
    assert ours() == []


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("part-00003.parquet: is damaged")

    ahead = prefetched(items(), 8)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError, match=r"part-00003\.parquet: is damaged"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    assert ours() == []
