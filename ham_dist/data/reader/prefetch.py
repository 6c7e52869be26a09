"""Work ahead of a consumer, on a thread of its own."""

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

NAME = "ham_dist prefetch"
# How soon a thread that waits for room sees that nobody wants its items any more, in seconds.
_LOOK_EVERY = 0.1
_END = object()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Line:
    """What the thread and the consumer share. The thread must not know the consumer, or that would never be dropped."""

    def __init__(self, ahead: int) -> None:
        self.items: Queue[object] = Queue(maxsize=ahead)
        self.left = False  # by the consumer

    def put(self, item: object) -> bool:
        """Whether there was room for it before the consumer left or the program came to its end."""
        while not self.left and threading.main_thread().is_alive():
            try:
                self.items.put(item, timeout=_LOOK_EVERY)
            except Full:
                continue
            return True
        return False


class Prefetched(Iterator[T], Generic[T]):
    """The `items`, of which up to `ahead` are made before they are asked for.

    An error that they raise is raised here, at the place in the order where it came. The thread starts at once, and ends with the items, with
    `close`, or soon after this object is dropped.
    """

    def __init__(self, items: Iterator[T], ahead: int) -> None:
        self._line = _Line(ahead)
        # No daemon: one that is stopped by the interpreter's end while it is in Arrow's C++ can take the process down.
        self._thread = threading.Thread(target=_work, args=(items, self._line), name=NAME, daemon=False)
        self._thread.start()

    def __next__(self) -> T:
        if self._line.left:
            raise StopIteration
        item = self._line.items.get()
        if item is _END or isinstance(item, _Failed):
            self.close()
        if item is _END:
            raise StopIteration
        if isinstance(item, _Failed):
            raise item.error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread, and wait until it has: for the item in work at most."""
        self._line.left = True
        try:
            while True:
                self._line.items.get_nowait()  # it may wait for room
        except Empty:
            self._thread.join()

    def __del__(self) -> None:
        # Nothing more, since the garbage collector can call this on any thread, this object's own too, and with any lock held.
        if hasattr(self, "_line"):
            self._line.left = True


def _work(items: Iterator[object], line: _Line) -> None:
    try:
        for item in items:
            if not line.put(item):
                return
    except BaseException as error:
        line.put(_Failed(error))
    else:
        line.put(_END)
