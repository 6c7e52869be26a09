"""An iterator that a background thread runs ahead of its consumer."""

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

NAME = "ham_dist prefetch"
# Seconds between two checks of a thread with a full queue that its consumer is still there.
_CHECK_SECONDS = 0.1
_END = object()


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Shared:
    """State that the thread and the consumer share.

    The thread holds no reference to the consumer: otherwise the consumer would never be garbage collected.
    """

    def __init__(self, ahead: int) -> None:
        self.items: Queue[object] = Queue(maxsize=ahead)
        self.closed = False  # by the consumer

    def put(self, item: object) -> bool:
        """Wait for space and add `item`; False if the consumer closes or the program ends first."""
        while not self.closed and threading.main_thread().is_alive():
            try:
                self.items.put(item, timeout=_CHECK_SECONDS)
            except Full:
                continue
            return True
        return False


class Prefetched(Iterator[T], Generic[T]):
    """Iterates over `items`, which a background thread produces up to `ahead` items in advance.

    An error that `items` raises is raised by the `next` that would have returned the failed item. The thread
    starts at once. It ends after the last item, by `close`, or soon after this object is garbage collected.
    """

    def __init__(self, items: Iterator[T], ahead: int) -> None:
        self._shared = _Shared(ahead)
        # Not a daemon: a daemon stopped at interpreter exit while in Arrow's C++ code can crash the process.
        self._thread = threading.Thread(target=_produce, args=(items, self._shared), name=NAME, daemon=False)
        self._thread.start()

    def __next__(self) -> T:
        if self._shared.closed:
            raise StopIteration
        item = self._shared.items.get()
        if item is _END or isinstance(item, _Failed):
            self.close()
        if item is _END:
            raise StopIteration
        if isinstance(item, _Failed):
            raise item.error
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """Stop the thread and wait for it; this takes at most as long as the item that it is producing."""
        self._shared.closed = True
        try:
            while True:
                self._shared.items.get_nowait()  # the thread may be waiting for space
        except Empty:
            self._thread.join()

    def __del__(self) -> None:
        # Only sets a flag: the garbage collector can call this on any thread, including this object's own
        # thread, and while any lock is held.
        if hasattr(self, "_shared"):
            self._shared.closed = True


def _produce(items: Iterator[object], shared: _Shared) -> None:
    try:
        for item in items:
            if not shared.put(item):
                return
    except BaseException as error:
        shared.put(_Failed(error))
    else:
        shared.put(_END)
