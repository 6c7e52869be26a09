"""Work ahead of a consumer, on a thread of its own."""

import threading
from collections.abc import Iterator
from queue import Empty, Queue
from typing import Generic, TypeVar

T = TypeVar("T")


class _Failed(Generic[T]):
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The `items`, of which up to `ahead` are made before they are asked for.

    An error that they raise is raised here, at the place in the order where it came. The thread starts with the first item asked for, and is gone
    when the items have ended, or this generator was closed or dropped.
    """
    queue: Queue[object] = Queue(maxsize=ahead)
    stop = threading.Event()

    def work() -> None:
        last: object = _END
        try:
            for item in items:
                queue.put(item)
                if stop.is_set():
                    return
        except BaseException as error:
            last = _Failed(error)
        queue.put(last)

    # A daemon, so that a process that ends in the middle of an epoch does not wait for it.
    thread = threading.Thread(target=work, name="ham_dist prefetch", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        _drain(queue)  # the thread may wait for room for one more item, and then sees that it is to stop
        thread.join()


def _drain(queue: "Queue[object]") -> None:
    while True:
        try:
            queue.get_nowait()
        except Empty:
            return
